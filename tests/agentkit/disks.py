"""A disk that loses power at operation n, and leaves what a real one could leave."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from edgekit.contracts.errors import ResourceError
from edgekit_runtime.disk import PosixDisk


class PowerCut(BaseException):
    """Not an Exception: no code of the product may catch it."""


class FaultyDisk(PosixDisk):
    """Counts changing operations; the one numbered ``crash_at`` is done by half, then power goes.

    With ``full_from`` every write from that operation on fails as a full disk does, half written.
    """

    CHANGING = (
        "append", "sync", "truncate", "overwrite", "replace", "rename", "unlink", "sync_dir",
    )  # fmt: skip

    def __init__(
        self, *, crash_at: int | None = None, full_from: int | None = None, seed: int = 0
    ) -> None:
        self.operations = 0
        self._crash_at = crash_at
        self._full_from = full_from
        self._random = random.Random(seed)
        self._inside = False
        for name in self.CHANGING:
            setattr(self, name, self._wrap(name, getattr(self, name)))

    def _wrap(self, name: str, real: Any) -> Any:
        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if self._inside:
                return real(path, *arguments, **options)
            number, self.operations = self.operations, self.operations + 1
            self._inside = True
            try:
                if number == self._crash_at:
                    self._half(name, path, arguments)
                    raise PowerCut(f"{name} {path.name}")
                full = self._full_from is not None and number >= self._full_from
                if full and name in ("append", "overwrite", "replace"):
                    self._half(name, path, arguments)
                    raise ResourceError(f"cannot write {path}: no space left on device")
                return real(path, *arguments, **options)
            finally:
                self._inside = False

        return call

    def _half(self, name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        """What may lie on the medium: any prefix, a zero-filled tail, or nothing."""
        if name not in ("append", "overwrite"):
            return
        data = arguments[0]
        kept = data[: self._random.randint(0, len(data))]
        if name == "append":
            zeros = self._random.choice([0, 0, len(data) - len(kept)])
            with path.open("ab") as stream:
                stream.write(kept + bytes(zeros))
        else:
            old = path.read_bytes() if path.exists() else b""
            path.write_bytes(kept + old[len(kept) :])
