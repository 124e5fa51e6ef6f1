"""Contract check of inference inputs: dtype, shape, NaN and range. Pure.

`check` decides, `mend` clamps. A rejected input raises `GuardError`, which the caller counts as a
violation; a flagged or clamped one is answered with flags set. Infinities count as NaN unless a
range says where to clamp them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import IntFlag

import numpy as np

from edgekit.contracts.contract import Contract, InputSpec, OnViolation
from edgekit_runtime.errors import GuardError
from edgekit_runtime.ports import Array


class Flags(IntFlag):
    """What was unusual about one inference."""

    NONE = 0
    INPUT_NAN = 1
    INPUT_RANGE = 2
    CLAMP = 4  # at least one value has to be (or was) clamped into its range
    OUTPUT_NAN = 8
    INPUT_AGE = 128  # an input is older than the contract allows, or its age was not told
    STALE = 16  # answered by another bundle than the device has active; only where embedded
    # A candidate in the shadow would have answered otherwise. It sees what was answered already:
    # this stands in the answer to a request that is sent again with its id.
    SHADOW_DISAGREED = 32

    @property
    def violation(self) -> bool:
        """Whether an input broke the contract."""
        return bool(self & (Flags.INPUT_NAN | Flags.INPUT_RANGE | Flags.INPUT_AGE))


def names(flags: Flags) -> list[str]:
    """The set flags in lower case, for answers in JSON."""
    return [member.name.lower() for member in Flags if member and member in flags and member.name]


def conform(spec: InputSpec, array: Array) -> Array:
    """``array`` in the contract's dtype when only the width differs and every value fits.

    For callers that read files, where float64 and int64 are what tools write.

    Raises:
        GuardError: another kind of number, or values that do not fit.
    """
    want = np.dtype(spec.dtype)
    if array.dtype == want:
        return array
    if array.dtype.kind == want.kind == "f":
        return array.astype(want)
    if array.dtype.kind in "iub" and want.kind in "iu":
        info = np.iinfo(want)
        if array.size == 0 or (array.min() >= info.min and array.max() <= info.max):
            return array.astype(want)
    raise GuardError(
        f"input {spec.name!r}: dtype {array.dtype}, the contract wants {spec.dtype}",
        hint=f"convert the array, e.g. array.astype('{spec.dtype}')",
    )


def check(contract: Contract, arrays: Mapping[str, Array]) -> Flags:
    """Flags of ``arrays``.

    Raises:
        GuardError: a missing or unknown input, a wrong dtype or shape, or a value whose policy is
            ``reject``.
    """
    flags = Flags.NONE
    dims: dict[str, int] = {}
    for spec in contract.inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise GuardError(
                f"input {spec.name!r} is missing{_unknown(contract, arrays)}", tensor=spec.name
            )
        _check_shape(spec, array, dims)
        found = _check_values(spec, array)
        if found:
            flags |= found
    if len(arrays) != len(contract.inputs):
        raise GuardError(_unknown(contract, arrays).lstrip(", "))
    return flags


def check_age(contract: Contract, age_s: float | None) -> None:
    """Return when no input is so old that its policy is ``reject``.

    Raises:
        GuardError: one is; an age that was not told counts as too old.
    """
    for spec in contract.inputs:
        limit = spec.age_s_max
        kept = limit is None or (age_s is not None and age_s <= limit)
        if not kept and spec.on_age is OnViolation.REJECT:
            told = "of unknown age" if age_s is None else f"{age_s:.3g} s old"
            raise GuardError(
                f"input {spec.name!r}: {told}, the contract allows {limit:g} s",
                hint="say when it was measured: parameter taken_at, Unix seconds",
                tensor=spec.name,
            )


def _unknown(contract: Contract, arrays: Mapping[str, Array]) -> str:
    known = {spec.name for spec in contract.inputs}
    name = min(set(arrays) - known, default=None)
    if name is None:
        return ""
    return f", input {name[:80]!r} is not in the contract (inputs: {', '.join(sorted(known))})"


def mend(contract: Contract, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``arrays`` with values clamped where the contract says so; NaN becomes the lower bound."""
    mended: dict[str, Array] = {}
    for spec in contract.inputs:
        array = arrays[spec.name]
        if spec.range is not None and OnViolation.CLAMP in (spec.on_nan, spec.on_range):
            low, high = spec.range
            if spec.on_range is OnViolation.CLAMP:
                array = np.clip(array, low, high)  # keeps NaN
            if spec.on_nan is OnViolation.CLAMP and array.dtype.kind == "f":
                array = np.nan_to_num(array, nan=low, posinf=high, neginf=low)
        mended[spec.name] = array.astype(spec.dtype, copy=False)
    return mended


def _check_shape(spec: InputSpec, array: Array, dims: dict[str, int]) -> None:
    if array.dtype != np.dtype(spec.dtype):
        raise GuardError(
            f"input {spec.name!r}: dtype {array.dtype}, the contract wants {spec.dtype}",
            tensor=spec.name,
        )
    shape = array.shape
    fits = len(shape) == len(spec.shape) and 0 not in shape
    for found, want in zip(shape, spec.shape):  # noqa: B905 - unequal lengths are caught above
        expected = want if isinstance(want, int) else dims.setdefault(want, found)
        fits = fits and found == expected
    if not fits:
        wanted = ", ".join(str(dim) for dim in spec.shape)
        layout = f" in layout {spec.layout}" if spec.layout else ""
        permuted = _permuted(spec, shape)
        if permuted:
            layout += ": the axes seem to be in another order"
        raise GuardError(
            f"input {spec.name!r}: shape {list(shape)}, the contract wants [{wanted}]{layout}",
            hint="this looks like another layout: reorder the axes" if permuted else None,
            tensor=spec.name,
        )


def _permuted(spec: InputSpec, shape: tuple[int, ...]) -> bool:
    """Whether the dimensions that are fixed are all there, and not where they should be."""
    if not len(shape) == len(spec.shape) > 2:
        return False
    wanted = Counter(want for want in spec.shape if isinstance(want, int))
    pairs = zip(spec.shape, shape, strict=True)
    misplaced = any(isinstance(want, int) and want != found for want, found in pairs)
    return misplaced and wanted <= Counter(shape)


def _check_values(spec: InputSpec, array: Array) -> Flags:
    if spec.range is not None:
        low, high = spec.range
        # Two passes decide the usual case: NaN propagates, and compares false.
        if (
            np.minimum.reduce(array, axis=None) >= low
            and np.maximum.reduce(array, axis=None) <= high
        ):
            return Flags.NONE
    flags = Flags.NONE
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    if not finite and (spec.range is None or bool(np.isnan(array).any())):
        flags |= Flags.INPUT_NAN | _apply(spec, spec.on_nan, "NaN or infinity")
    if spec.range is not None:
        low, high = spec.range
        # fmin and fmax skip NaN, which has its own policy above.
        if bool(np.fmin.reduce(array, axis=None) < low) or bool(
            np.fmax.reduce(array, axis=None) > high
        ):
            flags |= Flags.INPUT_RANGE | _apply(spec, spec.on_range, f"outside {low:g}..{high:g}")
    return flags


def _apply(spec: InputSpec, action: OnViolation, what: str) -> Flags:
    if action is OnViolation.REJECT:
        raise GuardError(f"input {spec.name!r}: value {what}", hint="the contract rejects it")
    return Flags.CLAMP if action is OnViolation.CLAMP else Flags.NONE
