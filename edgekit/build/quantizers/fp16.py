"""Half precision, with float inputs and outputs; an invalid result is an error, not a variant.

Converters are known to write graphs whose types contradict each other, and to exit 0. So the result
is type-checked and loaded here, and the exact error is the reason why the candidate is dropped.
"""

from __future__ import annotations

import onnx
import onnxruntime as ort
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgekit.build.candidates import Candidate
from edgekit.build.ranges import Ranges

_LOG_FATAL = 4


class Fp16:
    """All float tensors inside the graph become float16."""

    def quantize(
        self, model: onnx.ModelProto, candidate: Candidate, ranges: Ranges | None
    ) -> onnx.ModelProto:
        """See `edgekit.build.quantizers.base.Quantizer`."""
        del ranges
        made: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=list(candidate.floats)
        )
        sortable = ONNXModel(made)
        sortable.topological_sort()  # the casts it adds stand at the end
        made = sortable.model
        onnx.checker.check_model(made, full_check=True)
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return made
