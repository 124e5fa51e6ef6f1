"""File sink: JSON lines in a file that is rotated by size and fsynced as its table says."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from edgekit_runtime.pipelines.spec import FileSink, Fsync
from edgekit_runtime.ports import Disk
from edgekit_runtime.sinks.outlet import Line

SYNC_S = 1.0


class FileWriter:
    """`edgekit_runtime.sinks.outlet.Sink` on one file."""

    def __init__(self, disk: Disk, sink: FileSink) -> None:
        """Begin a line of its own after whatever is there.

        Raises:
            EdgekitError: the folder cannot be made or read.
        """
        self._disk, self._sink = disk, sink
        self._path = Path(sink.path)
        disk.make_dir(self._path.parent)
        self._size = disk.size(self._path) or 0
        # A power cut, or a full disk, may have left half a line.
        self._torn = bool(self._size) and disk.read_at(self._path, self._size - 1, 1) != b"\n"
        self._dirty_since: float | None = None

    def deliver(self, line: Line) -> None:
        """See `Sink.deliver`."""
        data = (b"\n" if self._torn else b"") + line.body + b"\n"
        if self._size and self._size + len(data) > self._sink.bytes_max:
            self._rotate()
            data = line.body + b"\n"
        self._torn = True  # until it is whole
        self._disk.append(self._path, data, sync=self._sink.fsync is Fsync.ALWAYS)
        self._torn = False
        self._size += len(data)
        if self._sink.fsync is Fsync.SECOND and self._dirty_since is None:
            self._dirty_since = monotonic()
        self._sync_when_due()

    def idle(self) -> None:
        """See `Sink.idle`."""
        self._sync_when_due()

    def close(self) -> None:
        """See `Sink.close`."""
        if self._dirty_since is not None:
            self._sync()

    def _sync_when_due(self) -> None:
        if self._dirty_since is not None and monotonic() - self._dirty_since >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        self._disk.sync(self._path)
        self._disk.sync_dir(self._path.parent)  # it may be new
        self._dirty_since = None

    def _rotate(self) -> None:
        self.close()
        for number in range(self._sink.files_max - 1, 0, -1):
            older = self._numbered(number - 1)
            if self._disk.size(older) is not None:
                self._disk.rename(older, self._numbered(number))
        if self._sink.files_max == 1:
            self._disk.unlink(self._path)
        self._size, self._torn = 0, False

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
