"""Inputs for measurements, as a file that is written when something is to run over them.

A build that finds all it needs in the cache runs nothing, and data sets are large.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.contracts import codec, digest
from edgekit.registry import npz
from edgekit.registry.npz import Array


class DataFile:
    """An ``.npz`` of inputs. Thread-safe."""

    def __init__(
        self, path: Path, identity: Sequence[Any], make: Callable[[], Mapping[str, Array]]
    ) -> None:
        """``make`` gives what is to lie at ``path``; ``identity`` says what that is."""
        self.digest = digest.of_bytes(codec.encode(identity))
        self._path = path
        self._make = make
        self._lock = threading.Lock()
        self._written = False

    def path(self) -> Path:
        """Where it lies.

        Raises:
            ResourceError: disk full.
        """
        with self._lock:
            if not self._written:
                npz.write(self._path, self._make())
                self._written = True
            return self._path
