"""What becomes of the supervisor's record; and that it stays a program of the standard library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit_runtime.supervisor
from edgekit_runtime.supervisor import lean, rules
from edgekit_runtime.supervisor.book import Book

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
PROVEN = {**rules.fresh(A), "confirmed": True}


def _ask(digest, number=1, **more):
    return {"id": f"r{number}", "digest": digest, "tries": 2, **more}


def test_a_request_goes_on_trial_and_what_was_proven_is_kept():
    record = rules.adopt(PROVEN, _ask(B))
    assert (record["active"], record["fallback"], record["confirmed"]) == (B, A, False)
    # Another request while on trial: the proven one stays the way back.
    record = rules.adopt(record, _ask(C, 2))
    assert (record["active"], record["fallback"]) == (C, A)


def test_the_same_request_counts_once():
    record = rules.adopt(PROVEN, _ask(B))
    lost = rules.revert(record, "no", 1.0)
    assert rules.adopt(lost, _ask(B))["active"] == A


def test_a_failed_runtime_needs_a_new_token():
    lost = rules.revert(rules.adopt(PROVEN, _ask(B)), "no", 1.0)
    assert rules.adopt(lost, _ask(B, 2))["active"] == A
    again = rules.adopt(lost, _ask(B, 3, token="again"))
    assert (again["active"], again["failed"]) == (B, {})


def test_going_back_by_order_needs_no_trial():
    both = {**rules.adopt(PROVEN, _ask(B)), "confirmed": True}
    record = rules.adopt(both, _ask(A, 2))
    assert (record["active"], record["fallback"], record["confirmed"]) == (A, B, True)


def test_without_anything_to_go_back_to_no_try_is_spent():
    assert rules.begin(rules.fresh(A), "", 1.0) == rules.fresh(A)


def test_tries_end_in_the_fallback_with_the_last_reason():
    record = rules.adopt(PROVEN, _ask(B))
    for _ in range(2):
        record = rules.begin(record, "", 1.0)
        assert record["active"] == B
    record = rules.begin(record, "ended by SIGSEGV", 2.0)
    assert (record["active"], record["confirmed"]) == (A, True)
    assert record["failed"][B]["reason"] == "every try was spent: ended by SIGSEGV"


@pytest.mark.parametrize(
    ("record", "current", "active"),
    [
        (PROVEN, A, A),
        (PROVEN, "", A),
        (PROVEN, C, C),  # an installer was here
        ({**PROVEN, "active": B, "fallback": A}, A, B),  # power went before the link was moved
        (rules.revert(rules.adopt(PROVEN, _ask(B)), "no", 1.0), B, A),
    ],
)
def test_what_an_installer_left_is_tried_unless_it_is_known(record, current, active):
    assert rules.installed(record, current)["active"] == active


def test_pauses_grow_and_are_bounded():
    pauses = [rules.backoff_s(ends) for ends in range(20)]
    assert pauses[:4] == [0.0, 0.0, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == rules.BACKOFF_S_MAX


def test_the_record_survives_one_damaged_copy_at_every_byte(tmp_path):
    book = Book(str(tmp_path))
    book.save(PROVEN)
    book.save(rules.adopt(PROVEN, _ask(B)))
    newest = tmp_path / "runtime.b"
    whole = newest.read_bytes()
    for at in range(len(whole)):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert Book(str(tmp_path)).load()["active"] == A
        newest.write_bytes(whole[:at])
        assert Book(str(tmp_path)).load()["active"] == A


def test_what_it_reads_is_what_json_reads():
    value = {"a": [1, -2.5, 'x\u00e9"\\', None, True, {"b": 1e300}], "": {}}
    for text in (json.dumps(value), json.dumps(value, indent=1, ensure_ascii=False)):
        assert lean.parsed(f" {text}\n".encode()) == value
    for bad in (b"", b"{", b"[1,]", b"{} x", b'{"a"}', b"\xff", b'"\x01"', b"nul"):
        with pytest.raises(ValueError, match=r"."):
            lean.parsed(bad)


def test_a_request_that_cannot_be_read_is_none(tmp_path):
    for raw in (b"{", b"[]", b'{"id": 1}', b"\xff\xfe"):
        (tmp_path / "runtime.request").write_bytes(raw)
        assert Book(str(tmp_path)).request() is None


def test_unusable_requests_and_names_are_refused(tmp_path):
    book = Book(str(tmp_path))
    for digest in ("", "sha256:", "sha256:../../etc", A, A.upper()):
        assert not book.has(digest)
    assert book.request() is None
    assert book.held() == []


def test_it_imports_nothing_but_the_standard_library_and_itself():
    """Under -I -S, from a copy that has nothing else beside it."""
    program = Path(edgekit_runtime.supervisor.__file__).parent
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import edgekit_runtime.supervisor.loop;"
        "assert not {'enum', 're', 'json'} & set(sys.modules), 'a start got 10 ms longer';"
        "print(*sorted(n for n, m in sys.modules.items() if getattr(m, '__file__', None)"
        " and sys.argv[1] in m.__file__))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(program.parents[1])],
        capture_output=True, text=True, check=False, env={"PATH": os.defpath},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = ("", ".book", ".child", ".lean", ".loop", ".rules")
    assert done.stdout.split() == [
        "edgekit_runtime",
        *(f"edgekit_runtime.supervisor{part}" for part in parts),
    ]
