"""The build: one registered model version, several targets, one record (DESIGN 4).

Everything is computed first and written last: a build that stops half-way leaves the output folder
as it was. Equal inputs give byte-identical bundles on one machine; a warm rebuild only looks up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from edgekit.build import derive, reference, report, tools
from edgekit.build.cache import Cache
from edgekit.build.devices import Device, reach
from edgekit.build.final import Finisher
from edgekit.build.host import Host, detect
from edgekit.build.layers import Inspector
from edgekit.build.measure import Measurer, neutral
from edgekit.build.outcome import Chosen
from edgekit.build.ports import (
    AlteredError,
    BundleContent,
    BundleHead,
    BundleWriter,
    OnProgress,
    Progress,
    WrittenBundle,
)
from edgekit.build.processes import STARVED, Processes
from edgekit.build.quantize import Quantization
from edgekit.build.record import RECORD_FILE, BuildRecord, VariantRecord
from edgekit.build.study import Study, prepare
from edgekit.build.target import TargetProfile
from edgekit.build.variants import VariantBuilder
from edgekit.contracts import codec
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import UsageError
from edgekit.contracts.verdict import Outcome
from edgekit.registry import dataset, files
from edgekit.registry.model import ModelVersion, Split
from edgekit.registry.ports import Registry

TIME_BUDGET_S = 120.0  # enough to repair a small model; large ones deserve more
_ALTERED_MAX = 3  # entries of the cache that are made anew; more, and the disk is dying
_UNITS_PER_TARGET = 12  # of a first round with its final evaluation; a search adds more


class _Ticker:
    """Counts units of work and estimates what is left; cached units make the estimate fall."""

    def __init__(self, total: int, listener: OnProgress | None) -> None:
        self._total, self._done, self._listener = total, 0, listener
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        if self._listener is not None:
            with self._lock:
                self._tell(self._listener, what)

    def _tell(self, listener: OnProgress, what: str) -> None:
        elapsed = time.monotonic() - self._started
        eta = elapsed / self._done * (self._total - self._done) if self._done else None
        # Fall-backs after a failed gate are extra units: the total grows rather than overflows.
        self._total = max(self._total, self._done + 1)
        listener(Progress(self._done, self._total, what, eta))
        self._done += 1


def build(
    registry: Registry,
    model: ModelVersion,
    targets: Sequence[TargetProfile],
    out: Path,
    *,
    writer: BundleWriter,
    cache: Cache | None = None,
    host: Host | None = None,
    time_budget_s: float = TIME_BUDGET_S,
    memory_bytes: int | None = None,
    fold_preprocessing: bool = False,
    devices: Mapping[str, Device] | None = None,
    on_progress: OnProgress | None = None,
) -> BuildRecord:
    """Build ``model`` for ``targets`` into the OCI layout ``out``.

    A failed gate is not an exception: the record says so, that target has no bundle, the others
    have theirs (`BuildRecord.raise_if_failed` turns it into one).

    Args:
        registry: where the model's files and data are.
        model: the version to build.
        targets: profiles, each once.
        out: OCI layout folder, created when absent; also gets ``build-record.json``.
        writer: writes bundles, e.g. `edgekit.package.bundle.OciBundleWriter`.
        cache: step cache; the default folder when None.
        host: facts of this machine; detected when None.
        time_budget_s: for the search, shared among the targets; full precision by each engine and
            one quantized candidate are measured in any case, and the step in hand is completed. A
            search that ran out of time goes on where it was in the next build.
        memory_bytes: that its processes may take together; None: most of what is free now. A step
            that needs more is dropped and said, and so many run side by side as fit.
        fold_preprocessing: let the graphs of the variants do what the contract declares to be done
            before; their contract then declares none.
        devices: by target, where to measure instead of here.
        on_progress: called as each unit of work begins.

    Raises:
        BadInputError: the data cannot resolve the budget, or the original cannot be run.
        GateFailedError: a target has no candidate at all.
        ResourceError: disk or memory is exhausted.
        UsageError: no targets, or one twice.
    """
    names = [target.name for target in targets]
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "give at least one target, and each only once", hint="-t rpi5 -t x86-64-v3"
        )
    dataset.check_resolvable(model.contract.quality, model.dataset(Split.EVALUATION).n)
    cache = cache or Cache()
    attempt = partial(
        _build,
        registry,
        model,
        targets,
        out,
        writer=writer,
        cache=cache,
        host=host or detect(),
        deadline=time.monotonic() + time_budget_s,
        memory_bytes=memory_bytes,
        fold_preprocessing=fold_preprocessing,
        devices=devices or {},
        tick=_Ticker(2 + len(targets) * _UNITS_PER_TARGET, on_progress),
    )
    for _ in range(_ALTERED_MAX):
        try:
            return attempt()
        except AlteredError as exc:  # noqa: PERF203 - all else is found again in the cache
            if not cache.forget(exc.path):
                raise
    return attempt()


def _build(
    registry: Registry,
    model: ModelVersion,
    targets: Sequence[TargetProfile],
    out: Path,
    *,
    writer: BundleWriter,
    cache: Cache,
    host: Host,
    deadline: float,
    memory_bytes: int | None,
    fold_preprocessing: bool,
    devices: Mapping[str, Device],
    tick: Callable[[str], None],
) -> BuildRecord:
    with cache.scratch() as scratch:
        tick("fetching and normalising the model")
        study = prepare(registry, model, cache, scratch, fold_preprocessing=fold_preprocessing)
        contract, processes = neutral(study.variant_contract), Processes(memory_bytes)
        reached = _reach(targets, devices, processes, scratch)
        measurer = Measurer(cache, writer, host, contract, processes, reached)
        quantization = Quantization(study, cache, host, contract, scratch, processes)
        finisher = Finisher(study, measurer, host, tick)
        builder = VariantBuilder(study, quantization, measurer, host, tick, finisher)
        chosen = []
        for index, target in enumerate(targets):
            left = max(0.0, deadline - time.monotonic()) / (len(targets) - index)
            chosen.append((target, builder.build(target, budget_s=left)))
        inspector = Inspector(study, measurer, host, scratch, tick)
        facts: dict[str, object] = {
            "inputs": _inputs(model),
            "tools": tools.versions(),
            "normalised": study.notes,
        }
        variants = []
        for target, result in chosen:
            measured_on = {"quality_measured_on": _measured_on(result)}
            contents = _contents(study, model, target, result, {**facts, **measured_on})
            written = _write(out, writer, _head(model, target, result), contents, result)
            made = _record(model, target, result, written)
            layers = inspector.inspect(target, result)
            variants.append(msgspec.structs.replace(made, layers=layers))
        ranges = quantization.ranges()
    record = BuildRecord(
        model=model.name,
        version=model.version,
        model_digest=model.digest,
        inputs=_inputs(model),
        samples={entry.split.value: entry.n for entry in model.datasets},
        tools=tools.versions(),
        host=host.facts(),
        normalised=study.notes,
        warnings=study.warnings,
        variants=tuple(variants),
    )
    files.write_atomic(out / report.REPORT_FILE, report.page(record, ranges))
    files.write_atomic(out / RECORD_FILE, codec.encode_pretty(record))
    return record


def _reach(
    targets: Sequence[TargetProfile],
    devices: Mapping[str, Device],
    processes: Processes,
    scratch: Path,
) -> dict[str, Device]:
    """Before anything is built: one that does not answer must not cost an hour."""
    if unknown := sorted(set(devices) - {target.name for target in targets}):
        raise UsageError(
            f"a device of {unknown[0]}, which is not built", hint=f"-t {unknown[0]}, or leave it"
        )
    by_name = {target.name: target for target in targets}
    return {
        name: reach(device, by_name[name], processes, scratch) for name, device in devices.items()
    }


def _precision(result: Chosen) -> dict[str, str]:
    """The precision in which the engine computes, where it has a choice."""
    found = result.final.evaluation.engine_facts.get("inference_precision")
    return {"inference_precision": found} if found else {}


def _inputs(model: ModelVersion) -> dict[str, str]:
    splits = {entry.split.value: entry.digest for entry in model.datasets}
    return {"model": model.file().sha256, **splits}


def _measured_on(result: Chosen) -> str:
    final = result.final.evaluation
    return f"{final.machine}, {final.engine} {final.engine_version}"


def _head(model: ModelVersion, target: TargetProfile, result: Chosen) -> BundleHead:
    candidate = result.trial.figures.candidate
    return BundleHead(
        model=model.name,
        version=model.version,
        target=target.name,
        precision=candidate.precision,
        engine=candidate.engine.value,
        engine_versions=target.versions_of(candidate.engine.value),
        labels={
            "candidate": candidate.name,
            "validated": result.level.value,
            **_precision(result),
            **({"accelerate": "tensorrt"} if target.jetpack else {}),
        },
        engine_options=candidate.engine_options,
    )


def _contents(
    study: Study,
    model: ModelVersion,
    target: TargetProfile,
    result: Chosen,
    facts: Mapping[str, object],
) -> list[BundleContent]:
    level = {"validated": result.level.value, "emulated_on": result.emulated_on}
    document = derive.evidence(
        model, target, result.candidates, result.verdicts, {**facts, **level}
    )
    found = reference.derive(
        model.contract, study.evaluation_inputs, result.final.outputs, study.evaluation_labels
    )
    card = derive.card(model, target, result.verdicts, found)
    contents = [
        *result.trial.artifact.contents(),
        BundleContent("contract.json", Role.CONTRACT, codec.encode(study.variant_contract)),
        BundleContent("golden.npz", Role.GOLDEN, result.golden),
        BundleContent("tolerance.json", Role.TOLERANCE, result.tolerance),
        BundleContent("evidence.json", Role.EVIDENCE, codec.encode(document)),
        BundleContent("card.md", Role.CARD, card),
    ]
    if found is not None:
        contents.append(BundleContent("reference.json", Role.REFERENCE, codec.encode(found)))
    if result.expectation is not None:
        contents.append(BundleContent("shadow.json", Role.SHADOW, codec.encode(result.expectation)))
    return contents


def _write(
    out: Path,
    writer: BundleWriter,
    head: BundleHead,
    contents: Sequence[BundleContent],
    result: Chosen,
) -> WrittenBundle | None:
    """Write the bundle of a variant that passed; withdraw an older one of one that did not."""
    if result.outcome is Outcome.PASS:
        return writer.write(out, head, contents)
    writer.withdraw(out, head.model, head.version, head.target)
    return None


def _record(
    model: ModelVersion,
    target: TargetProfile,
    result: Chosen,
    written: WrittenBundle | None,
) -> VariantRecord:
    figures = result.trial.figures
    latency = figures.latency
    return VariantRecord(
        target=target.name,
        precision=figures.candidate.precision,
        candidate=figures.candidate.name,
        outcome=result.outcome,
        metric=model.contract.quality.metric,
        quality=result.comparison.quality,
        original_quality=result.comparison.original_quality,
        quality_drop=result.drop.estimate,
        quality_drop_upper=result.drop.upper,
        evaluation_samples=result.drop.n,
        size_bytes=figures.size_bytes,
        original_size_bytes=model.file().size,
        latency_ms=latency.p50_ms if latency else None,
        latency_ms_p95=latency.p95_ms if latency else None,
        original_latency_ms=result.original_latency_ms,
        validated=result.level.value,
        emulated_on=result.emulated_on,
        engine=figures.candidate.engine.value,
        looks=result.looks,
        quality_measured_on=_measured_on(result),
        verdicts=result.verdicts,
        repository=model.name,
        digest=written.digest if written else None,
        bundle_bytes=written.size if written else None,
        tag=f"{model.name}-{model.version}-{target.name}" if written else None,
        candidates=result.candidates,
        search=result.search,
        nondeterministic=tuple(_nondeterministic(result)),
    )


def _nondeterministic(result: Chosen) -> Iterator[str]:
    """What of a build does not follow from its inputs alone; all else gives equal bytes."""
    if result.trial.figures.latency is not None:
        yield "choice: latencies were measured, and decide between candidates"
    if not result.search.complete:
        yield "search: it ran out of time"
    starved = [entry.name for entry in result.candidates if STARVED in entry.reason]
    if starved:
        yield f"candidates: memory was too little for {', '.join(starved)}"
