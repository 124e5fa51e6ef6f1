"""Batch runs over files: in chunks that are kept, so that an interrupted run goes on.

Finished chunks lie in ``.OUT.parts`` beside the result, together with what they were computed from;
chunks of another model or other data are never taken over. The result appears at the end, at once.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgekit.contracts import codec, digest
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit_runtime.bundles import load_npz
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.errors import GuardError
from edgekit_runtime.ports import Array
from edgekit_runtime.predictor import Predictor

_JOB = "job.json"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What finished chunks belong to."""

    model: str  # digest of the bundle or model version
    data: str  # digest of the input file
    chunk: int  # samples in each but the last


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    samples: int
    resumed: int  # samples that an earlier run had answered
    outputs: dict[str, tuple[int, ...]]  # shapes


class BatchRun:
    """One run over one file."""

    def __init__(self, model: Predictor, data: Path, out: Path, *, chunk: int) -> None:
        """Open input and earlier chunks.

        Raises:
            BadInputError: the data cannot be read or does not fit the contract.
        """
        self._model = model
        self._out = out
        self._chunk = chunk
        self._parts = out.with_name(f".{out.name}.parts")
        self._disk = PosixDisk()
        self._arrays = load_npz(data, str(data))
        lengths = {len(self._pick(spec.name)) for spec in model.contract.inputs}
        if len(lengths) > 1 or 0 in lengths:
            raise BadInputError(f"{data}: inputs of {sorted(lengths)} samples")
        (self.samples,) = lengths
        with translate_os_errors("read", data):
            content, _ = digest.of_file(data)
        self._job = Job(model=model.bundle.digest, data=content, chunk=chunk)

    def run(self, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Summary:
        """Answer every sample; ``progress`` hears how many of how many are done.

        Raises:
            GuardError: a sample breaks the contract; names its chunk.
            EngineError: the engine failed.
            ResourceError: the disk is full; what is finished stays.
        """
        self._prepare()
        resumed = 0
        for start in range(0, self.samples, self._chunk):
            end = min(start + self._chunk, self.samples)
            path = self._part(start)
            if self._disk.size(path) is not None:
                resumed += end - start
            else:
                self._disk.replace(path, _npz(self._answer(start, end)))
            progress(end, self.samples)
        return self._join(resumed)

    def _prepare(self) -> None:
        known = self._disk.read(self._parts / _JOB, bytes_max=4096)
        wanted = codec.encode(self._job)
        if known == wanted:
            return
        shutil.rmtree(self._parts, ignore_errors=True)
        self._disk.make_dir(self._parts)
        self._disk.replace(self._parts / _JOB, wanted)

    def _answer(self, start: int, end: int) -> dict[str, Array]:
        names = [spec.name for spec in self._model.contract.inputs]
        rows = {name: self._arrays[name][start:end] for name in names}
        try:
            return self._model.predict_samples(rows)
        except GuardError as exc:
            raise GuardError(f"samples {start}-{end - 1}: {exc.message}", hint=exc.hint) from exc

    def _join(self, resumed: int) -> Summary:
        parts = [
            load_npz(self._part(start), str(self._part(start)))
            for start in range(0, self.samples, self._chunk)
        ]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._disk.replace(self._out, _npz(whole))
        shutil.rmtree(self._parts, ignore_errors=True)
        shapes = {name: values.shape for name, values in whole.items()}
        return Summary(samples=self.samples, resumed=resumed, outputs=shapes)

    def _part(self, start: int) -> Path:
        return self._parts / f"{start:012d}.npz"

    def _pick(self, name: str) -> Array:
        array = self._arrays.get(name)
        if array is None or array.ndim == 0:
            found = ", ".join(sorted(self._arrays)) or "none"
            raise BadInputError(f"data has no array {name!r}", hint=f"arrays found: {found}")
        return array


def _npz(arrays: Mapping[str, Array]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
    return stream.getvalue()
