"""Which rules of the contract inputs broke: packed into a record, counted at the drain. Pure.

Three bits for each input: a value that is not a number, one out of range, data too old. What the
contract does about it (reject, clamp, flag) is known per rule and need not be recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from edgekit.contracts.contract import Contract, InputSpec, OnViolation
from edgekit_runtime.guard import Flags
from edgekit_runtime.ports import Array

RULES = ("nan", "range", "age")
INPUTS_MAX = 21  # 63 of 64 bits; further inputs are counted with the last
FORM = "form"  # missing, unknown, or of another dtype or shape: always rejected
ANY = "*"
NAME_CHARS_MAX = 48
Labels = tuple[tuple[str, str, str, str], ...]


def labels(contract: Contract) -> Labels:
    """Per input: its name, and what the contract does about each of `RULES`."""
    found = [
        (spec.name[:NAME_CHARS_MAX], spec.on_nan.value, spec.on_range.value, spec.on_age.value)
        for spec in contract.inputs[:INPUTS_MAX]
    ]
    if len(contract.inputs) > INPUTS_MAX:
        reject = OnViolation.REJECT.value
        found[-1] = ("others", reject, reject, reject)
    return tuple(found)


def place(contract: Contract, name: str) -> int:
    """Index of the input ``name`` in a record; -1 when the contract has none."""
    names = [spec.name for spec in contract.inputs]
    return min(names.index(name), INPUTS_MAX - 1) if name in names else -1


def broken(contract: Contract, arrays: Mapping[str, Array], old: int = 0) -> int:
    """The bits of ``arrays``, which need not keep any rule; ``age``: bits known before."""
    bits = old
    for index, spec in enumerate(contract.inputs):
        array = arrays.get(spec.name)
        if array is None or array.dtype != np.dtype(spec.dtype) or array.size == 0:
            continue
        found = _values(spec, array)
        shift = 3 * min(index, INPUTS_MAX - 1)
        bits |= (bool(found & Flags.INPUT_NAN) | bool(found & Flags.INPUT_RANGE) << 1) << shift
    return bits


def age_bits(contract: Contract, age_s: float | None) -> int:
    """The bits of inputs that are too old; an age that was not told is too old."""
    bits = 0
    for index, spec in enumerate(contract.inputs):
        limit = spec.age_s_max
        if limit is not None and (age_s is None or not age_s <= limit):
            bits |= 4 << 3 * min(index, INPUTS_MAX - 1)
    return bits


def _values(spec: InputSpec, array: Array) -> Flags:
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    flags = Flags.NONE
    if not finite and (spec.range is None or bool(np.isnan(array).any())):
        flags |= Flags.INPUT_NAN
    if spec.range is not None:
        low, high = spec.range
        outside = np.fmin.reduce(array, None) < low or np.fmax.reduce(array, None) > high
        flags |= Flags.INPUT_RANGE if outside else Flags.NONE
    return flags


def count(
    known: Labels, bits: npt.NDArray[np.uint64], form: npt.NDArray[np.int32]
) -> dict[str, int]:
    """Counts by ``input rule action``; ``form``: the input of each refusal for its form."""
    return dict(_counted(known, bits, form))


def _counted(
    known: Labels, bits: npt.NDArray[np.uint64], form: npt.NDArray[np.int32]
) -> Iterator[tuple[str, int]]:
    some = bits[bits != 0]
    for index, (name, *actions) in enumerate(known):
        for rule, action in enumerate(actions):
            mask = np.uint64(1 << (3 * index + rule))
            number = int(np.count_nonzero(some & mask))
            if number:
                yield f"{name} {RULES[rule]} {action}", number
    reject = OnViolation.REJECT.value
    for index in np.unique(form):
        name = known[index][0] if 0 <= index < len(known) else ANY
        yield f"{name} {FORM} {reject}", int(np.count_nonzero(form == index))
