"""Wheels for a target, resolved on the host: which versions, where from, and what of them ships.

Versions are those installed here, so an image holds what was tested here, and the same environment
gives the same wheels. pip only fetches: nothing of a wheel is run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError, UnavailableError
from edgekit.package import feasible
from edgekit.package.rootfs import BaseFacts
from edgekit.package.tar import Entry

SITE = "opt/edgekit/site"
PIP_S_MAX = 540.0
UNPACKED_BYTES_MAX = 2 * 1024**3  # of all wheels together; onnxruntime is 0.1 GB
# What inference never reads. Licences and metadata stay.
_PRUNED = re.compile(
    r"(.*/)?(tests|include|__pycache__)/.*|.*\.(pyi|a|h|hpp|pxd|pyx|c|cpp)"
    r"|numpy/(f2py|distutils|_pyinstaller)/.*|.*\.dist-info/RECORD"
    r"|onnxruntime/(transformers|quantization|tools|datasets|backend)/.*"
)
_DATA = re.compile(r"[^/]+\.data/(purelib|platlib|\w+)/(.*)")


def environment(facts: BaseFacts) -> dict[str, str]:
    """Marker environment of the base (PEP 508)."""
    assert facts.python is not None
    version = f"{facts.python[0]}.{facts.python[1]}"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[facts.arch or "amd64"]
    changes = {
        "platform_machine": machine,
        "python_version": version,
        "python_full_version": f"{version}.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    return {key: str(value) for key, value in default_environment().items()} | changes


def pins(distribution: str, extra: str, target: Mapping[str, str]) -> dict[str, str]:
    """Name -> version of all that ``distribution[extra]`` needs on the target, itself left out.

    Raises:
        BadInputError: something it needs there is not installed here, so no version is known.
    """
    found: dict[str, str] = {}
    queue: list[tuple[str, tuple[str, ...]]] = [(distribution, (extra,))]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError as exc:
            raise BadInputError(
                f"{name} is needed on the target and not installed here: its version is unknown",
                hint=f"pip install {name}",
            ) from exc
        found[canonicalize_name(name)] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            if any(_applies(needed, target, each) for each in (*extras, "")):
                queue.append((needed.name, tuple(sorted(needed.extras))))
    del found[canonicalize_name(distribution)]
    return dict(sorted(found.items()))


def _applies(needed: Requirement, target: Mapping[str, str], extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({**target, "extra": extra})


def place(folder: Path, facts: BaseFacts) -> Path:
    """Where wheels for a checked base are kept below ``folder``."""
    assert facts.glibc is not None
    assert facts.python is not None
    libc = f"glibc{facts.glibc[0]}.{facts.glibc[1]}"
    return folder / f"{facts.arch}-{libc}-cp{facts.python[0]}{facts.python[1]}"


def fetch(wanted: Mapping[str, str], facts: BaseFacts, folder: Path, engine: str) -> list[Path]:
    """Wheels of ``wanted`` for the base, from ``folder`` when they lie there, else through pip.

    Raises:
        BadInputError: a package has no wheel that runs on the base; says what would mend it.
        UnavailableError: pip reached no index.
        ResourceError: no space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [item for item in wanted.items() if _held(folder, *item, facts) is None]
    if lacking:
        _download([f"{name}=={version}" for name, version in lacking], facts, folder, engine)
    found = {name: _held(folder, name, version, facts) for name, version in wanted.items()}
    for name, path in found.items():
        if path is None:
            raise feasible.infeasible(f"{name} {wanted[name]}", facts, engine, None, ())
    return sorted(path for path in found.values() if path is not None)


def _held(folder: Path, name: str, version: str, facts: BaseFacts) -> Path | None:
    prefix = name.replace("-", "[-_.]")
    names = [
        path.name
        for path in folder.glob("*.whl")
        if re.match(rf"{prefix}-", path.name, re.IGNORECASE)
        and str(parse_wheel_filename(path.name)[1]) == version
    ]
    chosen = feasible.best(names, feasible.supported(facts))
    return folder / chosen if chosen else None


def _pip(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PIP_S_MAX
        )
    except subprocess.TimeoutExpired as exc:
        raise UnavailableError(
            f"pip did not finish within {PIP_S_MAX:.0f} s", hint="is the index reachable?"
        ) from exc
    except OSError as exc:
        raise ResourceError(f"cannot start pip: {exc.strerror or exc}") from exc


def _for(facts: BaseFacts, glibc: tuple[int, int], python: tuple[int, int]) -> list[str]:
    """Pip's options for a platform; it matches each tag exactly, so all are named."""
    assert facts.arch is not None
    tags = feasible.platforms(facts.arch, glibc)
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    options += ["--python-version", f"{python[0]}.{python[1]}"]
    return options + [word for tag in tags for word in ("--platform", tag)]


def _download(wanted: Sequence[str], facts: BaseFacts, folder: Path, engine: str) -> None:
    assert facts.glibc is not None
    assert facts.python is not None
    options = _for(facts, facts.glibc, facts.python)
    done = _pip(["download", "--quiet", *options, "--dest", str(folder), *wanted])
    if done.returncode != 0:
        raise _failure(done.stderr, facts, engine)


def _failure(stderr: str, facts: BaseFacts, engine: str) -> EdgekitError:
    """What pip's failure means, and what would mend it."""
    if "No space left on device" in stderr:
        return ResourceError("pip: no space left on device", hint="free space and run it again")
    missing = re.search(r"No matching distribution found for (\S+?)==(\S+)", stderr)
    if missing is None:
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        return UnavailableError(f"pip: {last[:300]}", hint="is the package index reachable?")
    requirement = f"{missing[1]}=={missing[2]}"
    assert facts.glibc is not None
    assert facts.python is not None
    glibc = _lowest_glibc(requirement, facts, facts.glibc[1], facts.python)
    others = [m for m in (10, 11, 12, 13) if m != facts.python[1]] if glibc is None else []
    pythons = [m for m in others if _exists(requirement, facts, facts.glibc, (3, m))]
    return feasible.infeasible(f"{missing[1]} {missing[2]}", facts, engine, glibc, pythons)


def _lowest_glibc(
    requirement: str, facts: BaseFacts, lacking: int, python: tuple[int, int]
) -> int | None:
    """The lowest glibc 2.x with a wheel, None without one: a newer one accepts what older do."""
    enough = feasible.KNOWN_BASES[-1][0]
    if enough <= lacking or not _exists(requirement, facts, (2, enough), python):
        return None
    while enough - lacking > 1:
        middle = (enough + lacking) // 2
        if _exists(requirement, facts, (2, middle), python):
            enough = middle
        else:
            lacking = middle
    return enough


def _exists(
    requirement: str, facts: BaseFacts, glibc: tuple[int, int], python: tuple[int, int]
) -> bool:
    """Whether an index has a wheel for another base; nothing is installed."""
    options = _for(facts, glibc, python)
    words = ["install", "--dry-run", "--quiet", "--ignore-installed", "--target", "/nonexistent"]
    return _pip([*words, *options, requirement]).returncode == 0


def unpack(wheels: Sequence[Path]) -> Iterator[Entry]:
    """What of the wheels goes into the image.

    Raises:
        BadInputError: a wheel is damaged or would write outside its folder.
        ResourceError: a bomb.
    """
    total = 0
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    total += info.file_size
                    entry = _entry(wheel, info)
                    if entry is not None:
                        yield entry
        except zipfile.BadZipFile as exc:
            raise BadInputError(f"{wheel}: not a wheel: {exc}", hint="delete it") from exc
        if total > UNPACKED_BYTES_MAX:
            raise ResourceError(f"{wheel}: wheels unpack to over {UNPACKED_BYTES_MAX} bytes")


def _entry(wheel: Path, info: zipfile.ZipInfo) -> Entry | None:
    name = info.filename
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise BadInputError(f"{wheel}: {name!r} leaves its folder", hint="delete it")
    data = _DATA.fullmatch(name)
    if data is not None and data[1] in {"purelib", "platlib"}:
        name = data[2]
    elif data is not None:
        return None  # scripts and headers: the image has one entry point
    if name.endswith("/") or _PRUNED.fullmatch(name):
        return None
    mode = 0o755 if ".so" in Path(name).name else 0o644
    content = partial(_open, wheel, info.filename)
    return Entry(f"{SITE}/{name}", mode, size=info.file_size, content=content)


class _Member:
    """A member of a wheel that closes the archive with itself."""

    def __init__(self, archive: zipfile.ZipFile, member: IO[bytes]) -> None:
        self._archive, self._member = archive, member

    def __enter__(self) -> IO[bytes]:
        return self._member

    def __exit__(self, *_: object) -> None:
        self._member.close()
        self._archive.close()


def _open(wheel: Path, name: str) -> _Member:
    archive = zipfile.ZipFile(wheel)
    return _Member(archive, archive.open(name))
