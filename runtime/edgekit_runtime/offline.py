"""Batch runs over files: in chunks that are kept, so that an interrupted run goes on.

Finished chunks lie in ``.OUT.parts`` beside the result, together with what they were computed from;
chunks of another model or other data are never taken over. They are joined at the end, one by one,
and the result appears at once: memory holds one chunk, however long the data is.

A row that the guard refuses is not answered: its outputs are NaN (zero where they are no floats),
and the result names it in an array of its own, `REFUSED`.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import IO

import msgspec
import numpy as np

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, UnavailableError, translate_os_errors
from edgekit_runtime import guard
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.errors import GuardError
from edgekit_runtime.golden import load_npz
from edgekit_runtime.ports import Array
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.rows import Rows

REFUSED = "refused_rows"  # of the result: numbers of the rows without an answer
NAMED_MAX = 100  # refused rows whose reasons are told
CHUNK_BYTES = 8 * 1024 * 1024  # of inputs; less means an fsync more often than anybody would notice
CHUNK_ROWS_MAX = 65536
PROGRESS_S = 1.0  # between two lines of progress
_JOB = "job.json"
_REASONS = "reasons"
_OUT = "out."  # prefix of outputs in a part


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What finished chunks belong to."""

    format: int = 2
    model: str  # digest of the bundle or model version
    data: str  # digest of the input
    chunk: int  # rows in each but the last


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run."""

    samples: int
    resumed: int  # samples that an earlier run had answered
    refused: int  # rows that break the contract: not answered
    reasons: dict[int, str]  # of the first of them, by row
    outputs: dict[str, tuple[int, ...]]  # shapes


class BatchRun:
    """One run over one file or folder."""

    def __init__(self, model: Predictor, data: Path, out: Path, *, chunk: int | None) -> None:
        """Open input and earlier chunks.

        Raises:
            BadInputError: the data cannot be read or does not fit the contract.
        """
        if REFUSED in {spec.name for spec in model.contract.outputs}:
            raise BadInputError(f"the model has an output called {REFUSED!r}, as the result has")
        self._model = model
        self._out = out
        self._parts = out.with_name(f".{out.name}.parts")
        self._disk = PosixDisk()
        self._rows = Rows(data, model.contract)
        self.samples = self._rows.total
        fitting = CHUNK_BYTES // max(1, self._rows.row_bytes)
        self._chunk = chunk or max(1, min(CHUNK_ROWS_MAX, fitting))
        self._job = Job(model=model.bundle.digest, data=self._rows.identity(), chunk=self._chunk)

    def run(self, progress: Callable[[int, int], None] = lambda _done, _all: None) -> Summary:
        """Answer every row; ``progress`` hears how many of how many are done.

        Raises:
            BadInputError: the data is damaged, or every row breaks the contract.
            EngineError: the engine failed.
            UnavailableError: another run writes the same result.
            ResourceError: the disk is full; what is finished stays.
        """
        self._disk.make_dir(self._parts)
        with _alone(self._parts):
            self._prepare()
            resumed = 0
            for start in self._starts():
                end = min(start + self._chunk, self.samples)
                path = self._part(start)
                if self._disk.size(path) is not None:
                    resumed += end - start
                else:
                    self._disk.replace(path, _npz(self._answer(start, end)))
                progress(end, self.samples)
            if self._rows.identity() != self._job.data:
                self._disk.unlink(self._parts / _JOB)  # nobody can say what the chunks are of
                raise BadInputError(f"{self._rows.path}: it was changed while it was read")
            return self._join(resumed)

    def _starts(self) -> range:
        return range(0, self.samples, self._chunk)

    def _prepare(self) -> None:
        known = self._disk.read(self._parts / _JOB, bytes_max=4096)
        wanted = codec.encode(self._job)
        if known == wanted:
            return
        for name in self._disk.names(self._parts):
            self._disk.unlink(self._parts / name)
        self._disk.replace(self._parts / _JOB, wanted)

    def _answer(self, start: int, end: int) -> dict[str, Array]:
        rows = self._rows.take(start, end)
        refused: dict[int, str] = {}
        try:
            outputs = self._model.predict_samples(rows)
        except GuardError as exc:
            refused = self._refused(rows, end - start)
            if not refused:  # it is not about single rows
                raise GuardError(f"rows {start}-{end - 1}: {exc.message}", hint=exc.hint) from exc
            good = np.array([n for n in range(end - start) if n not in refused], dtype=np.intp)
            outputs = {}
            if good.size:
                answered = self._model.predict_samples({n: a[good] for n, a in rows.items()})
                outputs = {n: _spread(a, good, end - start) for n, a in answered.items()}
        part = {_OUT + name: values for name, values in outputs.items()}
        part[REFUSED] = np.array([start + row for row in refused], dtype=np.int64)
        part[_REASONS] = np.array([reason[:200] for reason in refused.values()], dtype=np.str_)
        return part

    def _refused(self, rows: Mapping[str, Array], count: int) -> dict[int, str]:
        reasons = {index: self._reason(rows, index) for index in range(count)}
        return {index: reason for index, reason in reasons.items() if reason}

    def _reason(self, rows: Mapping[str, Array], index: int) -> str:
        """Why the guard refuses a row; empty when it does not."""
        try:
            guard.check(self._model.contract, self._model.single(rows, index))
        except GuardError as exc:
            return exc.message
        return ""

    # --- the result ----------------------------------------------------------------------------

    def _join(self, resumed: int) -> Summary:
        refused: list[Array] = []
        reasons: dict[int, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        kinds: dict[str, np.dtype[np.generic]] = {}
        for part in self._loaded():
            refused.append(part[REFUSED])
            for row, reason in zip(part[REFUSED], part[_REASONS], strict=True):
                if len(reasons) < NAMED_MAX:
                    reasons[int(row)] = str(reason)
            for name in (name for name in part if name.startswith(_OUT)):
                shape = part[name].shape[1:]
                if shapes.setdefault(name, shape) != shape:
                    raise BadInputError(
                        f"output {name.removeprefix(_OUT)!r} has rows of {list(shapes[name])} and "
                        f"of {list(shape)}: they do not fit into one array",
                        hint="run rows of one size at a time",
                    )
                kinds[name] = part[name].dtype
        numbers = np.concatenate(refused)
        if len(numbers) == self.samples:
            row, reason = next(iter(reasons.items()))
            raise BadInputError(f"every row breaks the contract; row {row}: {reason}")
        self._write(numbers, shapes, kinds)
        shutil.rmtree(self._parts, ignore_errors=True)
        return Summary(
            samples=self.samples,
            resumed=resumed,
            refused=len(numbers),
            reasons=reasons,
            outputs={n.removeprefix(_OUT): (self.samples, *shape) for n, shape in shapes.items()},
        )

    def _write(
        self,
        refused: Array,
        shapes: Mapping[str, tuple[int, ...]],
        kinds: Mapping[str, np.dtype[np.generic]],
    ) -> None:
        partial = self._parts / "joined"
        with translate_os_errors("write", self._out), partial.open("wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for name, shape in shapes.items():
                    whole = (self.samples, *shape)
                    member = f"{name.removeprefix(_OUT)}.npy"
                    with archive.open(member, "w", force_zip64=True) as target:
                        _begin(target, whole, kinds[name])
                        for start, part in zip(self._starts(), self._loaded(), strict=True):
                            count = min(self._chunk, self.samples - start)
                            rows = part.get(name)
                            if rows is None:
                                rows = _empty((count, *shape), kinds[name])
                            target.write(np.ascontiguousarray(rows).tobytes())
                with archive.open(f"{REFUSED}.npy", "w", force_zip64=True) as target:
                    np.lib.format.write_array(target, refused, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        self._disk.rename(partial, self._out)

    def _loaded(self) -> Iterator[dict[str, Array]]:
        for start in self._starts():
            yield load_npz(self._part(start), str(self._part(start)))

    def _part(self, start: int) -> Path:
        return self._parts / f"{start:012d}.npz"


class Progress:
    """Says now and then how far a run is, and how long it will take."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """``note`` takes a line."""
        self._note = note
        self._begun = self._told = monotonic()
        self._before: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """So many of so many rows are answered."""
        now = monotonic()
        if self._before is None or now - self._begun < PROGRESS_S:
            self._before = done  # what an earlier run had done took no time
        if now - self._told >= PROGRESS_S and self._before < done < total:
            self._told = now
            left_s = (now - self._begun) / (done - self._before) * (total - done)
            self._note(f"{done} of {total} samples, about {left_s:.0f} s left")


def describe(summary: Summary, out: Path) -> str:
    """For people."""
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in summary.outputs.items())
    return f"{out}: {summary.samples} samples, {shapes}"


def check_refused(summary: Summary, refused_max: int) -> None:
    """Return when no more rows were refused than may be.

    Raises:
        BadInputError: names them.
    """
    if summary.refused <= refused_max:
        return
    row, reason = next(iter(summary.reasons.items()))
    listed = ", ".join(str(each) for each in list(summary.reasons)[:10])
    more = ", …" if summary.refused > 10 else ""
    raise BadInputError(
        f"{summary.refused} of {summary.samples} rows break the contract and have no answer: "
        f"{listed}{more}; row {row}: {reason}",
        hint=f"the result is written and names them in {REFUSED!r}; --refused-max allows them",
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one run at a time works in ``folder``."""
    with translate_os_errors("open", folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UnavailableError(
                f"{folder}: another run is at work there", hint="wait, or choose another --out"
            ) from exc
        yield
    finally:
        os.close(handle)


def _spread(answers: Array, good: Array, count: int) -> Array:
    """``answers`` at the rows ``good`` of ``count``."""
    whole = _empty((count, *answers.shape[1:]), answers.dtype)
    whole[good] = answers
    return whole


def _empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    fill = np.nan if dtype.kind == "f" else 0
    return np.full(shape, fill, dtype)


def _begin(target: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(target, header)


def _npz(arrays: Mapping[str, Array]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
    return stream.getvalue()
