"""The least that serves a model over HTTP: uvicorn, msgspec, onnxruntime, in one loop.

No contract, no counting, no isolation, no limits: what `runtime_endpoint.py` compares with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import uvicorn

_HEADER = b"inference-header-content-length"


def application(model: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # As our engine does: level "all" changes layouts by machine, and outputs with them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        length = dict(scope["headers"]).get(_HEADER)
        if length is None:
            tensor = msgspec.json.decode(body)["inputs"][0]
            rows = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
        else:
            tensor = msgspec.json.decode(body[: int(length)])["inputs"][0]
            rows = np.frombuffer(body, np.float32, offset=int(length)).reshape(tensor["shape"])
        (scores,) = session.run(["scores"], {"x": rows})
        output = {"name": "scores", "shape": scores.shape, "datatype": "FP32"}
        answer = {"model_name": "bench", "outputs": [{**output, "data": scores.ravel().tolist()}]}
        raw = msgspec.json.encode(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    return serve


if __name__ == "__main__" and len(sys.argv) == 3:
    uvicorn.run(
        application(Path(sys.argv[1])),
        port=int(sys.argv[2]),
        http="httptools",
        loop="asyncio",
        access_log=False,
        log_level="error",
        lifespan="off",
    )
