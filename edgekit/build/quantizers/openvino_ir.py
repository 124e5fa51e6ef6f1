"""OpenVINO IR of a model: the compile step for x86 devices that have OpenVINO.

A Q/DQ graph becomes the FakeQuantize form its integer kernels are chosen by; half precision
concerns the stored weights alone, since the engine computes in f32.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx

from edgekit.build.quantizers.coverage import of_openvino


def read(model: onnx.ModelProto, scratch: Path) -> Any:
    """The OpenVINO form of an ONNX model.

    Raises:
        Exception: whatever OpenVINO raises, e.g. for control flow of unknown rank.
    """
    import openvino as ov  # noqa: PLC0415 - optional

    path = scratch / "to-openvino.onnx"
    onnx.save(model, path)
    core = ov.Core()
    found = core.read_model(str(path))
    # Some graphs are read and cannot be compiled: better known here, with the exact error.
    core.compile_model(found, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return found


def coverage(model: Any, wanted: int) -> float | None:
    """Share of ``wanted`` layers that run by integer kernels; None when there are none."""
    import openvino as ov  # noqa: PLC0415 - optional

    if not wanted:
        return None
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return of_openvino(ov.Core().compile_model(model, "CPU", options), wanted)


def save(model: Any, target: Path, *, half: bool) -> None:
    """Write ``target``, a ``.xml``, and its ``.bin``; equal models give equal bytes."""
    import openvino as ov  # noqa: PLC0415 - optional

    # Unnamed operators are numbered by a counter of the process: by what was converted before.
    for index, op in enumerate(model.get_ordered_ops()):
        kind = op.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", op.get_friendly_name()):
            op.set_friendly_name(f"{kind}_edgekit{index}")
    ov.save_model(model, str(target), compress_to_fp16=half)
