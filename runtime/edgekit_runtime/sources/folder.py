"""Folder source: files that appear, each read once it is whole.

A file is whole when its size and time have not changed for ``settle_s``; a writer that renames a
finished file into the folder may set that to 0. Names that begin with a dot or end in ``.tmp`` or
``.partial`` are still being written. Answered files go to ``done`` (or are deleted), refused ones
to ``failed`` beside a ``.reason``. A file whose process was killed still lies there, is read
again, and has the same request id: it is counted once.
"""

from __future__ import annotations

import fnmatch
import hashlib
import heapq
import logging
import os
import queue
import stat
import threading
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from edgekit.contracts.errors import EdgekitError
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines.intake import Fate, Item, Outcome
from edgekit_runtime.pipelines.spec import After, FolderSource
from edgekit_runtime.sources.admission import Admission

DONE, FAILED = "done", "failed"
UNFINISHED = (".tmp", ".partial")
BATCH_MAX = 256  # files looked at in one round, by name: a folder may hold a million
STUCK_MAX = 10_000
log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What tells a file from another of the same name."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Seen:
        """From what the system says."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class FolderReader:
    """`edgekit_runtime.sources.admission.Source` over one folder."""

    def __init__(self, source: FolderSource, door: Admission) -> None:
        self._source, self._door = source, door
        self._root = Path(source.path)
        self._disk = PosixDisk()
        self._watched: dict[str, tuple[Seen, float]] = {}  # name: as it was, since when
        self._taken: dict[str, Seen] = {}  # not settled yet
        self._stuck: dict[str, Seen] = {}  # settled, and could not be moved
        self._settled: queue.SimpleQueue[tuple[str, Fate]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._problem = ""

    def run(self) -> None:
        """See `Source.run`."""
        while not self._door.stopping.is_set():
            self._put_away()
            if self._usable():
                for name in self._ready():
                    if self._door.stopping.is_set() or not self._door.has_room():
                        break
                    self._offer(name)
            self._wake.wait(self._source.poll_s)
            self._wake.clear()

    def close(self) -> None:
        """See `Source.close`."""
        self._put_away()

    def _usable(self) -> bool:
        """Whether files can be read and put away; said once when they cannot."""
        try:
            for name in (DONE, FAILED):
                (self._root / name).mkdir(exist_ok=True)
            usable = os.access(self._root, os.R_OK | os.W_OK | os.X_OK)
            problem = "" if usable else f"{self._root}: may not be read and written"
        except OSError as exc:
            problem = f"{self._root}: {exc.strerror}"
        if problem != self._problem:
            self._problem = problem
            log.log(logging.WARNING if problem else logging.INFO, problem or "folder is there")
        self._door.be(away=bool(problem))
        return not problem

    def _ready(self) -> list[str]:
        """Names of files that are whole, in order."""
        now, watched = monotonic(), self._watched
        self._watched = {}
        ready = []
        for name in self._names():
            try:
                seen = Seen.of((self._root / name).lstat())
            except OSError:
                continue  # gone again
            if self._stuck.get(name) == seen:
                continue
            before, since = watched.get(name, (None, now))
            self._watched[name] = (seen, since if before == seen else now)
            whole = before == seen and now - since >= self._source.settle_s
            if whole or not self._source.settle_s:
                ready.append(name)
        return ready

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                names = (entry.name for entry in entries if self._is_candidate(entry))
                return heapq.nsmallest(BATCH_MAX, names)
        except OSError as exc:
            log.warning("%s: %s", self._root, exc.strerror)
            return []

    def _is_candidate(self, entry: os.DirEntry[str]) -> bool:
        name = entry.name
        if name.startswith(".") or name.endswith(UNFINISHED) or name in self._taken:
            return False
        return fnmatch.fnmatchcase(name, self._source.pattern) and not entry.is_dir(
            follow_symlinks=False
        )

    def _offer(self, name: str) -> None:
        seen, _ = self._watched.pop(name)
        self._taken[name] = seen
        item = Item(
            id=_id(self._door.spec.name, name, seen),
            payload=b"",
            size=seen.size,
            at=seen.mtime_ns / 1e9,
            about={"file": name},
            settle=lambda fate: self._settle(name, fate),
        )
        try:
            payload = self._read(name, seen)
        except _UnusableError as exc:
            self._door.refuse(item, exc.reason, str(exc))
            return
        self._door.admit(_with(item, payload))

    def _read(self, name: str, seen: Seen) -> bytes:
        path, bytes_max = self._root / name, self._source.bytes_max
        try:
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
                raise _UnusableError("unreadable", f"it is {what}")
            if seen.size > bytes_max:
                text = f"{seen.size} bytes, allowed are {bytes_max}"
                raise _UnusableError("too_large", text)
            # It may have become a link or a pipe just now: neither is followed, or waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(path, flags), "rb") as stream:  # noqa: PTH123 - a descriptor
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise _UnusableError("unreadable", "it is not a regular file")
                payload = stream.read(bytes_max + 1)
        except OSError as exc:
            raise _UnusableError("unreadable", exc.strerror or str(exc)) from exc
        if len(payload) > bytes_max:
            raise _UnusableError("too_large", f"it grew beyond {bytes_max} bytes")
        return payload

    # --- any thread ----------------------------------------------------------------------------

    def _settle(self, name: str, fate: Fate) -> None:
        self._settled.put((name, fate))
        self._wake.set()

    # --- putting away --------------------------------------------------------------------------

    def _put_away(self) -> None:
        while True:
            try:
                name, fate = self._settled.get_nowait()
            except queue.Empty:
                return
            seen = self._taken.pop(name)
            if fate.outcome is Outcome.RETURNED:
                continue
            try:
                self._move(name, seen, fate)
            except (OSError, EdgekitError) as exc:
                log.warning("%s cannot be moved, it is left where it is: %s", name, exc)
                if len(self._stuck) < STUCK_MAX:
                    self._stuck[name] = seen

    def _move(self, name: str, seen: Seen, fate: Fate) -> None:
        path = self._root / name
        if Seen.of(path.lstat()) != seen:
            return  # another file under this name: its turn comes
        good = fate.outcome is Outcome.INFERRED or fate.reason == "sampled"
        if good and self._source.after is After.DELETE:
            path.unlink()
            return
        target = self._free(self._root / (DONE if good else FAILED) / name, seen)
        if not good:
            log.warning("%s: %s", name, fate.reason)
            told = target.with_name(target.name + ".reason")
            self._disk.replace(told, f"{fate.reason}\n".encode())
        path.rename(target)

    def _free(self, target: Path, seen: Seen) -> Path:
        """``target``, or a name that nothing else has."""
        number = 0
        found = target
        while os.path.lexists(found):
            tail = _id("", target.name, seen)[-8:] + (f"-{number}" if number else "")
            found = target.with_name(f"{target.stem}~{tail}{target.suffix}")
            number += 1
        return found


class _UnusableError(Exception):
    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def _with(item: Item, payload: bytes) -> Item:
    return Item(item.id, payload, len(payload), item.at, item.about, item.settle)


def _id(pipeline: str, name: str, seen: Seen) -> str:
    text = f"{name}\0{seen.inode}\0{seen.size}\0{seen.mtime_ns}"
    hashed = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return f"{pipeline}-{hashed}"
