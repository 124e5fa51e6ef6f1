"""What a build leaves behind: one record per run, JSON, for people and for later gates."""

from __future__ import annotations

import msgspec

from edgekit.contracts.errors import GateFailedError
from edgekit.contracts.evaluation import NodeTime
from edgekit.contracts.verdict import Outcome, Verdict, combine

RECORD_FILE = "build-record.json"


class CandidateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of one target. Quality figures are those of the tuning split."""

    name: str
    precision: str
    engine: str = "onnxruntime"
    outcome: str  # chosen | passed_over | gate_failed | dropped | probe
    reason: str
    size_bytes: int | None = None
    quality: float | None = None
    quality_drop: float | None = None
    quality_drop_upper: float | None = None
    latency_ms: float | None = None
    noise: float | None = None  # distance of the outputs from the original's, relative
    floats: tuple[str, ...] = ()  # layers that went back to float
    reduced: tuple[str, ...] = ()  # layers with 7-bit weights, because 8 bits could saturate
    coverage: float | None = None  # share of the quantized layers that run in integers
    pareto: bool = False  # nothing else is at least as good in drop, latency and size

    @property
    def probed(self) -> str:
        """The layer a probe quantized alone."""
        return self.name.partition("~only(")[2].removesuffix(")")


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One weight layer of the chosen variant; None is what is not known.

    Errors are those of its output, relative (L2) to that in the float model: ``error`` as it is,
    ``own_error`` when the layer gets the inputs it has in the float model.
    """

    name: str
    op: str
    error: float | None = None
    own_error: float | None = None
    us: float | None = None  # in the variant, by the engine's profiler
    original_us: float | None = None  # the same in the float model


class LayersRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the chosen variant does layer by layer.

    Times are means on hardware that is the target, and none elsewhere; they differ from run to run.
    The float model is the normalised one: its layers have names.
    """

    samples: int  # of the tuning data, over which errors were summed
    layers: tuple[LayerRecord, ...]  # in graph order
    nodes: tuple[NodeTime, ...] = ()  # of the variant, by the engine's names, in its order
    original_nodes: tuple[NodeTime, ...] = ()
    unknown: tuple[str, ...] = ()  # what is missing, and why

    def ranked(self) -> list[LayerRecord]:
        """Layers that err most by themselves first; where that is not known, the slowest."""
        return sorted(self.layers, key=lambda each: (-(each.own_error or 0.0), -(each.us or 0.0)))

    def slowest(self) -> list[NodeTime]:
        """Operators of the variant, the slowest first."""
        return sorted(self.nodes, key=lambda each: -each.us)


class SearchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How far the search went beyond its first round; what is left is `next`, and so on."""

    complete: bool
    tried: int
    next: str | None


class VariantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The variant built for one target; figures are those of the evaluation split.

    ``digest`` and ``bundle_bytes`` are None when a gate failed: there is no bundle then.
    Latencies are medians, and None unless measured on hardware that is the target.
    """

    target: str
    precision: str
    candidate: str
    outcome: Outcome
    metric: str
    quality: float
    original_quality: float
    quality_drop: float
    quality_drop_upper: float
    evaluation_samples: int
    size_bytes: int
    original_size_bytes: int
    latency_ms: float | None
    latency_ms_p95: float | None
    original_latency_ms: float | None
    validated: str  # native | emulated | none
    emulated_on: str | None  # the emulator, when the artifact ran under one
    engine: str = "onnxruntime"
    looks: int = 1  # at the evaluation split; each further one had to be more certain
    quality_measured_on: str
    verdicts: tuple[Verdict, ...]
    repository: str
    digest: str | None
    bundle_bytes: int | None
    tag: str | None
    candidates: tuple[CandidateRecord, ...]
    search: SearchRecord
    nondeterministic: tuple[str, ...] = ()  # steps that may go another way with the same inputs
    layers: LayersRecord | None = None


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run."""

    schema: int = 1
    model: str
    version: str
    model_digest: str  # of the registered content
    inputs: dict[str, str]  # original model and each split -> digest
    samples: dict[str, int]  # per split
    tools: dict[str, str]
    host: dict[str, str]
    normalised: tuple[str, ...]  # what was done to the graph before quantization
    warnings: tuple[str, ...] = ()  # what the data leave in doubt
    variants: tuple[VariantRecord, ...]

    @property
    def outcome(self) -> Outcome:
        """Pass when every target has a bundle."""
        return combine(verdict for variant in self.variants for verdict in variant.verdicts)

    def variant(self, target: str) -> VariantRecord:
        """The variant of ``target``."""
        return next(variant for variant in self.variants if variant.target == target)

    def raise_if_failed(self) -> None:
        """Raises `GateFailedError` naming target, gate and figures of the first failure."""
        for variant in self.variants:
            for verdict in variant.verdicts:
                if verdict.outcome is not Outcome.PASS:
                    raise GateFailedError(
                        f"{variant.target}: gate {verdict.metric} failed: {verdict.reason}",
                        hint="see the candidates in the build record; no bundle was written for "
                        "this target",
                    )
