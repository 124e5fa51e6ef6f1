"""LitServe over the same model. Runs in its own environment: ``litserve``, ``onnxruntime``."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort


class Api(litserve.LitAPI):
    """JSON of one tensor in, scores out."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - their interface
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self.session = ort.InferenceSession(sys.argv[1], options)

    # An annotation would be taken for a query parameter.
    def decode_request(self, request):  # noqa: ANN001, ANN201
        tensor = request["inputs"][0]
        return np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x: Any) -> Any:
        return self.session.run(["scores"], {"x": x})[0]

    def encode_response(self, output: Any) -> Any:
        return {"scores": output.ravel().tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
