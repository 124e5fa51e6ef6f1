"""The whole story once, then its report and its traces tampered with.

The demo kills the manager in wave 2 of v2; that the rollout finishes after its restart is one of
the claims asserted here.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]


def edgekit(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = edgekit(
        "demo", "--out", folder / "out", "--report", folder / "report.json", "--broker", "iotcore"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "report.json").read_text())


def verify(folder):
    return edgekit("demo", "--verify", "--out", folder / "out", "--report", folder / "report.json")


def test_the_report_tells_of_a_good_a_better_and_a_stopped_release(told):
    _, report = told
    assert report["ok"] is True
    assert [r["verdict"] for r in report["rollouts"]] == ["succeeded", "succeeded", "rolled_back"]
    stopped = report["rollouts"][2]
    assert stopped["devices_exposed"] == 4
    assert "accuracy_drop" in stopped["reason"] or "prediction_shift" in stopped["reason"]
    books = report["inferences"]
    assert books["answered"] == books["produced"] == books["counted"] > 5000
    keys = {"target", "precision", "quality", "quality_drop", "quality_drop_upper", "size_bytes"}
    assert all(
        keys | {"latency_ms", "validated"} <= variant.keys() for variant in report["variants"]
    )


def test_a_manager_killed_in_wave_2_finishes_the_rollout(told):
    _, report = told
    fault = next(fault for fault in report["faults"] if fault["killed"] == "manager")
    assert fault["during"] == "meter-v2, wave quarter, soaking"
    assert fault["unacked_at_kill"] >= 1
    assert fault["pid"] != fault["pid_after"]
    v2 = report["rollouts"][1]
    waves = {wave["name"]: wave for wave in v2["waves"]}
    assert waves["quarter"]["soak_started"] < fault["at"] < waves["quarter"]["finished"]
    assert v2["verdict"] == "succeeded"


def test_the_traces_say_the_same_when_read_again(told):
    folder, _ = told
    done = verify(folder)
    assert done.returncode == 0, done.stderr


def leaves(value, path=()):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, (*path, key))
    else:
        yield path


def altered(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "altered" if value is None or isinstance(value, str) else value


def test_every_altered_field_of_the_report_is_noticed(told, monkeypatch):
    """By the function behind ``--verify``; one command line per field would take hours."""
    from edgekit.cli.demo import evidence
    from edgekit.contracts.errors import BadInputError

    folder, report = told
    truth = evidence.collect(folder / "out")
    monkeypatch.setattr(evidence, "collect", lambda _: truth)
    path = folder / "altered.json"
    unnoticed = []
    for leaf in leaves(report):
        document = json.loads(json.dumps(report))
        node = document
        for key in leaf[:-1]:
            node = node[key]
        node[leaf[-1]] = altered(node[leaf[-1]])
        path.write_text(json.dumps(document))
        try:
            noticed = not evidence.verify(folder / "out", path).ok
        except BadInputError:
            noticed = True  # cannot even be read
        if not noticed:
            unnoticed.append(leaf)
    assert unnoticed == []


def _drop_ledger_line(out: Path):
    ledger = next((out / "ledger").glob("*.ledger"))
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))


def _forget_window(out: Path):
    database = sqlite3.connect(out / "manager" / "manager.sqlite")
    database.execute("delete from windows where id = (select max(id) from windows where n > 0)")
    database.commit()
    database.close()


def _claim_success(out: Path):
    database = sqlite3.connect(out / "manager" / "manager.sqlite")
    database.execute(
        "update rollouts set state = cast("
        "replace(cast(state as text), 'rolled_back', 'succeeded') as blob) "
        "where name = 'meter-v3'"
    )
    database.commit()
    database.close()


def _shrink_model(out: Path):
    record = json.loads((out / "v2" / "build-record.json").read_text())
    record["variants"][0]["quality"] += 0.01
    (out / "v2" / "build-record.json").write_text(json.dumps(record))


def _lose_observations(out: Path):
    (out / "observed.json").unlink()


@pytest.mark.parametrize(
    "tamper",
    [_drop_ledger_line, _forget_window, _claim_success, _shrink_model, _lose_observations],
    ids=lambda tamper: tamper.__name__.strip("_"),
)
def test_tampering_with_a_source_makes_the_demo_fail(told, tmp_path, tamper):
    folder, _ = told
    shutil.copytree(folder / "out", tmp_path / "out", symlinks=True)
    shutil.copy(folder / "report.json", tmp_path)
    tamper(tmp_path / "out")
    done = verify(tmp_path)
    assert done.returncode in {3, 4}
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
