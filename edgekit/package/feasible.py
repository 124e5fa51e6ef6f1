"""Which wheels run on a base: libc, Python and architecture against wheel tags. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from edgekit.contracts.errors import BadInputError
from edgekit.package.rootfs import BaseFacts

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# PEP 600 names the same platforms by their glibc; the older names are aliases of these.
_ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
GLIBC_MINOR_MIN = {"amd64": 5, "arm64": 17}  # PEP 599: aarch64 begins with manylinux2014
# Bases people know, by the glibc they bring, oldest first.
KNOWN_BASES = (
    (31, "debian:bullseye or ubuntu:20.04"),
    (35, "ubuntu:22.04"),
    (36, "debian:bookworm"),
    (39, "ubuntu:24.04"),
    (41, "debian:trixie"),
)


def check_base(facts: BaseFacts, wanted_arch: str, target: str) -> None:
    """Return when wheels for ``target`` can run on the base at all.

    Raises:
        BadInputError: another architecture, no Python, or no glibc; says what would do.
    """
    if facts.arch != wanted_arch:
        raise BadInputError(
            f"target {target} is {wanted_arch}, the base is {facts.arch or 'of no known kind'}",
            hint=f"make the root with `mmdebstrap --architectures={wanted_arch} …`",
        )
    if facts.python is None:
        raise BadInputError(
            f"target {target}: the base has no Python 3 in usr/bin",
            hint="add python3-minimal and libpython3.11-stdlib to the root",
        )
    if facts.glibc is None:
        raise BadInputError(
            f"target {target}: the base has no glibc" + (" but musl" if facts.musl else ""),
            hint="engines ship no musl wheels for this: use a Debian or Ubuntu base",
        )


def platforms(arch: str, glibc: tuple[int, int]) -> list[str]:
    """Platform tags a base accepts, best first (PEP 600)."""
    machine, found = _MACHINES[arch], []
    for minor in range(glibc[1], GLIBC_MINOR_MIN[arch] - 1, -1):
        found.append(f"manylinux_2_{minor}_{machine}")
        if minor in _ALIASES:
            found.append(f"{_ALIASES[minor]}_{machine}")
    return [*found, f"linux_{machine}"]


def supported(facts: BaseFacts) -> list[Tag]:
    """Wheel tags a checked base accepts, best first."""
    assert facts.arch is not None
    assert facts.python is not None
    assert facts.glibc is not None
    names = platforms(facts.arch, facts.glibc)
    interpreter = f"cp{facts.python[0]}{facts.python[1]}"
    return [
        *cpython_tags(facts.python, platforms=names),
        *compatible_tags(facts.python, interpreter, names),
    ]


def best(files: Iterable[str], tags: Sequence[Tag]) -> str | None:
    """The wheel among ``files`` that fits best; None when none fits."""
    rank = {tag: index for index, tag in enumerate(tags)}
    scored = []
    for name in files:
        try:
            wheel_tags = parse_wheel_filename(name)[3]
        except InvalidWheelFilename:
            continue
        ranks = [rank[tag] for tag in wheel_tags if tag in rank]
        if ranks:
            scored.append((min(ranks), name))
    return min(scored)[1] if scored else None


def infeasible(
    name: str, facts: BaseFacts, engine: str, glibc_minor: int | None, pythons: Sequence[int]
) -> BadInputError:
    """The error for a package without a wheel for the base, with what would mend it.

    Args:
        name: package and version.
        facts: of the base.
        engine: of the bundle.
        glibc_minor: the lowest newer glibc 2.x that has a wheel, when there is one.
        pythons: other minor versions of Python 3 that have a wheel on this base.
    """
    assert facts.glibc is not None
    assert facts.python is not None
    here = f"glibc 2.{facts.glibc[1]}, Python 3.{facts.python[1]}, {facts.arch}"
    if glibc_minor is not None:
        base = next((text for minor, text in KNOWN_BASES if minor >= glibc_minor), "a newer base")
        return BadInputError(
            f"{name} needs glibc 2.{glibc_minor} or newer; the base has {here}",
            hint=f"use {base} as base, or an older version of {engine}",
        )
    if pythons:
        listed = " or ".join(f"3.{minor}" for minor in pythons)
        return BadInputError(
            f"{name} has wheels for Python {listed}; the base has {here}",
            hint="use a base with that Python, or pin another version of the package",
        )
    return BadInputError(
        f"{name}: no wheel for {here} was found",
        hint="is the index reachable? otherwise pin a version that has one, or use another engine",
    )
