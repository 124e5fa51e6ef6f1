"""Quantizes a batch of candidates of one model, as a process: ``python -m … REQUEST.json``.

A process of its own, because quantizers crash, exhaust memory and write to stderr; none of that may
reach the build. For each job in order, one JSON line on stdout: ``{"error": null | "…"}``, with the
layers whose weights were reduced to 7 bits. When the process dies, the lines tell which job it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import onnx

from edgekit.build import saturation
from edgekit.build.candidates import Candidate, Reduce, Scheme
from edgekit.build.quantizers.base import Quantizer
from edgekit.build.quantizers.fp16 import Fp16
from edgekit.build.quantizers.ort_dynamic import Dynamic
from edgekit.build.quantizers.ort_static import Explicit, Static
from edgekit.build.quantizers.weight_only import WeightOnly
from edgekit.build.ranges import Ranges
from edgekit.build.steps.normalise import quiet_logs
from edgekit.contracts import codec

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
    """One candidate and the file it goes to."""

    candidate: Candidate
    target: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs over one normalised model."""

    model: str
    ranges: str | None
    jobs: tuple[Job, ...]


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


def main(path: str) -> None:
    """Run the request at ``path``; the exit status is 0 when the lines tell every outcome."""
    request = codec.read(Request, Path(path))
    model = onnx.load(request.model)
    ranges = codec.read(Ranges, Path(request.ranges)) if request.ranges else None
    for job in request.jobs:
        error: str | None = None
        reduced: tuple[str, ...] = ()
        try:
            if job.candidate.reduce_range is Reduce.WHERE and ranges is not None:
                reduced = saturation.layers(model, job.candidate, ranges)
            onnx.save(quantize(model, job.candidate, ranges), job.target)
        except (MemoryError, OSError):
            raise  # not a property of the candidate: the process ends with it, nothing is cached
        except Exception as exc:  # noqa: BLE001 - foreign code; the exact error is the answer
            error = " ".join(f"{type(exc).__name__}: {exc}".split())
        print(json.dumps({"error": error, "reduced": reduced}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
