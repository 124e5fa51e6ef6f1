"""Quantizes a batch of candidates of one model, as a process: ``python -m … REQUEST.json``.

A process of its own, because quantizers crash, exhaust memory and write to stderr; none of that may
reach the build. For each job in order, one JSON line on stdout: ``{"error": null | "…"}``, with the
layers whose weights were reduced to 7 bits and the share that runs in integers. What is made for
OpenVINO is compiled to IR here. When the process dies, the lines tell which job it was; when its
time is over it ends in order behind the job in hand, and ``{"stopped": true}`` is its last line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import onnx

from edgekit.build import saturation
from edgekit.build.candidates import Candidate, Engine, Reduce, Scheme
from edgekit.build.quantizers import coverage, nncf_ptq, openvino_ir
from edgekit.build.quantizers.base import Quantizer
from edgekit.build.quantizers.fp16 import Fp16
from edgekit.build.quantizers.ort_dynamic import Dynamic
from edgekit.build.quantizers.ort_static import Explicit, Static
from edgekit.build.quantizers.weight_only import WeightOnly
from edgekit.build.ranges import Ranges
from edgekit.build.steps.normalise import quiet_logs
from edgekit.build.steps.structure import structure_of
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.registry import npz

QUANTIZERS: dict[Scheme, Quantizer] = {
    Scheme.STATIC: Static(),
    Scheme.EXPLICIT: Explicit(),
    Scheme.DYNAMIC: Dynamic(),
    Scheme.WEIGHT_ONLY: WeightOnly(),
    Scheme.FP16: Fp16(),
}
# Made by optimising for one CPU: wrong answers were seen on others, and no ARM build loads it.
_FORBIDDEN_DOMAIN = "com.microsoft.nchwc"


class Job(msgspec.Struct, frozen=True):
    """One candidate and the file it goes to; IR puts its weights beside, as ``.bin``."""

    candidate: Candidate
    target: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs over one normalised model."""

    model: str
    ranges: str | None
    data: str  # calibration data in the registry's canonical form, for who calibrates by itself
    contract: Contract
    jobs: tuple[Job, ...]
    seconds: float | None = None  # after which no job is begun but the first; None: all are


def quantize(
    model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
) -> onnx.ModelProto:
    """The form of ``model`` that ``candidate`` asks for; ``model`` is left as it is.

    Raises:
        Exception: whatever the quantizer raises, or `ValueError` for a result that must not ship.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with quiet_logs():
        made = QUANTIZERS[candidate.scheme].quantize(copy, candidate, ranges)
    if any(node.domain == _FORBIDDEN_DOMAIN for node in made.graph.node):
        raise ValueError(f"the result holds operators of {_FORBIDDEN_DOMAIN}: it runs on one CPU")
    return made


def make(model: onnx.ModelProto, ranges: Ranges | None, request: Request, job: Job) -> float | None:
    """Write the file of ``job``; returns the share of its quantized layers that stay so.

    Raises:
        Exception: whatever quantizer or compiler raises.
    """
    candidate, target = job.candidate, Path(job.target)
    calibrates = candidate.scheme is Scheme.NNCF
    data = npz.open_mapped(Path(request.data)) if calibrates else {}
    if candidate.engine is Engine.OPENVINO:
        with tempfile.TemporaryDirectory() as folder:
            # Half precision and no quantization at all are for OpenVINO to store.
            stored = candidate.scheme in {Scheme.NONE, Scheme.FP16, Scheme.NNCF}
            onnx_form = model if stored else quantize(model, candidate, ranges)
            found = openvino_ir.read(onnx_form, Path(folder))
            if calibrates:
                found = nncf_ptq.quantize(found, candidate, data, request.contract)
            openvino_ir.save(found, target, half=candidate.scheme is Scheme.FP16)
            wanted = len(candidate.layers_of(structure_of(model)))
            return openvino_ir.coverage(found, wanted)
    if calibrates:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        made = nncf_ptq.quantize(copy, candidate, data, request.contract)
    else:
        made = quantize(model, candidate, ranges)
    onnx.save(made, target)
    if candidate.scheme not in {Scheme.STATIC, Scheme.NNCF}:
        return None  # float arithmetic, integer operators already, or TensorRT's to fuse
    with tempfile.TemporaryDirectory() as folder:
        return coverage.of_onnx(made, Path(folder))


def main(path: str) -> None:
    """Run the request at ``path``; the exit status is 0 when the lines tell every outcome."""
    begun = time.monotonic()
    request = codec.read(Request, Path(path))
    model = onnx.load(request.model)
    ranges = codec.read(Ranges, Path(request.ranges)) if request.ranges else None
    for index, job in enumerate(request.jobs):
        if index and request.seconds is not None and time.monotonic() - begun > request.seconds:
            print(json.dumps({"stopped": True}), flush=True)
            return
        error: str | None = None
        reduced: tuple[str, ...] = ()
        share: float | None = None
        try:
            if job.candidate.reduce_range is Reduce.WHERE and ranges is not None:
                reduced = saturation.layers(model, job.candidate, ranges)
            # Progress bars of foreign code belong where nobody parses.
            with contextlib.redirect_stdout(sys.stderr):
                share = make(model, ranges, request, job)
        except (MemoryError, OSError):
            raise  # not a property of the candidate: the process ends with it, nothing is cached
        except Exception as exc:  # noqa: BLE001 - foreign code; the exact error is the answer
            error = " ".join(f"{type(exc).__name__}: {exc}".split())
        print(json.dumps({"error": error, "reduced": reduced, "coverage": share}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
