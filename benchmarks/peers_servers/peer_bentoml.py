"""BentoML over the same model, in its own environment: ``bentoml``, ``onnxruntime``."""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 10}, metrics={"enabled": False})
class Service:
    """JSON of one tensor in, scores out."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self.session = ort.InferenceSession(os.environ["BENCH_MODEL"], options)

    @bentoml.api
    def predict(self, inputs: list[dict[str, Any]]) -> list[float]:
        """Scores of the only input."""
        rows = np.asarray(inputs[0]["data"], np.float32).reshape(inputs[0]["shape"])
        (scores,) = self.session.run(["scores"], {"x": rows})
        return scores.ravel().tolist()


if __name__ == "__main__":
    os.environ["BENCH_MODEL"] = sys.argv[1]
    here = Path(__file__)
    command = ["serve", f"{here.stem}:Service", "--port", sys.argv[2], "--host", "127.0.0.1"]
    arguments = [sys.executable, "-m", "bentoml", *command, "--working-dir", str(here.parent)]
    os.execv(sys.executable, arguments)
