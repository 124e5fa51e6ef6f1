"""Lays out a runtime on a device. Python's standard library only, 3.10 and newer.

It runs where nothing is installed yet: the manager serves this very file to the install script, an
export carries it on a stick, and the supervisor will use it for updates. Every blob is compared
with its SHA-256 before anything of it is used. A runtime appears under ``runtimes/<hex>`` by one
rename, complete and durable, or not at all.

::

    runtimes/<hex>/site/            the wheels, unpacked, with byte code for this Python
    runtimes/<hex>/agent.py         starts the agent from ``site``
    runtimes/<hex>/runtime.json     what it is
    runtimes/<hex>/contents.sha256  every file, as ``sha256sum -c`` reads it

Signatures are not checked yet: who controls the manager, or a network without TLS, controls what is
installed. The answer of the manager is an envelope with room for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1024 * 1024
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
UNPACKED_BYTES_MAX = 2 * 1024**3  # of one runtime; with onnxruntime it is 0.2 GB
ENTRIES_MAX = 100_000
CONFIG_MEDIA_TYPE = "application/vnd.edgekit.runtime.config.v1+json"
# What inference never reads. Licences and metadata stay.
_DROPPED = ("/tests/", "/include/", "/__pycache__/")
_AGENT = '''\
"""Starts the agent of this runtime: nothing of another installation is looked at."""
import os, sys

sys.dont_write_bytecode = True  # what lies here is what was installed
here = os.path.dirname(os.path.realpath(__file__))
site = os.path.join(here, "site")
os.environ["PYTHONPATH"] = site  # of the workers it starts
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.environ["EDGEKIT_RUNTIME"] = "sha256:" + os.path.basename(here)
sys.path[0] = site
sys.argv[0] = "edgekit-agent"
from edgekit_runtime.__main__ import main

main()
'''


class BootstrapError(Exception):
    """One line that names the input and the mend."""


Read = Callable[[str], Iterator[bytes]]  # digest -> chunks of a blob


def hex_of(digest: str) -> str:
    """The hex characters of ``sha256:<hex>``; refuses anything else, as it becomes a file name."""
    text = digest.removeprefix("sha256:")
    if len(text) != 64 or set(text) - set("0123456789abcdef") or text == digest:
        raise BootstrapError(f"{digest[:80]!r} is no sha256 digest")
    return text


def fetch(read: Read, digest: str, size: int | None, target: Path) -> None:
    """Write a blob to ``target``, durable.

    Raises:
        BootstrapError: other bytes than the digest says, or more than ``size``.
    """
    limit = DOCUMENT_BYTES_MAX if size is None else size
    found = hashlib.sha256()
    count = 0
    with target.open("wb") as file:
        for chunk in read(digest):
            count += len(chunk)
            if count > limit:
                raise BootstrapError(f"{digest}: more than the {limit} bytes announced")
            found.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != hex_of(digest) or (size is not None and count != size):
        raise BootstrapError(f"{digest}: altered or cut off on its way; try again")


def document(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises `BootstrapError`."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as exc:
        raise BootstrapError(f"{what}: no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise BootstrapError(f"{what}: no JSON object")
    return found


def install(
    read_manifest: Read, read: Read, digest: str, runtimes: Path, said: Callable[[str], None]
) -> Path:
    """Fetch, verify and unpack a runtime; returns its folder. Does nothing when it is there.

    Raises:
        BootstrapError: what came is damaged, or no runtime.
        OSError: it cannot be written.
    """
    final = runtimes / hex_of(digest)
    if final.is_dir():
        verify(final)
        return final
    runtimes.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=runtimes, prefix=".new-"))
    try:
        fetch(read_manifest, digest, None, work / "manifest")
        manifest = document(work / "manifest", "manifest")
        config = manifest.get("config", {})
        if config.get("mediaType") != CONFIG_MEDIA_TYPE:
            raise BootstrapError(f"{digest} is {config.get('mediaType')}, not a runtime")
        fetch(read, config["digest"], int(config["size"]), work / "runtime.json")
        layers = {layer["digest"]: int(layer["size"]) for layer in manifest["layers"]}
        described = document(work / "runtime.json", "runtime")
        _unpack(read, described, layers, work, said)
        _compile(work / "site", str(described["python"]))
        (work / "manifest").unlink()
        (work / "agent.py").write_text(_AGENT)
        _seal(work)
        work.chmod(0o755)
        work.rename(final)
        sync_folder(runtimes)
    except (AttributeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as exc:
        raise BootstrapError(f"runtime {digest}: malformed: {exc!r}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _unpack(
    read: Read,
    described: dict[str, Any],
    layers: dict[str, int],
    work: Path,
    said: Callable[[str], None],
) -> None:
    budget = [UNPACKED_BYTES_MAX, ENTRIES_MAX]
    for file in described["files"]:
        name, digest = str(file["path"]), str(file["sha256"])
        if digest not in layers:
            raise BootstrapError(f"{name[:80]!r} is no layer of its manifest")
        blob = work / "blob"
        said(f"{name} ({layers[digest]} bytes)")
        fetch(read, digest, layers[digest], blob)
        if name.endswith(".whl"):
            with zipfile.ZipFile(blob) as archive:
                for info in archive.infolist():
                    _extract(archive, info, work / "site", budget)
        blob.unlink()


def _extract(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, site: Path, budget: list[int]
) -> None:
    """One member of a wheel; what is for ``purelib`` or ``platlib`` lands in ``site``."""
    name = info.filename
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise BootstrapError(f"wheel: {name[:120]!r} leaves its folder")
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
            return  # scripts and headers
        name = "/".join(parts[2:])
    if name.endswith("/") or any(part in f"/{name}" for part in _DROPPED):
        return
    budget[0] -= info.file_size
    budget[1] -= 1
    if min(budget) < 0:
        raise BootstrapError("the wheels unpack to more than a device takes")
    target = site / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("wb") as out:  # zipfile checks size and CRC
        shutil.copyfileobj(source, out, CHUNK_BYTES)
    target.chmod(0o755 if ".so" in target.name else 0o644)


def _compile(site: Path, python: str) -> None:
    """Byte code for every module, when this is the Python it is for.

    The agent's user must not write here, and its starts would take twice as long. The source never
    changes, so nothing has to be compared at a start.
    """
    if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return
    # A process of its own: an agent that updates itself goes on serving. What cannot be compiled
    # (templates of another Python) is left as it is and makes the exit code 1.
    command = [sys.executable, "-I", "-m", "compileall", "-qq", "-s", str(site)]
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", str(site)], check=False)


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if path.name != "contents.sha256")


def _digest_of(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _seal(work: Path) -> None:
    """List every file with its digest, and make all of it durable."""
    lines = [f"{_digest_of(path)}  {path.relative_to(work)}\n" for path in _files(work)]
    (work / "contents.sha256").write_text("".join(lines))
    os.sync()  # a thousand small files: one call instead of an fsync each


def sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(folder: Path) -> int:
    """Read every file of an unpacked runtime again; returns how many there are.

    Raises:
        BootstrapError: one is missing, altered or of no known origin.
    """
    listing = folder / "contents.sha256"
    if not listing.is_file():
        raise BootstrapError(f"{folder}: no runtime; remove the folder and install it again")
    told = {}
    for line in listing.read_text().splitlines():
        digest, _, name = line.partition("  ")
        told[name] = digest
    here = {str(path.relative_to(folder)) for path in _files(folder)}
    for name in sorted(told.keys() | here):
        if name not in here or name not in told or _digest_of(folder / name) != told[name]:
            raise BootstrapError(
                f"{folder / name}: missing, altered or added; remove {folder} and install it again"
            )
    return len(told)
