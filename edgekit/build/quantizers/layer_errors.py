"""What each weight layer of a variant gets wrong, as a process: ``python -m … REQUEST.json``.

The measure is the relative error ``||v - f|| / ||f||`` (L2 norms over all samples) of the layer's
output ``v`` in the variant against ``f`` in the float model it was made from; the signal-to-noise
ratio that ONNX Runtime's ``qdq_loss_debug`` prints is ``-20 log10`` of it. Two errors are told
apart: of the output as it is, all that went wrong before included, and of the layer alone, fed what
it gets in the float model. Tensors are found by their names, which quantizers keep. Graphs run as
they are written, without fusions that would hide them. One JSON line on stdout is the answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from edgekit.build.quantizers.base import initializers
from edgekit.build.quantizers.calibrate import Array, feeds, plain_session, showing
from edgekit.build.steps.normalise import quiet_logs
from edgekit.build.steps.structure import layers
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.registry import npz

SAMPLES_MAX = 16  # more change the second digit
SECONDS_MAX = 5.0  # then no other sample is begun: large models compute for seconds each
_MERGED = frozenset({"Clip", "Relu"})  # what a quantized layer does by the ends of its range
_TYPES: dict[str, tuple[int, type]] = {
    "tensor(float)": (onnx.TensorProto.FLOAT, np.float32),
    "tensor(float16)": (onnx.TensorProto.FLOAT16, np.float16),
    "tensor(double)": (onnx.TensorProto.DOUBLE, np.float64),
}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Which variant of which float model, and samples to run both on."""

    model: str
    variant: str
    data: str  # samples by input name
    contract: Contract


class LayerError(msgspec.Struct, frozen=True, kw_only=True):
    """Relative errors of one layer; None where the variant has no tensor to compare."""

    name: str
    error: float | None = None
    own_error: float | None = None


class LayerErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: ``error`` is the reason why there is none."""

    samples: int = 0
    layers: tuple[LayerError, ...] = ()
    error: str | None = None


class _Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A layer in both graphs: what goes in, and what comes out in each."""

    name: str
    inputs: tuple[str, ...]
    before: str  # output in the float model
    after: str  # the same in the variant


class _Graph:
    """Who makes and who takes each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.outputs = {value.name for value in model.graph.output}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def as_seen(self, name: str) -> str:
        """``name``, or its rounded form where nothing else is made of it."""
        takers = self.takers.get(name, [])
        if not takers or name in self.outputs:
            return name
        if any(node.op_type != "QuantizeLinear" for node in takers):
            return name
        behind = self.takers.get(takers[0].output[0], [])
        return behind[0].output[0] if behind else name


def _seats(model: onnx.ModelProto, variant: onnx.ModelProto) -> Iterator[_Seat]:
    """The weight layers of ``model`` whose outputs ``variant`` has, too."""
    before, after = _Graph(model), _Graph(variant)
    constant = set(initializers(model))
    named = {layer.name for layer in layers(model)}
    for node in model.graph.node:
        outputs = [name for name in node.output if name]
        if node.name not in named or not outputs:
            continue
        output = outputs[0]
        takers = before.takers.get(output, [])
        if output not in after.makers and [taker.op_type in _MERGED for taker in takers] == [True]:
            output = takers[0].output[0]
        if output in after.makers:
            inputs = tuple(dict.fromkeys(n for n in node.input if n and n not in constant))
            yield _Seat(name=node.name, inputs=inputs, before=output, after=after.as_seen(output))


def _alone(
    variant: onnx.ModelProto, seats: Sequence[_Seat], types: Mapping[str, str]
) -> tuple[onnx.ModelProto, set[int]]:
    """One graph of all layers side by side, each with inputs of its own; which ones are in it.

    The tensors of layer number 3 are called ``3/…``. One that takes more than it does in the float
    model, or whose inputs are gone, is left out.
    """
    graph, constant = _Graph(variant), set(initializers(variant))
    apart = showing(variant, [])
    del apart.graph.node[:]
    del apart.graph.input[:]
    there: set[int] = set()
    for index, seat in enumerate(seats):
        between = _between(graph, seat, constant)
        if between is None or any(types.get(name) not in _TYPES for name in seat.inputs):
            continue
        there.add(index)
        for node in between:
            copy = apart.graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{index}/{node.name}"
            for field in (copy.input, copy.output):
                field[:] = [n if not n or n in constant else f"{index}/{n}" for n in field]
        for name in seat.inputs:
            value = apart.graph.input.add(name=f"{index}/{name}")
            value.type.tensor_type.elem_type = _TYPES[types[name]][0]
        apart.graph.output.add(name=f"{index}/{seat.after}")
    return apart, there


def _between(graph: _Graph, seat: _Seat, constant: Collection[str]) -> list[onnx.NodeProto] | None:
    """The nodes from a layer's inputs to its output in graph order; None where others feed it."""
    left, found = [seat.after], set()
    while left:
        name = left.pop()
        if not name or name in seat.inputs or name in constant:
            continue
        maker = graph.makers.get(name)
        if maker is None or any(each.HasField("g") for each in maker.attribute):
            return (
                None  # an input of the whole graph; a branch or loop may take what it does not say
            )
        if maker.output[0] not in found:
            found.add(maker.output[0])
            left += maker.input
    return [node for node in graph.nodes if node.output and node.output[0] in found]


class _Sums:
    """Squares of differences and of what they are relative to."""

    def __init__(self) -> None:
        self._lost = self._whole = 0.0

    def add(self, wanted: Array, found: Array) -> None:
        wanted = wanted.astype(np.float64)
        self._lost += float(np.square(found.astype(np.float64) - wanted).sum())
        self._whole += float(np.square(wanted).sum())

    def relative(self) -> float | None:
        """None where nothing was added, the layer is silent, or its values are not finite."""
        value = np.sqrt(self._lost / self._whole) if self._whole else np.nan
        return float(value) if np.isfinite(value) else None


def errors_of(
    model: onnx.ModelProto, variant: onnx.ModelProto, samples: Iterable[Mapping[str, Array]]
) -> tuple[LayerError, ...]:
    """Errors of every weight layer of ``model``, over ``samples``; they are held one at a time.

    Raises:
        Exception: whatever ONNX Runtime raises.
    """
    seats = list(_seats(model, variant))
    given = {value.name for value in model.graph.input}
    wanted = [each for seat in seats for each in (seat.before, *seat.inputs)]
    shown = list(dict.fromkeys(name for name in wanted if name not in given))
    before = plain_session(showing(model, shown))
    after, types = _typed(variant, seats)
    apart, there = _alone(variant, seats, types)
    alone = plain_session(apart) if there else None
    whole = {index: _Sums() for index in range(len(seats))}
    own = {index: _Sums() for index in sorted(there)}
    for feed in samples if seats else ():
        exact = dict(feed) | dict(zip(shown, before.run(shown, dict(feed)), strict=True))
        for index, found in enumerate(after.run([seat.after for seat in seats], dict(feed))):
            whole[index].add(exact[seats[index].before], found)
        if alone is None:
            continue
        fed = {
            f"{index}/{name}": exact[name].astype(_TYPES[types[name]][1])
            for index in own
            for name in seats[index].inputs
        }
        for index, found in zip(
            own, alone.run([f"{index}/{seats[index].after}" for index in own], fed), strict=True
        ):
            own[index].add(exact[seats[index].before], found)
    known = {
        seat.name: LayerError(
            name=seat.name,
            error=whole[index].relative(),
            own_error=own[index].relative() if index in own else None,
        )
        for index, seat in enumerate(seats)
    }
    return tuple(known.get(layer.name, LayerError(name=layer.name)) for layer in layers(model))


def _typed(
    variant: onnx.ModelProto, seats: Sequence[_Seat]
) -> tuple[ort.InferenceSession, dict[str, str]]:
    """The variant, telling outputs of its layers; and types of their inputs, where it has them."""
    graph = _Graph(variant)
    inputs = [name for seat in seats for name in seat.inputs if name in graph.makers]
    shown = dict.fromkeys([*(seat.after for seat in seats), *inputs])
    session = plain_session(showing(variant, list(shown)))
    entries = (*session.get_inputs(), *session.get_outputs())
    return session, {entry.name: entry.type for entry in entries}


class Some:
    """The first ``most`` of ``feeds``, or as many as there is time for, one at the least."""

    def __init__(self, feeds: Iterable[Mapping[str, Array]], most: int) -> None:
        self._feeds, self._most = feeds, most
        self.taken = 0

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        begun = time.monotonic()
        for feed in islice(self._feeds, self._most):
            if self.taken and time.monotonic() - begun > SECONDS_MAX:
                return
            self.taken += 1
            yield feed


def main(path: str) -> None:
    """Run the request at ``path``; the exit status is 0 when the answer line tells the outcome."""
    request = codec.read(Request, Path(path))
    try:
        arrays = npz.open_mapped(Path(request.data))
        model, variant = onnx.load(request.model), onnx.load(request.variant)
        first = request.contract.inputs[0].shape[0]
        batch = first if isinstance(first, int) else 1
        samples = Some(feeds(arrays, request.contract, 1), max(1, SAMPLES_MAX // batch))
        with quiet_logs():
            found = errors_of(model, variant, samples)
        answer = LayerErrors(samples=samples.taken * batch, layers=found)
    except (MemoryError, OSError):
        raise  # not a property of the model: the process ends with it, and nothing is cached
    except Exception as exc:  # noqa: BLE001 - foreign code; the exact error is the answer
        answer = LayerErrors(error=" ".join(f"{type(exc).__name__}: {exc}".split()))
    print(codec.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
