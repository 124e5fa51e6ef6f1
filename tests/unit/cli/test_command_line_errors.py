"""Usage errors of any command: exit code 2, one line, a hint; no command prints the help."""

import sys

import pytest

from edgekit.cli.main import main


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["edgekit", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["nonsense"], "error: No such command 'nonsense'.", "hint: see 'edgekit --help'"),
        (["build"], "error: Missing argument", "hint: see 'edgekit build --help'"),
        (["build", "m"], "error: Missing option '--target'", "hint: see 'edgekit build --help'"),
        (
            ["targets", "emulator", "rpi5", "--base", "a", "--base-rootfs", "b"],
            "error: --base and --base-rootfs are two ways",
            "hint: give one",
        ),
        (
            ["targets", "emulator", "jetson-orin"],
            "error: jetson-orin: there is no CPU model to emulate",
            "hint: name another target",
        ),
        (["model", "list", "--no"], "error: No such option: --no", "hint: see 'edgekit model list"),
    ],
)
def test_usage_errors(monkeypatch, capsys, words, error, hint):
    assert run(monkeypatch, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith(error)
    assert lines[1].startswith(hint)
    assert len(lines) == 2


def test_no_command_prints_the_help(monkeypatch, capsys):
    assert run(monkeypatch) == 2
    shown = capsys.readouterr()
    assert "Usage: edgekit" in shown.out + shown.err
    assert "error:" not in shown.err


@pytest.mark.parametrize("command", ["model", "dataset", "targets", "build", "inspect"])
def test_help_needs_nothing_heavy(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["edgekit", command, "--help"])
    for heavy in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, heavy, None)  # importing it would fail
    # typer prints the help and returns
    main()
    assert f"edgekit {command}" in capsys.readouterr().out
