"""What a power cut may leave of a folder, as strictly as POSIX allows it.

A file's bytes are safe once the file was fsynced, its name once its folder was. Everything else may
be there, or not, or in part: `CrashFolder.after_cut` gives each of these outcomes.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from agentkit.syscalls import Change

# kept: the process was killed, not the power. dropped: nothing un-fsynced survives. torn: of what
# was not fsynced a part is there, the last write by half. zeros: sizes and names survived, bytes
# did not. renamed: names survived, bytes did not. mixed: each file and folder as it likes.
OUTCOMES = ("kept", "dropped", "torn", "zeros", "renamed", "mixed")


@dataclass(eq=False)
class _File:
    now: bytearray = field(default_factory=bytearray)
    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut to offset

    def apply(self, offset: int, data: bytes | None) -> None:
        _apply(self.now, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        self.safe, self.pending = bytearray(self.now), []

    def sync_range(self, offset: int, length: int) -> None:
        """Pages of a mapping; the file had its full length before it was mapped."""
        self.safe[offset : offset + length] = self.now[offset : offset + length]

    def part(self, chance: random.Random) -> bytes:
        found = bytearray(self.safe)
        count = chance.randint(0, len(self.pending))
        for number, (offset, data) in enumerate(self.pending[:count]):
            torn = data is not None and number == count - 1
            _apply(found, offset, data[: chance.randint(0, len(data))] if torn else data)
        return bytes(found)

    def zeros(self) -> bytes:
        """The length of now; the bytes where they were safe, zeros where they were not."""
        return bytes(self.safe[: len(self.now)]).ljust(len(self.now), b"\0")


def _apply(found: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del found[offset:]
        found.extend(bytes(offset - len(found)))
        return
    found.extend(bytes(max(0, offset + len(data) - len(found))))
    found[offset : offset + len(data)] = data


_Names = dict[str, "_File | None"]  # of one folder; None is a folder


class CrashFolder:
    """Follows the changes of a trace; begins with what ``root`` holds (nothing by default)."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._now: dict[str, _Names] = {root: {}}
        self._safe: dict[str, _Names] = {root: {}}

    def apply(self, change: Change) -> bool:
        """Follow one change; whether it can make a difference after a cut."""
        folder, name = os.path.split(change.path)
        names = self._now.get(folder, {})
        kind = change.kind
        if kind == "mkdir":
            names[name] = None
            self._now[change.path], self._safe[change.path] = {}, {}
        elif kind == "create":
            names[name] = _File()
        elif kind == "unlink":
            del names[name]
        elif kind == "rename":
            target, new = os.path.split(change.target)
            self._now[target][new] = names.pop(name)
        elif kind == "fsync" and change.path in self._now:
            self._safe[change.path] = dict(self._now[change.path])
        elif kind in ("write", "store", "truncate", "fsync", "msync"):
            self._change_file(names[name], change)
        else:
            return False
        return True

    @staticmethod
    def _change_file(file: _File | None, change: Change) -> None:
        assert file is not None
        if change.kind == "fsync":
            file.sync()
        elif change.kind == "msync":
            file.sync_range(change.offset, len(change.data))
        else:
            file.apply(change.offset, None if change.kind == "truncate" else change.data)

    def after_cut(self, outcome: str, seed: int) -> dict[str, bytes | None]:
        """Relative path -> content, None for a folder."""
        chance = random.Random(seed)
        found: dict[str, bytes | None] = {}
        self._collect(self._root, outcome, chance, found)
        return found

    def _collect(
        self, folder: str, outcome: str, chance: random.Random, found: dict[str, bytes | None]
    ) -> None:
        here = chance.choice(("dropped", "torn", "zeros")) if outcome == "mixed" else outcome
        names = self._safe[folder] if here in ("dropped", "torn") else self._now[folder]
        for name, file in sorted(names.items()):
            path = f"{folder}/{name}"
            relative = os.path.relpath(path, self._root)
            if file is None:
                found[relative] = None
                self._collect(path, outcome, chance, found)
                continue
            how = chance.choice(OUTCOMES[:-1]) if outcome == "mixed" else outcome
            found[relative] = {
                "kept": lambda file=file: bytes(file.now),
                "dropped": lambda file=file: bytes(file.safe),
                "renamed": lambda file=file: bytes(file.safe),
                "torn": lambda file=file: file.part(chance),
                "zeros": lambda file=file: file.zeros(),
            }[how]()


def write_out(tree: dict[str, bytes | None], root: Path) -> None:
    """Make ``tree`` real below ``root``."""
    root.mkdir(parents=True)
    for name, content in tree.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
