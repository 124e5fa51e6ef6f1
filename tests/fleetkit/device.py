"""A device that speaks the wire protocol and nothing else: its own spool, its own re-sending.

Written against docs/protocol.md, not against the agent, so that the manager is tested by a second
opinion.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import paho.mqtt.client as mqtt
from fleetkit import messages as m
from fleetkit.processes import wait_for
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.contracts import codec, topics
from edgekit.contracts.limits import DESIRED_BYTES_MAX
from edgekit.contracts.messages import Ack, Desired, ModelReport, SlotRef
from edgekit.contracts.states import SlotState

WINDOW_FRAMES = 64


class WireDevice:
    """Sends frames until they are acked; follows desired documents by claiming success at once."""

    def __init__(
        self,
        name: str,
        port: int,
        *,
        epoch: int = 7,
        obey: bool = True,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.labels = labels or {}
        self.address = m.address(name)
        self.obey = obey
        self.frames: dict[int, bytes] = {}
        self.desired: Desired | None = None
        self.desired_count = 0
        self.acks: list[Ack] = []
        self._epoch = epoch
        self._gen = 0
        self._models: dict[str, ModelReport] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._paused = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self.address.client_id, clean_session=True
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.will_set(
            self.address.topic(topics.PRESENCE), m.presence("s1", online=False), 1, retain=True
        )
        self._client.on_connect = self._connected
        self._client.on_message = self._received
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()
        self._sender = threading.Thread(target=self._send_loop, daemon=True)
        self._sender.start()

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        filters = (topics.DESIRED, topics.ACK)
        client.subscribe([(self.address.topic(leaf), 1) for leaf in filters])
        presence = m.presence("s1", online=True)
        client.publish(self.address.topic(topics.PRESENCE), presence, 1, retain=True)
        self.report()

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        payload = bytes(message.payload)
        if message.topic == self.address.topic(topics.ACK):
            ack = codec.decode(Ack, payload, what="ack")
            with self._lock:
                self.acks.append(ack)
                for first, last in ack.intervals:
                    for seq in [seq for seq in self.frames if first <= seq <= last]:
                        del self.frames[seq]
            return
        envelope = codec.open_envelope(payload, what="desired", bytes_max=DESIRED_BYTES_MAX)
        desired = codec.decode(Desired, envelope.payload, what="desired")
        self.desired_count += 1
        if desired.gen <= self._gen or not self.obey:
            return
        self.desired, self._gen = desired, desired.gen
        self._models = {
            model: _confirmed(deployment) for model, deployment in desired.deployments.items()
        }
        self.report()

    def report(self) -> None:
        """Send the snapshot."""
        payload = m.reported(self._gen, models=self._models, labels=self.labels)
        self._client.publish(self.address.topic(topics.REPORTED), payload, 1, retain=True)

    def spool(self, seq: int, payload: bytes) -> None:
        """Keep a frame until it is acked."""
        with self._lock:
            self.frames[seq] = payload

    def count(self, first: int, frames: int, n: int = 10) -> int:
        """Spool ``frames`` frames of ``n`` inferences; returns the sum."""
        for seq in range(first, first + frames):
            self.spool(seq, m.counting_frame(seq, n, epoch=self._epoch))
        return frames * n

    def raw(self, leaf: str, payload: bytes) -> None:
        """Send anything."""
        self._client.publish(self.address.topic(leaf), payload, 1)

    def pause(self) -> None:
        """Stop sending (what is under way is)."""
        self._paused.set()

    def resume(self) -> None:
        self._paused.clear()

    def _send_loop(self) -> None:
        while not self._stop.wait(0.3):
            if self._paused.is_set() or not self._client.is_connected():
                continue
            with self._lock:
                waiting = sorted(self.frames.items())[:WINDOW_FRAMES]
            for _, payload in waiting:
                self.raw(topics.TELEMETRY_LIVE, payload)

    def drained(self, timeout_s: float = 30.0) -> None:
        """Wait until every frame was acked."""
        wait_for(lambda: not self.frames, f"acks for {self.address.device}", timeout_s)

    def close(self) -> None:
        self._stop.set()
        self._sender.join()
        self._client.disconnect()
        self._client.loop_stop()


def _confirmed(deployment: Any) -> ModelReport:
    target, variant = next(iter(deployment.variants.items()))
    slot = SlotRef(
        digest=variant.digest,
        version="1",
        target=target,
        release=deployment.release,
        rollout=deployment.rollout,
        wave=deployment.wave,
    )
    return ModelReport(state=SlotState.CONFIRMED, active=slot)


def settle(seconds: float) -> None:
    """Let what is under way arrive; only ever used before a count must *not* have changed."""
    time.sleep(seconds)
