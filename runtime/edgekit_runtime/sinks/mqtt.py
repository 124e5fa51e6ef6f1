"""MQTT sink: answers as messages with QoS 1, each told delivered when the broker has it."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import paho.mqtt.client as mqtt

from edgekit.contracts.errors import UnavailableError
from edgekit_runtime.pipelines import broker
from edgekit_runtime.pipelines.spec import MqttSink
from edgekit_runtime.sinks.outlet import Line

PUBLISH_S_MAX = 10.0  # for the broker's acknowledgement


class MqttPublisher:
    """`edgekit_runtime.sinks.outlet.Sink` on one topic.

    A client lives as long as its connection, so that nothing queues in the library. What was sent
    and not acknowledged is sent again on the next one: a subscriber may see an id twice.
    """

    def __init__(self, sink: MqttSink, client_id: str) -> None:
        self._sink, self._client_id = sink, client_id
        self._client: mqtt.Client | None = None
        self._gone = threading.Event()

    def deliver(self, line: Line) -> None:
        """See `Sink.deliver`."""
        client = self._connected()
        try:
            info = client.publish(self._sink.topic, line.body, qos=1)
            end = monotonic() + PUBLISH_S_MAX
            while not info.is_published() and not self._gone.is_set() and monotonic() < end:
                info.wait_for_publish(0.2)
            published = info.is_published()
        except (ValueError, RuntimeError, OSError) as exc:
            self.close()
            raise UnavailableError(f"{self._where}: {exc}") from exc
        if not published:
            self.close()
            raise UnavailableError(f"{self._where}: a message was not acknowledged")

    def idle(self) -> None:
        """See `Sink.idle`."""

    def close(self) -> None:
        """See `Sink.close`."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    @property
    def _where(self) -> str:
        return f"broker {self._sink.host}:{self._sink.port}"

    def _connected(self) -> mqtt.Client:
        if self._client is not None and not self._gone.is_set():
            return self._client
        self.close()
        client = broker.client(self._sink, self._client_id, keeps_session=False)
        answered, refused = threading.Event(), [""]
        gone = self._gone = threading.Event()

        def on_connect(_c: Any, _d: Any, _f: Any, reason: Any, _p: Any) -> None:
            refused[0] = str(reason) if reason.is_failure else ""
            answered.set()

        client.on_connect = on_connect
        client.on_disconnect = lambda *_: gone.set()
        try:
            client.connect(self._sink.host, self._sink.port, keepalive=broker.KEEPALIVE_S)
        except (OSError, ValueError) as exc:
            raise UnavailableError(f"{self._where}: {exc}") from exc
        client.loop_start()
        self._client = client
        if not answered.wait(broker.CONNECT_S_MAX) or refused[0]:
            self.close()
            raise UnavailableError(f"{self._where}: {refused[0] or 'does not answer'}")
        return client
