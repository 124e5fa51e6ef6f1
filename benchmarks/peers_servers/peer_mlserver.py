"""MLServer over the same model, in its own environment: ``mlserver``, ``onnxruntime``.

Its own worker pool is off: with one core and one model it only adds a hop.
"""

import asyncio
import sys

import numpy as np
import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    """One input, one output."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self.session = ort.InferenceSession(sys.argv[1], options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (scores,) = self.session.run(["scores"], {"x": x})
        output = NumpyCodec.encode_output("scores", scores)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until killed."""
    settings = Settings(
        http_port=int(sys.argv[2]),
        grpc_port=int(sys.argv[2]) + 1,
        metrics_port=int(sys.argv[2]) + 2,
        host="127.0.0.1",
        parallel_workers=0,
        debug=False,
        metrics_endpoint=None,
    )
    await MLServer(settings).start([ModelSettings(name="bench", implementation=Onnx)])


if __name__ == "__main__":
    asyncio.run(main())
