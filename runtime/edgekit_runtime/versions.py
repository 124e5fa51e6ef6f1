"""Whether a version satisfies a PEP 440 specifier."""

from __future__ import annotations

import operator
import re
from itertools import zip_longest

from edgekit.contracts.errors import BadInputError

_RELEASE = re.compile(r"\d+(\.\d+)*")
_CLAUSE = re.compile(r"\s*(>=|<=|>|<|==|!=)\s*(\d+(?:\.\d+)*)\s*")
_HOLDS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def satisfies(version: str, specifier: str) -> bool:
    """Whether ``version`` is allowed; pre-releases are.

    Plain release numbers are compared here, since a device that starts cannot spare the 6 ms that
    importing ``packaging`` takes; it decides on everything else.

    Raises:
        BadInputError: one of them is not in the form of PEP 440.
    """
    clauses = [_CLAUSE.fullmatch(clause) for clause in specifier.split(",")]
    if not _RELEASE.fullmatch(version) or not all(clauses):
        return _by_packaging(version, specifier)
    return all(
        _HOLDS[found[1]](*_padded(version, found[2])) for found in clauses if found is not None
    )


def _padded(first: str, second: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """1.2 is 1.2.0."""
    parts = (map(int, text.split(".")) for text in (first, second))
    left, right = zip(*zip_longest(*parts, fillvalue=0), strict=True)
    return left, right


def _by_packaging(version: str, specifier: str) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - see above
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - see above

    try:
        return Version(version) in SpecifierSet(specifier, prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as exc:
        raise BadInputError(str(exc)) from exc
