"""Step cache: a result is found again by everything that could change it.

The key is the full SHA-256 over step name and version, tool versions, parameters, digests of all
inputs and the facts of target and host that matter to the step. An entry is a folder with the
step's files and ``entry.json`` (facts and digest per file); it appears by one rename, and is
verified by digest when it is used: a damaged entry is made again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, translate_os_errors

CACHE_ENV = "EDGEKIT_CACHE"
_ENTRY = "entry.json"


def default_root() -> Path:
    """``$EDGEKIT_CACHE``, else ``~/.cache/edgekit/build``."""
    return Path(os.environ.get(CACHE_ENV) or "~/.cache/edgekit/build").expanduser()


@dataclass(frozen=True)
class Step:
    """What a step declares; two steps with equal declarations have equal results."""

    name: str
    version: int
    tools: Mapping[str, str]
    inputs: Mapping[str, str]  # name -> digest
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """The full digest of the declaration."""
        return digest.of_bytes(
            codec.encode([self.name, self.version, self.tools, self.parameters, self.inputs])
        )


class _Document(msgspec.Struct, frozen=True):
    facts: dict[str, Any]
    files: dict[str, str]  # name -> digest


@dataclass(frozen=True)
class Entry:
    """A finished step."""

    folder: Path
    facts: Mapping[str, Any]
    digests: Mapping[str, str]
    reused: bool

    def file(self, name: str) -> Path:
        """Path of a file the step made."""
        return self.folder / name


class Cache:
    """A folder of finished steps, and of scratch space on the same file system."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder that is gone afterwards, whatever happens.

        Raises:
            ResourceError: disk full (also when the block raises it as an `OSError`).
        """
        with translate_os_errors("write", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self.root, prefix="work-"))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def run(self, step: Step, make: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """The result of ``step``, made by ``make(folder)`` when it is not known yet.

        Args:
            step: the declaration.
            make: writes files into the folder and returns facts (JSON values). When it raises,
                nothing is kept.
        """
        final = self._folder(step)
        known = self._lookup(final)
        if known is not None:
            return known
        with self.scratch() as work:
            made = work / "entry"
            made.mkdir()
            facts = dict(make(made))
            files = {p.name: digest.of_file(p)[0] for p in sorted(made.iterdir()) if p.is_file()}
            (made / _ENTRY).write_bytes(codec.encode(_Document(facts, files)))
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                made.rename(final)
            except OSError:
                # Another build finished the same step first; its result is the same.
                if self._lookup(final) is None:
                    raise
        return Entry(final, facts, files, reused=False)

    def find(self, step: Step, *, trusted: bool = False) -> Entry | None:
        """The result of ``step``, when it is known.

        Args:
            step: the declaration.
            trusted: the files are not read; whoever reads one compares its digest, and has the
                entry forgotten when it is another. For files that most look-ups never read.
        """
        return self._lookup(self._folder(step), trusted=trusted)

    def forget(self, path: Path) -> bool:
        """Remove the entry that ``path`` is a file of; False when it is no entry of this cache."""
        folder = path.parent
        if folder.parent.parent != self.root / "steps":
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def _folder(self, step: Step) -> Path:
        name = digest.hex_of(step.key())
        return self.root / "steps" / name[:2] / name

    def _lookup(self, folder: Path, *, trusted: bool = False) -> Entry | None:
        if not folder.is_dir():
            return None
        try:
            document = codec.read(_Document, folder / _ENTRY)
            if trusted and all((folder / name).is_file() for name in document.files):
                return Entry(folder, document.facts, document.files, reused=True)
            found = {name: digest.of_file(folder / name)[0] for name in document.files}
        except BadInputError:
            found, document = {"": "unreadable"}, _Document({}, {})
        if found != document.files:
            # Derived data: making it again is always right.
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Entry(folder, document.facts, document.files, reused=True)
