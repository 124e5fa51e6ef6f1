"""Load clients with a ledger of their own: ``python -m edgekit.cli.demo.load CONFIG.json``.

Standard library only, nothing from edgekit: what this program wrote down as answered is compared
with what the manager counted, so the two must not share a line of code.

One thread a device sends requests over its Unix socket at a steady rate. Each request has an
id; the id is written to the ledger once, when an answer to it has been read. A request whose
answer was lost (the agent was killed) is in doubt and sent again *under the same id* until it is
answered. Some seconds later the truth about the sample arrives and is sent as a delayed label.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

TIMEOUT_S = 10.0
RETRY_S = 0.05
DRAIN_S = 30.0  # a stop waits this long for answers still in doubt


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self.path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self.path)


class Client(threading.Thread):
    """Sends requests to one device until told to stop."""

    def __init__(self, device: str, config: dict[str, Any], stop: threading.Event) -> None:
        super().__init__(name=f"load-{device}")
        self.device, self.config, self.stop_event = device, config, stop
        self.url = f"/v2/models/{config['model']}"
        self.connection = UnixConnection(config["devices"][device])
        self.ledger = (Path(config["out"]) / f"{device}.ledger").open("a", encoding="ascii")
        self.rng = random.Random(f"{config['seed']}/{device}")
        self.sent = self.answered = self.retried = self.labelled = self.unanswered = 0
        self.refused = 0  # labels whose request the device no longer knew
        self.pending: deque[tuple[float, str, int]] = deque()

    def run(self) -> None:
        """Send at the configured rate; pauses of the device do not cause a burst afterwards."""
        interval = 1.0 / self.config["rate"]
        time.sleep(self.rng.random() * interval)  # devices are not in step
        due = time.monotonic()
        while not self.stop_event.is_set():
            self.one_request()
            self.send_labels(time.monotonic())
            due = max(due + interval, time.monotonic() - interval)
            self.stop_event.wait(max(0.0, due - time.monotonic()))
        self.send_labels(float("inf"))
        self.connection.close()
        self.ledger.close()

    def one_request(self) -> None:
        """One sample: sent, and sent again under the same id until answered."""
        index = self.rng.randrange(len(self.config["samples"]))
        sample = self.config["samples"][index]
        request_id = f"{self.device}-{self.sent}"
        body = {
            "id": request_id,
            "inputs": [
                {
                    "name": self.config["input"],
                    "shape": [1, len(sample)],
                    "datatype": "FP32",
                    "data": sample,
                }
            ],
        }
        self.sent += 1
        give_up = None
        while True:
            status = self.post("/infer", body)
            if status == 200:
                break
            self.retried += 1
            if self.stop_event.is_set():
                give_up = give_up or time.monotonic() + DRAIN_S
                if time.monotonic() > give_up:
                    self.unanswered += 1
                    return
            time.sleep(RETRY_S)
        self.ledger.write(request_id + "\n")
        self.ledger.flush()
        self.answered += 1
        if self.rng.random() < self.config["label_share"]:
            when = time.monotonic() + self.config["label_delay_s"]
            self.pending.append((when, request_id, self.config["labels"][index]))

    def send_labels(self, now: float) -> None:
        """Send the labels that are due; one that got no answer stays for the next time."""
        while self.pending and self.pending[0][0] <= now:
            _, request_id, label = self.pending[0]
            status = self.post("/feedback", {"id": request_id, "label": label})
            if status is None:
                return
            self.pending.popleft()
            if status == 200:
                self.labelled += 1
            else:
                self.refused += 1

    def post(self, leaf: str, body: dict[str, Any]) -> int | None:
        """Status of the answer, or None when there was none."""
        try:
            headers = {"Content-Type": "application/json"}
            self.connection.request("POST", self.url + leaf, json.dumps(body), headers)
            answer = self.connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return None
        return answer.status


def main(path: str) -> int:
    """Run all clients until SIGTERM; leaves ``summary.json``."""
    config = json.loads(Path(path).read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    clients = [Client(device, config, stop) for device in config["devices"]]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    names = ("sent", "answered", "retried", "unanswered", "labelled", "refused")
    summary = {name: sum(getattr(client, name) for client in clients) for name in names}
    (Path(config["out"]) / "summary.json").write_text(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
