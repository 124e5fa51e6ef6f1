"""The record on disk, the request beside it, and the runtimes they name."""

from __future__ import annotations

import os
import struct
import zlib

from edgekit_runtime.supervisor import lean
from edgekit_runtime.supervisor.rules import fresh

TYPE_CHECKING = False  # importing typing costs the supervisor a tenth of its memory
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DOCUMENT_BYTES_MAX = 1024 * 1024
_HEADER = struct.Struct("<4sQI")  # the same as in twocopy.py
_CRC = struct.Struct("<I")
_START = _HEADER.size + _CRC.size
_MAGIC = b"EKD1"


class Book:
    """Two copies; the older is overwritten, the highest valid generation wins."""

    def __init__(self, state: str) -> None:
        self.state = state
        self._paths = (os.path.join(state, "runtime.a"), os.path.join(state, "runtime.b"))
        self._request = os.path.join(state, "runtime.request")
        self._generations = [-1, -1]

    def load(self) -> dict[str, Any] | None:
        """The newest valid record; None when there is none."""
        best: dict[str, Any] | None = None
        for index, path in enumerate(self._paths):
            generation, record = _parse(_read(path))
            self._generations[index] = generation
            if record is not None and generation == max(self._generations):
                best = record
        return best

    def save(self, record: Mapping[str, Any]) -> None:
        """Durable on return."""
        import json  # noqa: PLC0415 - 7 ms, and most starts change nothing

        generation = max(self._generations) + 1
        payload = json.dumps(record, sort_keys=True).encode()
        header = _HEADER.pack(_MAGIC, generation, len(payload))
        data = header + _CRC.pack(zlib.crc32(payload, zlib.crc32(header))) + payload
        older = self._generations.index(min(self._generations))
        self._generations[older] = -1
        handle = os.open(self._paths[older], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.ftruncate(handle, len(data))
            os.fsync(handle)
        finally:
            os.close(handle)
        self._sync()
        self._generations[older] = generation

    def request(self) -> dict[str, Any] | None:
        """What the agent asked for; None when nothing usable lies there."""
        try:
            found = lean.parsed(_read(self._request) or b"null")
            usable = isinstance(found["id"], str) and self.has(found["digest"])
            float(found.get("report_s", 0)), float(found.get("confirm_s", 0)), int(found["tries"])
        except (ValueError, TypeError, KeyError):
            return None
        return found if usable else None

    def forget_request(self) -> None:
        """It is in the record now."""
        try:
            os.unlink(self._request)
        except FileNotFoundError:
            return
        self._sync()

    def folder(self, digest: str) -> str:
        """Where a runtime lies."""
        return os.path.join(self.state, "runtimes", digest.removeprefix("sha256:"))

    def has(self, digest: str) -> bool:
        """Whether a runtime lies here; it appeared by one rename, so it is complete."""
        name = digest.removeprefix("sha256:")
        known = digest != name and len(name) == 64 and not set(name) - set("0123456789abcdef")
        return known and os.path.isfile(os.path.join(self.folder(digest), "agent.py"))

    def current(self) -> str:
        """The runtime that ``runtimes/current`` points to: what an installer left; or empty."""
        try:
            name = os.readlink(os.path.join(self.state, "runtimes", "current"))
        except OSError:
            return ""
        digest = "sha256:" + name.rpartition("/")[2]
        return digest if self.has(digest) else ""

    def point(self, digest: str) -> None:
        """Let ``current`` be this runtime, for the commands that people type."""
        link = os.path.join(self.state, "runtimes", "current")
        if self.current() == digest:
            return
        partial = os.path.join(self.state, "runtimes", ".current.new")
        try:
            if os.path.lexists(partial):
                os.unlink(partial)
            os.symlink(digest.removeprefix("sha256:"), partial)
            os.rename(partial, link)
        except OSError:
            return  # it decides nothing while there is a record

    def held(self) -> list[str]:
        """Runtimes here; what ``current`` points to first, then the newest."""
        try:
            names = os.listdir(os.path.join(self.state, "runtimes"))
        except FileNotFoundError:
            return []
        found = [digest for digest in map("sha256:".__add__, names) if self.has(digest)]
        current = self.current()
        return sorted(
            found, key=lambda digest: (digest != current, -os.stat(self.folder(digest)).st_mtime)
        )

    def _sync(self) -> None:
        handle = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(DOCUMENT_BYTES_MAX)
    except FileNotFoundError:
        return b""


def _parse(raw: bytes) -> tuple[int, dict[str, Any] | None]:
    if len(raw) < _START:
        return -1, None
    magic, generation, length = _HEADER.unpack_from(raw)
    payload = raw[_START : _START + length]
    crc = zlib.crc32(payload, zlib.crc32(raw[: _HEADER.size]))
    if magic != _MAGIC or len(payload) != length or (crc,) != _CRC.unpack_from(raw, _HEADER.size):
        return -1, None
    try:
        record = {**fresh(""), **lean.parsed(payload)}
    except (ValueError, TypeError):
        return -1, None
    return generation, record
