"""Reads the report's figures back from where they are: build records, database, ledger, devices.

Nothing here is remembered by the demo's driver but what only it can know (which process it killed
and when, what ``/proc`` said while the process lived); that lies in ``observed.json``.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from statistics import median

import msgspec

from edgekit.build.record import RECORD_FILE, BuildRecord, VariantRecord
from edgekit.cli.demo import devices, plan
from edgekit.cli.demo.devices import DeviceBooks
from edgekit.cli.demo.report import (
    AgentFigures,
    Count,
    FaultFigures,
    Inferences,
    Report,
    RolloutFigures,
    Variant,
    WaveFigures,
    check,
)
from edgekit.contracts import codec
from edgekit.contracts.bundle import BundleManifest, Role
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.limits import OCI_MANIFEST_BYTES_MAX
from edgekit.contracts.messages import Reported
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.verdict import Outcome
from edgekit_fleet.rollout.model import RolloutState

OBSERVED_FILE = "observed.json"


class Observed(msgspec.Struct, kw_only=True):
    """What only the driver saw."""

    broker: str
    seed: int
    targets: tuple[str, ...]
    faults: tuple[FaultFigures, ...]
    pids: dict[str, int]
    rss_mb: dict[str, float]
    load_seconds: float
    seconds: float


class LoadSummary(msgspec.Struct):
    """The load client's own closing words."""

    sent: int
    answered: int
    retried: int
    unanswered: int
    labelled: int
    refused: int


def _variant(version: str, record: VariantRecord, layout: LayoutReader) -> Variant:
    if record.digest is None:
        raise BadInputError(f"build record of version {version}: {record.target} has no bundle")
    manifest = layout.manifest(record.digest)
    config = layout.read_blob(manifest.config.digest, bytes_max=OCI_MANIFEST_BYTES_MAX)
    bundle = codec.decode(BundleManifest, config, what=f"bundle {record.digest}")
    model = bundle.required(Role.MODEL)
    return Variant(
        version=version,
        target=bundle.target,
        precision=bundle.precision,
        metric=record.metric,
        quality=record.quality,
        quality_original=record.original_quality,
        quality_drop=record.quality_drop,
        quality_drop_upper=record.quality_drop_upper,
        quality_drop_max=plan.DROP_MAX,
        size_bytes=layout.blob_path(model.sha256).stat().st_size,
        size_bytes_original=record.original_size_bytes,
        latency_ms=record.latency_ms,
        latency_ms_original=record.original_latency_ms,
        validated=record.validated,
        gates=tuple(v.metric for v in record.verdicts if v.outcome is Outcome.PASS),
    )


def variants(folder: Path) -> tuple[Variant, ...]:
    """All variants, from the build outputs ``v1``, ``v2``, ``v3`` below ``folder``."""
    found = []
    for model in plan.MODELS:
        out = folder / f"v{model.version}"
        record = codec.read(BuildRecord, out / RECORD_FILE)
        layout = LayoutReader(out)
        found += [_variant(model.version, each, layout) for each in record.variants]
    return tuple(found)


class Database:
    """The manager's database, read by SQL of our own and never written."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def per_device(self, query: str) -> dict[str, int]:
        """Result of a query of (device, number) rows."""
        return {str(device): int(number) for device, number in self._connection.execute(query)}

    def counted(self) -> dict[str, int]:
        """Inferences in committed windows, by device."""
        return self.per_device(
            "select d.device, sum(w.n) from windows w join devices d on d.id = w.device_id "
            "group by d.device"
        )

    def evicted(self) -> dict[str, int]:
        """Inferences that devices say they had to drop, by device."""
        return self.per_device(
            "select d.device, sum(t.inferences) from tombstones t "
            "join devices d on d.id = t.device_id group by d.device"
        )

    def ran(self, release: str) -> tuple[str, ...]:
        """Devices whose windows show inferences on ``release``."""
        rows = self._connection.execute(
            "select distinct d.device from windows w join devices d on d.id = w.device_id "
            "where w.release = ? and w.n > 0 order by d.device",
            (release,),
        )
        return tuple(str(device) for (device,) in rows)

    def total(self, column: str, release: str) -> int:
        """Sum of a column of windows of ``release``."""
        assert column in {"errors", "violations"}
        query = f"select coalesce(sum({column}), 0) from windows where release = ?"  # noqa: S608 - checked
        return int(self._connection.execute(query, (release,)).fetchone()[0])

    def rollouts(self) -> tuple[RolloutFigures, ...]:
        """Every rollout in the order it was started."""
        rows = self._connection.execute(
            "select name, release, state from rollouts order by created"
        )
        return tuple(self._rollout(name, release, state) for name, release, state in rows)

    def _rollout(self, name: str, release: str, raw: bytes) -> RolloutFigures:
        state = codec.decode(RolloutState, raw, what=f"rollout {name}")
        return RolloutFigures(
            name=name,
            release=release,
            verdict=state.status.value,
            reason=state.reason,
            devices_exposed=len(set(state.exposed)),
            ran_on=self.ran(release),
            errors=self.total("errors", release),
            violations=self.total("violations", release),
            waves=tuple(
                WaveFigures(
                    name=wave.name,
                    phase=wave.phase.value,
                    started=wave.started,
                    soak_started=wave.soak_started,
                    finished=wave.finished,
                    devices=wave.devices,
                    control=wave.control,
                    gates=wave.verdicts,
                )
                for wave in state.waves
            ),
            seconds=round((state.finished or state.created) - state.created, 3),
        )

    def reported(self) -> dict[str, Reported]:
        """Newest snapshot of each device."""
        rows = self._connection.execute("select device, reported from devices")
        return {
            str(device): codec.decode(Reported, raw, what=f"reported of {device}")
            for device, raw in rows
        }


def ledger(folder: Path) -> dict[str, int]:
    """Answered requests by device; an id that was written twice is refused."""
    books = {}
    for path in sorted(folder.glob("*.ledger")):
        ids = path.read_text().split()
        if len(set(ids)) != len(ids):
            raise BadInputError(f"{path}: a request id stands in it twice")
        books[path.stem] = len(ids)
    return books


def _inferences(
    folder: Path, database: Database, books: dict[str, DeviceBooks], observed: Observed
) -> Inferences:
    summary = codec.read(LoadSummary, folder / "ledger" / "summary.json")
    answered, counted, evicted = ledger(folder / "ledger"), database.counted(), database.evicted()
    counts = {
        device: Count(
            answered=answered.get(device, 0),
            produced=books[device].produced,
            counted=counted.get(device, 0),
            evicted=evicted.get(device, 0),
        )
        for device in sorted(books)
    }
    return Inferences(
        answered=sum(answered.values()),
        produced=sum(count.produced for count in counts.values()),
        counted=sum(counted.values()),
        evicted=sum(evicted.values()),
        undelivered=sum(book.undelivered for book in books.values()),
        unanswered=summary.unanswered,
        retried=summary.retried,
        seconds=observed.load_seconds,
        devices=counts,
    )


def _agents(reported: dict[str, Reported], observed: Observed) -> AgentFigures:
    models = {device: report.models.get(plan.MODEL) for device, report in reported.items()}
    # An agent that starts empty waits for its first release; one that was restarted with a model on
    # its disk shows how long starting takes.
    restarted = {fault.killed.removeprefix("agent ") for fault in observed.faults}
    first = [
        report.health.start_to_first_inference_s
        for device, report in reported.items()
        if device in restarted
    ]
    return AgentFigures(
        rss_mb=round(median(observed.rss_mb.values()), 1),
        start_to_first_inference_s=round(median([value or 0.0 for value in first] or [0.0]), 3),
        pids=observed.pids,
        active={d: m.active.release for d, m in models.items() if m and m.active},
        refetched_bytes={d: m.fetched_bytes for d, m in models.items() if m},
    )


def collect(folder: Path) -> Report:
    """The report on a finished demo whose traces lie below ``folder``; `check` has been applied.

    Raises:
        BadInputError: a trace is missing or unreadable.
    """
    observed = codec.read(Observed, folder / OBSERVED_FILE)
    path = folder / "manager" / "manager.sqlite"
    if not path.is_file():
        raise BadInputError(f"{path}: no such database", hint="run `edgekit demo` first")
    database = Database(path)
    try:
        books = {device: devices.books(folder, device) for device in observed.pids}
        report = Report(
            ok=False,
            broker=observed.broker,
            seed=observed.seed,
            targets=observed.targets,
            rate_per_device=plan.RATE_PER_DEVICE,
            variants=variants(folder),
            rollouts=database.rollouts(),
            inferences=_inferences(folder, database, books, observed),
            faults=observed.faults,
            agent=_agents(database.reported(), observed),
            seconds=observed.seconds,
        )
    except sqlite3.Error as exc:
        raise BadInputError(f"{path}: {exc}") from exc
    finally:
        database.close()
    report.problems = tuple(check(report))
    report.ok = not report.problems
    return report


def verify(folder: Path, path: Path) -> Report:
    """Check a written report against its claims and against the traces it was read from.

    Raises:
        BadInputError: report or traces are missing or unreadable.
    """
    written = codec.read(Report, path)
    problems = check(written)
    again = collect(folder)
    problems += [problem for problem in again.problems if problem not in problems]
    problems += [
        f"report: {name} is not what the traces say"
        for name in msgspec.structs.asdict(again)
        if name not in {"ok", "problems"} and getattr(written, name) != getattr(again, name)
    ]
    again.problems, again.ok = tuple(problems), not problems and written.ok
    if not problems and not written.ok:
        again.problems = ("report: says itself that it is not ok",)
    return again
