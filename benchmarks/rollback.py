"""Local roll-backs: from the answer that is one too bad to the first of the fallback.

The broker is killed before: nothing but the device takes part.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
from device import FEATURES, MODEL, agent_config, exchange, free_port, running
from device import http as request_of

PATH = f"/v2/models/{MODEL}/infer"
TRIAL_N = 20  # answers before a rate is judged
WAIT_S = 60.0


def request(value: float | None = None) -> bytes:
    """An inference: of usual values, or of one that makes the model answer NaN."""
    usual = np.linspace(-1, 1, FEATURES).round(3)
    values = (usual if value is None else np.full(FEATURES, value)).tolist()
    body = f'{{"inputs":[{{"name":"x","shape":[1,{FEATURES}],"datatype":"FP32","data":{values}}}]}}'
    return request_of("POST", PATH, body.encode(), "Content-Type: application/json")


def version(port: int, data: bytes) -> bytes:
    """Which version answered; empty when none did."""
    answer = exchange(port, data)
    return answer.partition(b'"model_version":"')[2][:1] if answer[9:12] == b"200" else b""


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.perf_counter() + WAIT_S
    while not condition():
        if time.perf_counter() > end:
            raise SystemExit(f"not within {WAIT_S:g} s: {what}")
        time.sleep(0.002)


def measure(
    folder: Path, orders_to: Callable[[int], AbstractContextManager[Callable[[int], None]]]
) -> float:
    """Seconds of one roll-back.

    Args:
        folder: an empty one.
        orders_to: from a broker's port to what gives orders by version's number.
    """
    folder.mkdir()
    with ExitStack() as stack:
        broker, port = free_port(), free_port()
        command = [sys.executable, "-m", "iotcore", "--port", str(broker), "--listen", "127.0.0.1"]
        pid = stack.enter_context(running(command, broker))
        config = agent_config(folder, folder / "state", port, broker=broker)
        run = [sys.executable, "-m", "edgekit_runtime", "run", "--config", str(config)]
        stack.enter_context(running(run, port))
        with orders_to(broker) as give:
            give(0)
            _until(lambda: version(port, request()) == b"1", "version 1 serves")
            for _ in range(100):
                version(port, request())
            time.sleep(1.0)  # confirmed by now: a fallback
            give(1)
            _until(lambda: version(port, request()) == b"2", "version 2 serves")
        os.kill(pid, signal.SIGKILL)
        for _ in range(TRIAL_N):
            version(port, request(3e38))
        begun = time.perf_counter()
        _until(lambda: version(port, request()) == b"1", "the fallback serves")
        return time.perf_counter() - begun
