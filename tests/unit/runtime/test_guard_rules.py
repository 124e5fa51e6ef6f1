"""The guard: what it rejects, clamps and flags."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from agentkit import layouts

from edgekit.contracts.contract import OnViolation
from edgekit_runtime import guard
from edgekit_runtime.errors import GuardError
from edgekit_runtime.guard import Flags


def _contract(**changes):
    base = layouts.contract()
    return msgspec.structs.replace(
        base, inputs=(msgspec.structs.replace(base.inputs[0], **changes),)
    )


def _row(*values):
    return {"x": np.array([values], np.float32)}


def test_check_passes_what_keeps_the_contract():
    assert guard.check(_contract(), _row(1, 2, 3, 100)) is Flags.NONE


def test_another_layout_is_told_from_another_shape():
    contract = _contract(shape=("n", 3, 8, 8), layout="NCHW")
    assert guard.check(contract, {"x": np.zeros((2, 3, 8, 8), np.float32)}) is Flags.NONE
    with pytest.raises(GuardError, match="in layout NCHW") as wrong:
        guard.check(contract, {"x": np.zeros((2, 8, 8, 3), np.float32)})
    assert "another layout" in wrong.value.hint
    with pytest.raises(GuardError, match="in layout NCHW") as wrong:
        guard.check(contract, {"x": np.zeros((2, 3, 8, 9), np.float32)})
    assert wrong.value.hint is None
    with pytest.raises(GuardError, match="in layout NCHW") as wrong:  # empty, and in order
        guard.check(contract, {"x": np.zeros((0, 3, 8, 8), np.float32)})
    assert wrong.value.hint is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "missing"),
        ({"y": np.zeros((1, 4), np.float32)}, "not in the contract"),
        ({"x": np.zeros((1, 4))}, "dtype float64"),
        ({"x": np.zeros((1, 3), np.float32)}, "shape"),
        ({"x": np.zeros(4, np.float32)}, "shape"),
        ({"x": np.zeros((0, 4), np.float32)}, "shape"),
        (_row(np.nan, 0, 0, 0), "NaN"),
    ],
)
def test_check_rejects(arrays, message):
    with pytest.raises(GuardError, match=message):
        guard.check(_contract(), arrays)


def test_check_flags_range_and_nan_by_policy():
    contract = _contract(on_nan=OnViolation.FLAG)
    assert guard.check(contract, _row(101, 0, 0, 0)) == Flags.INPUT_RANGE
    assert guard.check(contract, _row(np.nan, 0, 0, 0)) == Flags.INPUT_NAN
    assert guard.check(contract, _row(np.inf, 0, 0, 0)) == Flags.INPUT_RANGE
    with pytest.raises(GuardError, match="outside"):
        guard.check(_contract(on_range=OnViolation.REJECT), _row(101, 0, 0, 0))


def test_mend_clamps_into_the_range_and_keeps_the_dtype():
    contract = _contract(on_nan=OnViolation.CLAMP, on_range=OnViolation.CLAMP)
    arrays = _row(np.nan, np.inf, -np.inf, 7)
    flags = guard.check(contract, arrays)
    assert flags & Flags.CLAMP
    mended = guard.mend(contract, arrays)["x"]
    assert mended.dtype == np.float32
    assert mended.tolist() == [[-100.0, 100.0, -100.0, 7.0]]


def test_names_lists_set_flags():
    assert guard.names(Flags.INPUT_NAN | Flags.OUTPUT_NAN) == ["input_nan", "output_nan"]
