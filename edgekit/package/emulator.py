"""Root file systems for emulators: a base and a device's packages, unpacked in a folder.

Made of the same bases and wheels as container images, as an ordinary user. Two passes: first what
the layers leave standing, then those files alone; symlinks come last, so nothing is written through
one. Absolute symlinks become relative: under an emulator this machine resolves them, from its own
root.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.build.emulate import ROOT_FILE, Root
from edgekit.build.target import Arch, TargetProfile
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, UsageError, translate_os_errors
from edgekit.package import feasible, oci_base, rootfs, tar, wheels
from edgekit.package.base import Base, Layer
from edgekit.package.tar import Entry

ARCHES = {Arch.X86_64: "amd64", Arch.AARCH64: "arm64"}  # as images call them


def make(base: Base, target: TargetProfile, wheel_folder: Path, out: Path) -> None:
    """Unpack ``base`` and the packages that a device needs on it, replacing the root in ``out``.

    Args:
        base: a checked base.
        target: what is to be emulated; its architecture alone matters.
        wheel_folder: wheels to use and keep, by platform.
        out: the root's folder.

    Raises:
        BadInputError: the base is of another kind, or a package has no wheel for it.
        UsageError: ``out`` holds something that is no such root.
        UnavailableError: the package index is not reachable.
        ResourceError: no space. Whatever is raised, a root that was there stays.
    """
    feasible.check_base(base.facts, ARCHES[target.arch], target.name)
    if out.exists() and not (out / ROOT_FILE).is_file():
        raise UsageError(
            f"{out} is there and is no root of an emulator", hint="name a folder of its own"
        )
    pins = wheels.pins("edgekit-ml", "runtime", wheels.environment(base.facts))
    files = wheels.fetch(pins, base.facts, wheels.place(wheel_folder, base.facts), "onnxruntime")
    python, path = base.facts.python, base.facts.python_path
    assert python is not None  # checked above
    assert path is not None
    root = Root(
        arch=target.arch.value,
        # Not the base's own digest: tars that differ in their times alone give the same root.
        base=digest.of_bytes("\n".join(layer.facts.diff_id for layer in base.layers).encode()),
        python=path.lstrip("/"),
        python_version=f"{python[0]}.{python[1]}",
        site=wheels.SITE,
    )
    with translate_os_errors("write", out), _replacing(out) as folder:
        lay_out(base.layers, folder)
        for entry in wheels.unpack(files):
            _write(entry, folder / entry.path)
        (folder / ROOT_FILE).write_bytes(codec.encode_pretty(root))


def lay_out(layers: Sequence[Layer], folder: Path) -> None:
    """Write what ``layers``, the lowest first, leave standing below the empty ``folder``.

    Raises:
        BadInputError: a layer is damaged, or something lies below what is no folder.
        OSError: it cannot be written.
    """
    kept = _merged(layers)
    entries = tar.with_folders(entry for entry, _ in kept.values())
    for entry in entries:
        if entry.kind == tarfile.DIRTYPE:
            (folder / entry.path).mkdir(exist_ok=True)
    for number, layer in enumerate(layers):
        with _opened(layer) as archive:
            for info in archive:
                checked = rootfs.check_member(info, layer.purpose)
                found = kept.get(checked[0]) if checked else None
                if found is not None and found[1] == number:
                    _extract(archive, info, found[0], folder)
    for entry in entries:
        if entry.kind == tarfile.SYMTYPE:
            (folder / entry.path).symlink_to(_inside(entry))


def _merged(layers: Sequence[Layer]) -> dict[str, tuple[Entry, int]]:
    """By name, what the layers leave standing, and the number of the layer it comes from."""
    merged: dict[str, Entry] = {}
    source: dict[str, int] = {}
    for number, layer in enumerate(layers):
        with _opened(layer) as archive:
            for info in archive:
                if name := oci_base.lay(archive, info, merged, layer.purpose):
                    source[name] = number
    rootfs.check_links(merged, "base")
    return {name: (entry, source[name]) for name, entry in merged.items()}


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, kept: Entry, folder: Path) -> None:
    """Write a file; of a hard link a copy, as what it links to may be another layer's by now."""
    if info.type != kept.kind or not (info.isreg() or info.islnk()):
        return
    stream = archive.extractfile(info)
    assert stream is not None
    path = folder / kept.path
    with path.open("wb") as out:
        shutil.copyfileobj(stream, out)
    path.chmod(0o755 if info.mode & 0o100 else 0o644)


def _inside(entry: Entry) -> str:
    """The target of a symlink as seen from where it lies, without leaving the root."""
    if not entry.link.startswith("/"):
        return entry.link
    return os.path.relpath(entry.link, Path("/", entry.path).parent)


def _write(entry: Entry, path: Path) -> None:
    assert entry.content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.content() as stream, path.open("wb") as out:
        shutil.copyfileobj(stream, out)
    path.chmod(entry.mode)


@contextmanager
def _opened(layer: Layer) -> Iterator[tarfile.TarFile]:
    mode = "r:gz" if layer.media_type in oci_base.GZIP_TYPES else "r:"
    try:
        with tarfile.open(layer.path, mode) as archive:  # type: ignore[call-overload]  # a str
            yield archive
    except (tarfile.TarError, EOFError, KeyError, zlib.error) as exc:
        raise BadInputError(
            f"{layer.purpose}: not a whole tar: {exc}", hint="delete it from the cache"
        ) from exc


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place at the end; on errors nothing stays."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made, old = Path(work) / "made", Path(work) / "old"
        made.mkdir()
        yield made
        if out.exists():
            out.rename(old)
        made.rename(out)
