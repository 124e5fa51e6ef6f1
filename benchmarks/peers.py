"""Other servers beside the endpoint, each in a virtual environment of its own.

``EDGEKIT_BENCH_PEERS`` names a folder with one environment each: ``litserve``, made by
``uv venv F/litserve`` and ``uv pip install --python F/litserve/bin/python litserve onnxruntime``.
A peer whose environment is not there is left out, and the result says so.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from device import free_port, running

_SERVERS = {
    "litserve": "peer_litserve.py",
    "mlserver": "peer_mlserver.py",
    "bentoml": "peer_bentoml.py",
}
_PATHS = {"litserve": "/predict", "bentoml": "/predict", "mlserver": "/v2/models/bench/infer"}


def available() -> list[str]:
    """Peers whose environment is there."""
    root = os.environ.get("EDGEKIT_BENCH_PEERS")
    if not root:
        return []
    return [name for name in _SERVERS if (Path(root) / name / "bin" / "python").exists()]


def start_peer(stack: ExitStack, name: str, model: Path) -> tuple[int, str]:
    """Start ``name`` on core 0 with ``model``; its port and path."""
    python = Path(os.environ["EDGEKIT_BENCH_PEERS"]) / name / "bin" / "python"
    script = Path(__file__).parent / "peers_servers" / _SERVERS[name]
    port = free_port()
    stack.enter_context(running([str(python), str(script), str(model), str(port)], port, core=0))
    return port, _PATHS[name]
