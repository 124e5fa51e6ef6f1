"""Which variants compete for a target. The unquantized model always does: INT8 has to win."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

from edgekit.build.target import Activations, TargetProfile

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
WEIGHT_OPS = CONVOLUTIONS | {"Gemm", "MatMul"}
# Dynamic quantization of Conv is 3 to 10 times slower than fp32 on CPUs, so it is not offered.
DYNAMIC_OPS = frozenset({"Attention", "Gemm", "LSTM", "MatMul"})


class Scheme(str, Enum):
    """How a variant is made."""

    NONE = "none"  # computes as registered
    STATIC = "static"  # QDQ with calibrated activation ranges
    EXPLICIT = "explicit"  # symmetric QDQ with float bias, as TensorRT wants it
    DYNAMIC = "dynamic"  # activations are quantized anew in each run
    WEIGHT_ONLY = "weight_only"  # weights are stored as int8, arithmetic is float
    FP16 = "fp16"  # for OpenVINO: weights stored in half precision
    NNCF = "nncf"  # NNCF chooses what to quantize, calibrates and corrects biases by itself


class Engine(str, Enum):
    """What runs a variant; its file is made for it."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class Ops(str, Enum):
    """Which operators are quantized."""

    WEIGHTS = "weights"  # Conv, ConvTranspose, MatMul and Gemm with constant weights
    ALL = "all"  # everything the quantizer knows
    CONV = "conv"  # convolutions only
    BODY = "body"  # as weights, without the last layer: heads hurt most


class Calibration(str, Enum):
    """How activation ranges follow from what calibration saw."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Reduce(str, Enum):
    """Whether weights keep to 7 bits, for instructions whose 16-bit sums saturate."""

    NEVER = "never"
    WHERE = "where"  # only where calibrated inputs and weights can reach the limit
    ALWAYS = "always"


class Layer(msgspec.Struct, frozen=True):
    """A node with constant weights, in graph order."""

    name: str
    op: str


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice of candidates needs to know about a normalised graph."""

    layers: tuple[Layer, ...]
    ops: tuple[str, ...]  # operator types, sorted
    quantized: bool  # holds quantized arithmetic already
    attention: bool = False  # multiplies activations by activations and has a softmax


_LAYOUT = "-layout"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to make a variant; equal candidates of two targets are one piece of work."""

    name: str
    precision: str
    scheme: Scheme = Scheme.NONE
    engine: Engine = Engine.ONNXRUNTIME
    ops: Ops | None = None
    activations: Activations | None = None
    per_channel: bool = True
    reduce_range: Reduce = Reduce.NEVER
    calibration: Calibration = Calibration.MINMAX
    floats: tuple[str, ...] = ()  # nodes left in float
    only: tuple[str, ...] = ()  # quantize these nodes alone: a probe, never shipped
    transformer: bool = False  # NNCF only: patterns of attention are known to it
    layout: bool = False  # ONNX Runtime blocks tensors for the processor it finds when it loads

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are calibrated beforehand."""
        return self.scheme in {Scheme.STATIC, Scheme.EXPLICIT}

    @property
    def unquantized(self) -> bool:
        """Whether it computes what the registered model computes, in the engine it came with."""
        plain = self.scheme is Scheme.NONE and self.engine is Engine.ONNXRUNTIME
        return plain and not self.layout

    @property
    def is_float_otherwise(self) -> bool:
        """Whether it is the registered model in full precision, by another engine or layout."""
        return self.scheme is Scheme.NONE and not self.unquantized

    @property
    def engine_options(self) -> dict[str, str]:
        """How the engine is to run it, beside its defaults."""
        return {"graph_optimization": "all"} if self.layout else {}

    @property
    def file(self) -> Candidate:
        """The candidate whose file this one is, too: what an engine does at load is in no file."""
        if not self.layout:
            return self
        return msgspec.structs.replace(self, name=self.name.removesuffix(_LAYOUT), layout=False)

    @property
    def computes_in_float(self) -> bool:
        """Whether speed can only come from elsewhere than integer arithmetic."""
        return self.scheme in {Scheme.NONE, Scheme.WEIGHT_ONLY, Scheme.FP16}

    def layers_of(self, structure: Structure) -> tuple[str, ...]:
        """Names of the weight layers this candidate quantizes, in graph order."""
        if self.scheme in {Scheme.NONE, Scheme.FP16, Scheme.NNCF}:
            return ()
        if self.only:
            return self.only
        ops = DYNAMIC_OPS if self.scheme is Scheme.DYNAMIC else WEIGHT_OPS
        if self.ops is Ops.CONV:
            ops = CONVOLUTIONS
        names = [layer.name for layer in structure.layers if layer.op in ops]
        if self.ops is Ops.BODY:
            names = names[:-1]
        return tuple(name for name in names if name not in self.floats)


FP32 = Candidate(name="fp32", precision="fp32")
# What is quantized already is passed through: quantizing twice adds up two errors.
AS_REGISTERED = Candidate(name="as-registered", precision="quantized")


def candidates_for(target: TargetProfile, structure: Structure) -> tuple[Candidate, ...]:
    """The first round of ``target``: schemes x operator sets x granularity.

    The unquantized first, then what wins most often: a search may have no time for all.
    """
    if structure.quantized:
        return (AS_REGISTERED,)
    if target.jetpack:
        return _for_tensorrt(target, structure)
    kinds = {layer.op for layer in structure.layers}
    found = [FP32, _static(target, Ops.WEIGHTS), _static(target, Ops.ALL)]
    if not kinds:
        # Said once, by the quantizer itself, with its exact error.
        return tuple(found[:2])
    found.append(_static(target, Ops.WEIGHTS, per_channel=False))
    if kinds & CONVOLUTIONS and kinds - CONVOLUTIONS:
        found.append(_static(target, Ops.CONV))
    if len(structure.layers) > 1:
        found.append(_static(target, Ops.BODY))
    if DYNAMIC_OPS & set(structure.ops):
        # What inputs will be is known in each run only: the worst case is that they fill the range.
        reduce, mark = (Reduce.ALWAYS, "-rr") if target.reduce_range else (Reduce.NEVER, "")
        found += [
            Candidate(
                name=f"int8-dynamic{grain}{mark}",
                precision="int8",
                scheme=Scheme.DYNAMIC,
                ops=Ops.WEIGHTS,
                per_channel=not grain,
                reduce_range=reduce,
            )
            for grain in ("", "-pt")  # per channel an LSTM is nearer to float, and a sixth slower
        ]
    found.append(
        Candidate(name="weights8", precision="w8", scheme=Scheme.WEIGHT_ONLY, ops=Ops.WEIGHTS)
    )
    found.append(Candidate(name="fp16", precision="fp16", scheme=Scheme.FP16))
    if target.openvino_versions is not None:
        found += _for_openvino(found)
    return tuple(sorted(found, key=_turn))


def _turn(candidate: Candidate) -> int:
    """One of each kind comes before variations of any; first what cannot lose quality.

    Full precision needs no calibration either, which for a large model takes as long as a search.
    """
    if candidate.scheme is Scheme.NONE:
        return 0
    plain = candidate.per_channel and candidate.ops in {None, Ops.WEIGHTS}
    if not plain or candidate.scheme in {Scheme.WEIGHT_ONLY, Scheme.FP16}:
        return 3
    return 1 if candidate.engine is Engine.ONNXRUNTIME else 2


def in_openvino(candidate: Candidate) -> Candidate:
    """``candidate`` as IR for OpenVINO."""
    return msgspec.structs.replace(candidate, name=f"ov-{candidate.name}", engine=Engine.OPENVINO)


def with_layout(candidate: Candidate) -> Candidate:
    """``candidate``, its tensors blocked for the processor by the engine that loads it.

    The file stays as it is, and so does what it may run on: a graph *stored* after such a change
    answers wrongly on another processor.
    """
    return msgspec.structs.replace(candidate, name=candidate.name + _LAYOUT, layout=True)


def _for_openvino(others: Sequence[Candidate]) -> list[Candidate]:
    """The same by OpenVINO; dynamic quantization and int8 storage are ONNX Runtime's own forms."""
    own = {Scheme.NONE, Scheme.STATIC, Scheme.FP16}
    return [in_openvino(each) for each in others if each.scheme in own]


def by_nncf(target: TargetProfile, structure: Structure) -> tuple[Candidate, ...]:
    """What NNCF makes of the model, for each engine; a transformer with and without its patterns.

    Its calibration takes seconds, so these are the first thing a search tries and no part of the
    fixed first round.
    """
    if structure.quantized or target.jetpack or not structure.layers:
        return ()
    reduce, mark = (Reduce.ALWAYS, "-rr") if target.reduce_range else (Reduce.NEVER, "")
    plain = Candidate(
        name=f"int8-nncf{mark}", precision="int8", scheme=Scheme.NNCF, reduce_range=reduce
    )
    found = [plain]
    if structure.attention:
        name = f"int8-nncf-transformer{mark}"
        found.insert(0, msgspec.structs.replace(plain, name=name, transformer=True))
    if target.openvino_versions is not None:
        found += [in_openvino(each) for each in found]
    return tuple(found)


def _for_tensorrt(target: TargetProfile, structure: Structure) -> tuple[Candidate, ...]:
    """Symmetric Q/DQ where the GPU has INT8; half precision is the engine's own business there.

    TensorRT chooses precisions inside what Q/DQ leaves open, so there is no fp16 file to ship.
    """
    if not target.tensorrt_int8:
        return (FP32,)
    kinds = {layer.op for layer in structure.layers}
    sets = [Ops.WEIGHTS]
    if kinds & CONVOLUTIONS and kinds - CONVOLUTIONS:
        sets.append(Ops.CONV)
    if len(structure.layers) > 1:
        sets.append(Ops.BODY)
    explicit = (
        Candidate(
            name=f"int8-trt-{ops.value}",
            precision="int8",
            scheme=Scheme.EXPLICIT,
            ops=ops,
            activations=Activations.S8,
        )
        for ops in sets
    )
    return (FP32, *explicit)


def _static(target: TargetProfile, ops: Ops, *, per_channel: bool = True) -> Candidate:
    reduce, mark = (Reduce.WHERE, "-rr") if target.reduce_range else (Reduce.NEVER, "")
    return Candidate(
        name=f"int8-{ops.value}-{target.activations.value}{mark}{'' if per_channel else '-pt'}",
        precision="int8",
        scheme=Scheme.STATIC,
        ops=ops,
        activations=target.activations,
        per_channel=per_channel,
        reduce_range=reduce,
    )
