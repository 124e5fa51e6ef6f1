"""The repository tests itself: sizes, marks, help texts, links, exported names."""

import importlib
import json
import pkgutil
import re
import subprocess
from pathlib import Path

import click
import pytest
import typer

ROOT = Path(__file__).parents[2]
SOURCES = ("edgekit", "runtime/edgekit_runtime", "fleet/edgekit_fleet")
LINES_MAX = 400


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_source_file_is_longer_than_400_lines():
    long = {
        str(path.relative_to(ROOT)): count
        for path in python_files(*SOURCES, "tests", "benchmarks")
        if (count := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert long == {}


def test_no_unfinished_marks_in_product_code():
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|unittest\.mock)\b")
    found = [str(path) for path in python_files(*SOURCES) if marks.search(path.read_text())]
    assert found == []


def test_exported_names_are_sorted_and_exist():
    for root in ("edgekit", "edgekit_runtime", "edgekit_fleet"):
        package = importlib.import_module(root)
        for info in pkgutil.walk_packages(package.__path__, root + "."):
            if info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            names = list(getattr(module, "__all__", ()))
            assert names == sorted(names), info.name
            assert all(hasattr(module, name) for name in names), info.name


def commands(group, path):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            assert command.help, f"{path} {name} has no help"
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def all_commands():
    from edgekit.cli.main import app
    from edgekit_runtime.cli import app as agent

    for name, each in (("edgekit", app), ("edgekit-agent", agent)):
        yield from commands(typer.main.get_command(each), name)


def test_every_command_and_option_has_help():
    for path, command in all_commands():
        assert command.help, f"{path} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option) or hasattr(parameter, "help"):
                assert parameter.help, f"{path}: {parameter.name} has no help"


def test_every_command_in_the_readme_exists():
    known = {path for path, _ in all_commands()}
    text = (ROOT / "README.md").read_text()
    lines = [
        line.partition("#")[0].split()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    used = [words for words in lines if words and words[0] in {"edgekit", "edgekit-agent"}]
    assert len(used) > 8
    for words in used:
        prefixes = {" ".join(words[:n]) for n in (2, 3, 4)}
        assert prefixes & known, words


@pytest.mark.parametrize(
    "document",
    [
        p
        for p in sorted(ROOT.rglob("*.md"))
        if not {".venv", "demo-out", "engine-work"} & set(p.parts)
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_ci_calls_the_commands_the_readme_names():
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    for target in ("make check", "make test", "make demo"):
        assert target in script
        assert target in readme


def test_benchmark_results_have_the_agreed_shape():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert {"machine", "commit", "rows"} <= result.keys()
        for row in result["rows"]:
            assert {"case", "metric", "us", "peer", "ratio", "goal", "met", "note"} <= row.keys()
        assert path.with_suffix(".md").exists()


def test_nothing_committed_names_a_private_path_or_an_index_host():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    bad = re.compile(r"(^|[\s\"'(=])/(work|farm|root)/|pypi\.org|files\.pythonhosted", re.MULTILINE)
    me = Path(__file__).name
    for name in listed:
        path = ROOT / name
        if path.suffix in {".npz", ".onnx"} or path.name == me or not path.is_file():
            continue
        assert not bad.search(path.read_text(errors="replace")), name
