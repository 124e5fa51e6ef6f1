"""The agent's own log on the device: bounded, and gentle on the medium.

Two files below ``<state_dir>/log``, the older is dropped when the newer has grown to half the
bound. Lines are gathered and appended at most every `GATHER_S`, without fsync: a power cut may cost
the last seconds of the log, never a fsync per line. What must survive (roll-backs, restarts) is an
audit record in the spool, which is durable.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit_runtime.ports import Disk

FOLDER = "log"
GATHER_S = 5.0  # lower: a chatty broker costs a write a line; higher: more is lost by a kill
LINE_CHARS_MAX = 2000
_SUFFIX = ".jsonl"
_KEPT_FILES = 2


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log."""

    at: float
    level: str
    name: str
    text: str


class RingLog(logging.Handler):
    """A log handler. A disk that refuses costs log lines and nothing else."""

    def __init__(self, disk: Disk, state_dir: Path, bytes_max: int) -> None:
        """Begin a new file, so that a torn line of the last run stays its own."""
        super().__init__()
        self._disk = disk
        self._root = state_dir / FOLDER
        self._file_bytes_max = bytes_max // _KEPT_FILES
        self._gathered: list[bytes] = []
        self._timer: threading.Timer | None = None
        self._number = max((int(name.removesuffix(_SUFFIX)) for name in self._names()), default=0)
        self._started = False

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        line = Line(
            at=record.created,
            level=record.levelname,
            name=record.name,
            text=self.format(record)[:LINE_CHARS_MAX],
        )
        self._gathered.append(msgspec.json.encode(line) + b"\n")
        if self._timer is None:
            self._timer = threading.Timer(GATHER_S, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Append what was gathered."""
        self.acquire()
        try:
            gathered, self._gathered = self._gathered, []
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            if gathered:
                self._append(b"".join(gathered))
        except EdgekitError:
            return  # what is wrong with the disk is told by those who need it
        finally:
            self.release()

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        super().close()

    def _append(self, data: bytes) -> None:
        path = self._path()
        size = self._disk.size(path)
        if not self._started or (size or 0) + len(data) > self._file_bytes_max:
            if size is not None:
                self._number += 1
            self._started = True
            self._disk.make_dir(self._root)
            for name in self._names()[: 1 - _KEPT_FILES]:
                self._disk.unlink(self._root / name)
            path = self._path()
        self._disk.append(path, data[-self._file_bytes_max :], sync=False)

    def _path(self) -> Path:
        return self._root / f"{self._number:08d}{_SUFFIX}"

    def _names(self) -> list[str]:
        return _names(self._disk, self._root)


def read(disk: Disk, state_dir: Path, bytes_max: int) -> Iterator[Line]:
    """Lines that are there, oldest first; what a power cut tore is stepped over."""
    root = state_dir / FOLDER
    for name in _names(disk, root):
        for raw in (disk.read(root / name, bytes_max=bytes_max) or b"").splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                yield msgspec.json.decode(raw, type=Line)


def _names(disk: Disk, root: Path) -> list[str]:
    names = disk.names(root)
    return [n for n in names if n.endswith(_SUFFIX) and n.removesuffix(_SUFFIX).isdigit()]
