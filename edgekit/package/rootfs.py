"""Base root file systems: what is refused, what is left out, and what is learnt from one.

Refused: names and hard links that leave the root, relative symlinks that climb above it, devices
and pipes outside ``dev/`` (inside it they are left out: the engine mounts its own), and more than
a bound of bytes or entries. Absolute symlinks stay: a container resolves them inside its root.
"""

from __future__ import annotations

import posixpath
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from edgekit.contracts.errors import BadInputError, ResourceError, translate_os_errors
from edgekit.package.tar import Entry

UNPACKED_BYTES_MAX = 4 * 1024**3  # a full L4T base is about 3 GB
ENTRIES_MAX = 300_000
SNIFF_BYTES_MAX = 8 * 1024**2  # glibc is 2 MB
# Not needed to run anything; licences (…/copyright) stay.
_PRUNED = re.compile(
    r"(dev|proc|sys|run|tmp)/.+|var/(cache|log|tmp|lib/apt/lists)/.+|boot/.+"
    r"|usr/share/(man|info|locale|lintian|bash-completion|zoneinfo)/.+"
    r"|usr/share/doc/.+(?<!/copyright)|.*/__pycache__(/.*)?"
)
_MACHINES = {62: "amd64", 183: "arm64"}  # e_machine of ELF: EM_X86_64, EM_AARCH64
_GLIBC = re.compile(rb"stable release version (\d+)\.(\d+)")
_PYTHON = re.compile(r"usr/(?:local/)?bin/python3\.(\d+)")
_LIBC = re.compile(r"(?:usr/)?lib(?:64)?/(?:[a-z0-9_-]+/)?(libc\.so\.6|ld-musl-[a-z0-9_]+\.so\.1)")


class BaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a base offers to wheels. None: it has no such thing."""

    arch: str | None = None  # amd64 | arm64
    python: tuple[int, int] | None = None
    python_path: str | None = None
    glibc: tuple[int, int] | None = None
    musl: bool = False


@dataclass(frozen=True)
class Rootfs:
    """Checked, pruned entries and facts; valid while the tar is open."""

    entries: list[Entry]
    facts: BaseFacts


def _name(info: tarfile.TarInfo, what: str) -> str:
    """Normal form of a member's name; empty for the root itself."""
    raw = info.name
    normal = posixpath.normpath(raw)
    if raw.startswith("/") or normal.startswith("..") or ".." in raw.split("/") or "\0" in raw:
        raise BadInputError(f"{what}: {raw[:120]!r} leaves the root", hint="do not trust this tar")
    return "" if normal == "." else normal


def _link(info: tarfile.TarInfo, name: str, what: str) -> str:
    """The checked target of a link."""
    target = info.linkname
    if info.islnk():
        inside = posixpath.normpath(target)
        leaves = target.startswith("/") or inside.startswith("..")
    else:
        inside = target
        climbed = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        leaves = not target.startswith("/") and climbed.startswith("..")
    if leaves or not target or "\0" in target:
        raise BadInputError(
            f"{what}: link {name!r} -> {target[:120]!r} leaves the root",
            hint="do not trust this tar",
        )
    return inside


def check_member(info: tarfile.TarInfo, what: str) -> tuple[str, str] | None:
    """Name and link of a member in normal form; None for the root itself and devices in ``dev/``.

    Raises:
        BadInputError: it is refused.
    """
    name = _name(info, what)
    if not name:
        return None
    if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
        if name.startswith("dev/"):
            return None
        raise BadInputError(
            f"{what}: {name!r} is a device or pipe, which a base outside dev/ does not need",
            hint="make the root with mmdebstrap or `docker export`",
        )
    return name, _link(info, name, what) if info.issym() or info.islnk() else ""


def is_libc(name: str) -> bool:
    """Whether a file of this name is the C library, which tells architecture and version."""
    return _LIBC.fullmatch(name) is not None


def _entry(tar: tarfile.TarFile, info: tarfile.TarInfo, what: str) -> Entry | None:
    """The member as an entry; None when it is left out.

    Raises:
        BadInputError: it is refused.
    """
    checked = check_member(info, what)
    if checked is None or _PRUNED.fullmatch(checked[0]):
        return None
    name, link = checked
    kind = tarfile.REGTYPE if info.isreg() else info.type
    content = _opener(tar, info) if info.isreg() else None
    size = info.size if info.isreg() else 0
    return Entry(name, info.mode, kind, size, link, content)


def _opener(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        stream = tar.extractfile(info)
        assert stream is not None
        return stream

    return open_member


def sniff(entries: list[Entry]) -> BaseFacts:
    """Facts from the names of the files and the bytes of the C library."""
    facts = BaseFacts()
    for entry in entries:
        found = _PYTHON.fullmatch(entry.path)
        if found and entry.content and (facts.python or (3, 0)) < (3, int(found[1])):
            python = (3, int(found[1]))
            facts = msgspec.structs.replace(facts, python=python, python_path="/" + entry.path)
        if _LIBC.fullmatch(entry.path) and entry.content and entry.size <= SNIFF_BYTES_MAX:
            with entry.content() as stream:
                raw = stream.read()
            facts = msgspec.structs.replace(facts, arch=_arch(raw), musl="musl" in entry.path)
            if release := _GLIBC.search(raw):
                glibc = (int(release[1]), int(release[2]))
                facts = msgspec.structs.replace(facts, glibc=glibc)
    return facts


def _arch(raw: bytes) -> str | None:
    if raw[:4] != b"\x7fELF" or len(raw) < 20:
        return None
    return _MACHINES.get(struct.unpack_from("<H", raw, 18)[0])


@contextmanager
def opened(path: Path, *, bytes_max: int = UNPACKED_BYTES_MAX) -> Iterator[Rootfs]:
    """The root file system in the tar ``path``, checked as a whole before it is handed out.

    Raises:
        BadInputError: not a tar, cut short, or something in it is refused.
        ResourceError: a bomb: more bytes or entries than any base has.
    """
    found: dict[str, Entry] = {}
    total = 0
    try:
        with translate_os_errors("read", path), tarfile.open(path, "r:*") as tar:
            for count, info in enumerate(tar, start=1):
                total += info.size if info.isreg() else 0
                if total > bytes_max or count > ENTRIES_MAX:
                    raise ResourceError(
                        f"{path}: unpacks to over {bytes_max} bytes or {ENTRIES_MAX} files",
                        hint="is this a base root file system?",
                    )
                entry = _entry(tar, info, str(path))
                if entry is not None:
                    found[entry.path] = entry
            _check_end(tar, str(path))
            check_links(found, str(path))
            entries = list(found.values())
            yield Rootfs(entries, sniff(entries))
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as exc:
        raise BadInputError(f"{path}: not a whole tar: {exc}", hint="make it again") from exc


def _check_end(tar: tarfile.TarFile, what: str) -> None:
    """The archive ends in zeros: `tarfile` takes a cut header for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
        raise BadInputError(f"{what}: not a whole tar: it is cut off", hint="make it again")


def check_links(found: dict[str, Entry], what: str) -> None:
    """No hard link to what is not there; nothing below a name that is no folder.

    Raises:
        BadInputError: there is one.
    """
    for entry in found.values():
        if entry.kind == tarfile.LNKTYPE and entry.link not in found:
            raise BadInputError(f"{what}: {entry.path!r} is a link to {entry.link!r}, not in it")
        above = found.get(posixpath.dirname(entry.path))
        if above is not None and above.kind != tarfile.DIRTYPE:
            raise BadInputError(f"{what}: {entry.path!r} lies below {above.path!r}, not a folder")
