"""Does a switch of slots fail or delay requests?

An agent with a real broker; clients ask all the time while releases are switched back and forth.
A switch lasts from the order until half a second after the first answer of the new version: its
download, self-test and start are part of it. Everything else is the steady state. Nothing is
pinned: the next model loads on the cores that serve.

And how long does a device take to go back by itself? A bundle on trial answers NaN until it is
judged; the time runs from that answer to the first one of the fallback. No broker is there.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
from artifact_server import artifacts
from device import (
    CLASSES,
    FEATURES,
    MODEL,
    add_bundle,
    agent_config,
    complete,
    contract,
    exchange,
    free_port,
    running,
    small_model,
)  # fmt: skip
from device import (
    http as request_of,
)
from harness import Row, write
from paho.mqtt.enums import CallbackAPIVersion
from rollback import TRIAL_N, measure

from edgekit.contracts import codec, ids, topics
from edgekit.contracts.messages import Deployment, Desired, DeviceConfig, Policy, VariantRef

SWITCHES = int(os.environ.get("EDGEKIT_BENCH_SWITCHES", "20"))
STEADY_S = float(os.environ.get("EDGEKIT_BENCH_SECONDS", "3"))
CLIENTS = 4
THINK_S = 0.004  # between an answer and the next request: a load, not a flood
AFTER_S = 0.5
ROLLBACKS = int(os.environ.get("EDGEKIT_BENCH_ROLLBACKS", "5"))
ROLLBACK_S_MAX = 2.0
POLICY = Policy(confirm_inferences_min=50, confirm_s_min=0.2, error_min_n=TRIAL_N)
PATH = f"/v2/models/{MODEL}/infer"


class Sample:
    """One request."""

    __slots__ = ("at", "ok", "took", "version")

    def __init__(self, at: float, took: float, version: bytes, *, ok: bool) -> None:
        self.at, self.took, self.version, self.ok = at, took, version, ok


def _request() -> bytes:
    values = np.linspace(-1, 1, FEATURES).round(3).tolist()
    body = f'{{"inputs":[{{"name":"x","shape":[1,{FEATURES}],"datatype":"FP32","data":{values}}}]}}'
    return request_of("POST", PATH, body.encode(), "Content-Type: application/json")


def _client(port: int, request: bytes, samples: list[Sample], stop: threading.Event) -> None:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while not stop.is_set():
        begun = time.perf_counter()
        try:
            connection.sendall(request)
            data = b""
            while not complete(data):
                part = connection.recv(1 << 16)
                if not part:
                    raise ConnectionError
                data += part
        except OSError:
            samples.append(Sample(begun, time.perf_counter() - begun, b"", ok=False))
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            continue
        version = data.partition(b'"model_version":"')[2][:1]
        samples.append(Sample(begun, time.perf_counter() - begun, version, ok=data[9:12] == b"200"))
        time.sleep(THINK_S)
    connection.close()


class _Orders:
    """What a manager would publish."""

    def __init__(self, port: int, url: str, digests: tuple[str, str]) -> None:
        self._digests, self._url, self._gen = digests, url, 0
        self._topic = topics.Address("default", ids.shard_of("bench"), "bench").topic(
            topics.DESIRED
        )
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="orders")
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def give(self, number: int) -> None:
        self._gen += 1
        variant = VariantRef(digest=self._digests[number], repository="bench", size=1)
        deployment = Deployment(
            rollout=f"r{self._gen}",
            wave=0,
            release=f"v{number + 1}",
            variants={"bench": variant},
            policy=POLICY,
            retry_token=str(self._gen),
        )
        desired = Desired(
            gen=self._gen,
            config=DeviceConfig(artifacts_url=self._url, window_s=1.0),
            deployments={MODEL: deployment},
        )
        self._client.publish(self._topic, codec.seal(desired), qos=1, retain=True)

    def close(self) -> None:
        self._client.loop_stop()


def _switch(orders: _Orders, number: int, samples: list[Sample]) -> tuple[float, float]:
    """Order a version; when that was, and until when it counts as the switch."""
    begun, wanted, seen = time.perf_counter(), str(number + 1).encode(), len(samples)
    orders.give(number)
    while time.perf_counter() - begun < 60:
        fresh = next((s for s in samples[seen:] if s.version == wanted), None)
        if fresh is not None:
            time.sleep(AFTER_S)
            return begun, fresh.at + AFTER_S
        time.sleep(0.02)
    raise SystemExit(f"version {number + 1} does not serve")


def _run(folder: Path) -> tuple[list[Sample], list[tuple[float, float]]]:
    ready = contract((1, FEATURES), CLASSES)
    layout = folder / "layout"
    digests = tuple(add_bundle(layout, small_model(), ready, version=str(n)).digest for n in (1, 2))
    samples: list[Sample] = []
    windows: list[tuple[float, float]] = []
    with ExitStack() as stack:
        broker, port = free_port(), free_port()
        command = [sys.executable, "-m", "iotcore", "--port", str(broker), "--listen", "127.0.0.1"]
        stack.enter_context(running(command, broker))
        orders = _Orders(broker, stack.enter_context(artifacts(layout)), digests)
        stack.callback(orders.close)
        config = agent_config(folder, folder / "state", port, broker=broker)
        run = [sys.executable, "-m", "edgekit_runtime", "run", "--config", str(config)]
        stack.enter_context(running(run, port))
        orders.give(0)
        while exchange(port, _request())[9:12] != b"200":
            time.sleep(0.05)
        stop = threading.Event()
        threads = [
            threading.Thread(target=_client, args=(port, _request(), samples, stop))
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for number in range(SWITCHES):
            time.sleep(STEADY_S)
            windows.append(_switch(orders, (number + 1) % 2, samples))
        time.sleep(STEADY_S)
        stop.set()
        for thread in threads:
            thread.join()
    return samples, windows


def _roll_backs(folder: Path) -> list[float]:
    ready = contract((1, FEATURES), CLASSES)
    layout = folder / "layout"
    digests = tuple(add_bundle(layout, small_model(), ready, version=str(n)).digest for n in (1, 2))
    with artifacts(layout) as url:

        @contextmanager
        def orders_to(port: int) -> Iterator[Callable[[int], None]]:
            orders = _Orders(port, url, digests)
            yield orders.give
            orders.close()

        return [measure(folder / str(number), orders_to) for number in range(ROLLBACKS)]


def _p99_us(samples: list[Sample]) -> float:
    took = sorted(sample.took for sample in samples)
    return took[min(len(took) - 1, int(len(took) * 0.99))] * 1e6


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        samples, windows = _run(Path(folder))
    during = [[s for s in samples if first <= s.at <= last] for first, last in windows]
    switching = {id(sample) for group in during for sample in group}
    steady = [sample for sample in samples if id(sample) not in switching]
    failed = sum(not sample.ok for sample in samples)
    ours, peer = statistics.median(_p99_us(group) for group in during), _p99_us(steady)
    longest = max(sample.took for group in during for sample in group) * 1e3
    case = f"{FEATURES} floats, {CLIENTS} clients, {SWITCHES} switches"
    rows = [
        Row(
            case,
            "failed requests (not us)",
            float(failed),
            "0",
            failed == 0,
            note=f"of {len(samples)}",
        ),
        Row(
            case,
            "p99 during a switch, median of the switches",
            ours,
            "<= 2 x steady state",
            ours <= 2 * peer,
            "steady state",
            peer,
            ours / peer,
            f"longest of all {longest:.1f} ms; {len(switching)} requests during switches",
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        backs = _roll_backs(Path(folder))
    rows.append(
        Row(
            f"{FEATURES} floats, broker killed",
            "local roll-back, median, from trigger to the fallback's first answer",
            statistics.median(backs) * 1e6,
            f"< {ROLLBACK_S_MAX:g} s each",
            max(backs) < ROLLBACK_S_MAX,
            note=f"{len(backs)} roll-backs, longest {max(backs):.2f} s",
        )
    )
    write("runtime_switch", "Switch of slots under load", rows, __doc__ or "")


if __name__ == "__main__":
    main()
