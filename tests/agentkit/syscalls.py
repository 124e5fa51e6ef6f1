"""Reads an strace log as the sequence of changes to one folder.

Expects ``strace -f -y -xx``: every string is hexadecimal, so that no content can look like syntax.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agentkit.traced_agent import BEGIN, END, STORE

# Everything that can change a file, a name or a mapping; what `read` does not model, it refuses.
CALLS = (
    "open", "openat", "openat2", "creat", "write", "pwrite64", "writev", "pwritev", "pwritev2",
    "lseek", "fsync", "fdatasync", "sync_file_range", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "rmdir", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod",
    "mknodat", "truncate", "ftruncate", "fallocate", "copy_file_range", "sendfile", "splice",
    "mmap", "mremap", "munmap", "msync", "setxattr", "fsetxattr", "removexattr", "fremovexattr",
    "io_uring_setup", "io_submit",
)  # fmt: skip
HARMLESS = {"lseek", "munmap", "mremap"}  # positions are modelled, unmapping changes nothing
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (.*)")
_HEX = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_HANDLE = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


@dataclass(frozen=True)
class Change:
    """One change to the folder. ``call`` is the port's call it happened in, None outside any."""

    kind: str  # create write store truncate fsync msync rename unlink mkdir map; end of a call
    path: str
    call: str | None
    data: bytes = b""
    offset: int = 0
    target: str = ""


@dataclass
class _Handle:
    path: str
    append: bool
    position: int = 0


@dataclass
class Trace:
    """State of the reading."""

    root: str
    ignored: tuple[str, ...] = ()  # beginnings of names below the root
    changes: list[Change] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    _inside: dict[str, list[str]] = field(default_factory=dict)  # thread -> open calls of the port
    _handles: dict[tuple[str, str], _Handle] = field(default_factory=dict)
    _maps: dict[int, tuple[int, str, int]] = field(default_factory=dict)  # address -> file

    def under(self, path: str) -> bool:
        if any(path.startswith(f"{self.root}/{name}") for name in self.ignored):
            return False
        return path == self.root or path.startswith(self.root + "/")

    def add(self, thread: str, kind: str, path: str, **values) -> None:
        calls = self._inside.get(thread)
        self.changes.append(Change(kind, path, calls[-1] if calls else None, **values))

    def take(self, thread: str, name: str, args: str, result: str) -> None:
        if result.startswith(("-1 ", "?")):
            return
        handler = getattr(self, "_" + name, None)
        if handler is not None:
            handler(thread, args, result)
        elif name not in HARMLESS and any(self.under(path) for path in _paths(args)):
            raise AssertionError(f"a system call this test does not model: {name}({args[:500]})")

    # --- system calls --------------------------------------------------------------------------

    def _openat(self, thread: str, args: str, result: str) -> None:
        handle = _HANDLE.match(result)
        path = _decode(handle[2]) if handle else ""
        if not self.under(path):
            return
        if "O_CREAT" in args and path not in self.sizes:
            self.sizes[path] = 0
            self.add(thread, "create", path)
        if "O_TRUNC" in args and self.sizes.get(path):
            self.sizes[path] = 0
            self.add(thread, "truncate", path)
        self._handles[handle[1], path] = _Handle(path, "O_APPEND" in args)

    def _write(self, thread: str, args: str, result: str) -> None:
        handle = _HANDLE.match(args)
        if not handle:
            return
        path, data = _decode(handle[2]), b"".join(map(_bytes, _HEX.findall(args)))
        data = data[: int(result)]
        if path == os.devnull:
            self._marked(thread, data)
        elif self.under(path):
            known = self._handles[handle[1], path]
            offset = self.sizes[path] if known.append else known.position
            known.position = offset + len(data)
            self._wrote(thread, path, offset, data)

    _writev = _write

    def _pwrite64(self, thread: str, args: str, result: str) -> None:
        handle = _HANDLE.match(args)
        path = _decode(handle[2]) if handle else ""
        if self.under(path):
            data = _bytes(_HEX.search(args)[1])[: int(result)]
            self._wrote(thread, path, int(args.rpartition(", ")[2]), data)

    def _wrote(self, thread: str, path: str, offset: int, data: bytes) -> None:
        self.sizes[path] = max(self.sizes[path], offset + len(data))
        self.add(thread, "write", path, offset=offset, data=data)

    def _lseek(self, _thread: str, args: str, result: str) -> None:
        handle = _HANDLE.match(args)
        known = self._handles.get((handle[1], _decode(handle[2]))) if handle else None
        if known is not None:
            known.position = int(result)

    def _ftruncate(self, thread: str, args: str, _result: str) -> None:
        path, length = _decode(_HANDLE.match(args)[2]), int(args.rpartition(", ")[2])
        if self.under(path):
            self.sizes[path] = length
            self.add(thread, "truncate", path, offset=length)

    def _fsync(self, thread: str, args: str, _result: str) -> None:
        path = _decode(_HANDLE.match(args)[2])
        if self.under(path):
            self.add(thread, "fsync", path)

    _fdatasync = _fsync

    def _rename(self, thread: str, args: str, _result: str) -> None:
        source, target = map(_decode, _HEX.findall(args))
        if self.under(source) or self.under(target):
            self.sizes[target] = self.sizes.pop(source)
            self.add(thread, "rename", source, target=target)

    def _unlink(self, thread: str, args: str, _result: str) -> None:
        path = _decode(_HEX.search(args)[1])
        if self.under(path):
            self.sizes.pop(path, None)
            self.add(thread, "unlink", path)

    def _mkdir(self, thread: str, args: str, _result: str) -> None:
        path = _decode(_HEX.search(args)[1])
        if self.under(path):
            self.add(thread, "mkdir", path)

    def _mmap(self, thread: str, args: str, result: str) -> None:
        words = args.split(", ")
        handle = _HANDLE.match(words[4])
        if handle and "MAP_SHARED" in words[3] and self.under(_decode(handle[2])):
            path = _decode(handle[2])
            self._maps[int(result, 16)] = (int(words[1]), path, int(words[5], 0))
            if "PROT_WRITE" in words[2]:
                self.add(thread, "map", path)

    def _msync(self, thread: str, args: str, _result: str) -> None:
        first, length, _ = args.split(", ")
        for address, (size, path, offset) in self._maps.items():
            if address <= int(first, 16) < address + size:
                at = int(first, 16) - address + offset
                self.add(thread, "msync", path, offset=at, data=bytes(int(length)))

    def _marked(self, thread: str, data: bytes) -> None:
        kind, path, rest = data.split(b" ", 2)
        path = os.fsdecode(bytes.fromhex(path.decode()))
        open_calls = self._inside.setdefault(thread, [])
        if kind == STORE:
            offset, _, part = rest.partition(b" ")
            self.add(thread, "store", path, offset=int(offset), data=part)
        elif kind == BEGIN:
            open_calls.append(f"{rest.decode()} {path}")
        elif kind == END:
            self.add(thread, "end", path)
            open_calls.pop()


def strace(log: Path) -> list[str]:
    """The command that writes what `read` reads; the program to trace follows."""
    calls = ",".join(f"?{call}" for call in CALLS)  # ?: not every machine has each of them
    return [
        "strace", "-f", "-y", "-xx", "-qq", "--seccomp-bpf", "-s", "10000000",
        "-o", str(log), "-e", f"trace={calls}",
    ]  # fmt: skip


def read(
    lines: Iterable[str],
    root: Path,
    *,
    sizes: dict[str, int] | None = None,
    ignored: tuple[str, ...] = (),
) -> list[Change]:
    """The changes below ``root``, in the order in which they took effect.

    ``sizes`` are those of files that were there before; ``ignored`` are beginnings of names.
    """
    trace = Trace(str(root), ignored, sizes=dict(sizes or {}))
    for thread, name, args, result in _calls(lines):
        trace.take(thread, name, args, result)
    return trace.changes


def _calls(lines: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    begun: dict[str, str] = {}
    for line in lines:
        thread, text = _LINE.fullmatch(line.rstrip("\n")).groups()
        if text.startswith(("+++", "---")):
            continue
        if text.startswith("???("):
            continue  # its process had ended before strace could ask which call that was to be
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<... ??? resumed>") and thread not in begun:
            continue
        if text.startswith("<... "):
            text = begun.pop(thread) + text.partition(" resumed>")[2]
        call = _CALL.fullmatch(text)
        if call is None:
            raise AssertionError(f"unreadable line of the trace: {line[:500]}")
        yield thread, *call.groups()


def _paths(args: str) -> Iterator[str]:
    for text in _HEX.findall(args):
        yield _decode(text)
    for _, text in _HANDLE.findall(args):
        yield _decode(text)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _decode(text: str) -> str:
    return os.fsdecode(_bytes(text))
