"""Runs the real agent so that a system-call trace of it also shows the calls of its `Disk` port.

Every changing call is bracketed by writes to /dev/null, by the same thread: a system call on the
state folder outside the brackets did not go through the port. Stores into memory-mapped counter
regions are no system calls: what changed in them is written out before each call and each flush.

``python traced_agent.py STATE_DIR run --config FILE``
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

MARK = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
BEGIN, END, STORE = b"ek<", b"ek>", b"ek="
CHANGING = (
    "append", "sync", "truncate", "overwrite", "replace", "rename", "unlink", "sync_dir",
    "make_dir",
)  # fmt: skip
PAGE = 4096
_known: dict[Path, bytes] = {}


def _mark(kind: bytes, path: Path, rest: bytes) -> None:
    os.write(MARK, b" ".join((kind, os.fsencode(path).hex().encode(), rest)))


def _look_at_regions(folder: Path) -> None:
    """Tell what was stored into mapped files since the last look."""
    for path in sorted(folder.glob("regions/*.rgn")):
        now = path.read_bytes()
        before = _known.get(path)
        _known[path] = now
        if before is None or before == now:
            continue
        for at in range(0, len(now), PAGE):
            old, new = before[at : at + PAGE], now[at : at + PAGE]
            changed = [i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
            if changed:
                part = new[changed[0] : changed[-1] + 1]
                _mark(STORE, path, b"%d %b" % (at + changed[0], part))


def _wrap(kind: type, name: str, folder: Path) -> None:
    real = getattr(kind, name)

    def call(self, path, *arguments, **options):
        _look_at_regions(folder)
        _mark(BEGIN, path, name.encode())
        try:
            return real(self, path, *arguments, **options)
        finally:
            _mark(END, path, name.encode())
            _look_at_regions(folder)

    setattr(kind, name, call)


def main() -> None:
    folder = Path(sys.argv.pop(1))

    class TracedMap(mmap.mmap):
        def flush(self, *arguments):
            _look_at_regions(folder)
            return super().flush(*arguments)

    mmap.mmap = TracedMap  # type: ignore[misc]
    from edgekit_runtime import cli, disk

    for name in CHANGING:
        _wrap(disk.PosixDisk, name, folder)
    cli.main()


if __name__ == "__main__":
    main()
