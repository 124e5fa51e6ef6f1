"""MQTT connection of the manager (paho-mqtt, MQTT 3.1.1 core, QoS 1).

* One persistent session under a fixed client id: the broker queues for a manager that is away.
* Manual acknowledgement: the broker is told only after the database committed.
* Nothing is queued in this library: without a connection `publish` refuses. "Connected" means
  subscribed, which also is after the library has re-sent what was un-acknowledged; an old desired
  document can therefore never overtake a newer one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edgekit_fleet.config import HostPort
from edgekit_fleet.ports import Incoming

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
RECONNECT_S_MIN = 1
RECONNECT_S_MAX = 5  # longer delays acks of a whole fleet after a broker restart
PUBLISH_INFLIGHT_MAX = 1000  # the library's default of 20 would serialise a fleet-wide republish


class MqttLink:
    """`ports.Link` over paho-mqtt."""

    def __init__(
        self,
        broker: HostPort,
        *,
        client_id: str,
        subscriptions: Sequence[str],
        on_message: Callable[[Incoming], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.broker = broker
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._on_incoming = on_message
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._session = 0
        # By message id. Each publish is taken exactly once, but possibly before it returned.
        self._waiting: dict[int, Callable[[], None] | None] = {}
        self._taken_early: set[int] = set()
        self._last_problem = "never connected"
        self._since = time.time()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        client.max_inflight_messages_set(PUBLISH_INFLIGHT_MAX)
        client.reconnect_delay_set(RECONNECT_S_MIN, RECONNECT_S_MAX)
        client.on_connect = self._connected_to
        client.on_connect_fail = self._connect_failed
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._taken
        self._client = client

    @property
    def connected(self) -> bool:
        """Connected and subscribed."""
        return self._ready.is_set()

    @property
    def problem(self) -> str:
        """Why there is no connection, for people; empty when there is one."""
        return "" if self.connected else self._last_problem

    @property
    def since(self) -> float:
        """When the connection came or went."""
        return self._since

    def start(self) -> None:
        """Begin connecting; never raises for an absent broker, it is tried again for ever."""
        self._client.connect_async(self.broker.host, self.broker.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until connected; False when that did not happen in time."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Disconnect and stop the thread. The broker keeps the session."""
        self._client.disconnect()
        self._client.loop_stop()
        self._ready.clear()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool, on_taken: Callable[[], None] | None
    ) -> bool:
        """Hand one QoS 1 message to the broker; see `ports.Link.publish`."""
        if not self._ready.is_set():
            return False
        # No lock of ours is held over publish: the library calls _taken while it holds its own.
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        with self._lock:
            early = info.mid in self._taken_early
            if early:
                self._taken_early.discard(info.mid)
            else:
                # Also when rc says that the connection just went: the library re-sends it then.
                self._waiting[info.mid] = on_taken
        if early and on_taken is not None:
            on_taken()
        return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that ``message`` is dealt with, on the connection it came over."""
        if message.session == self._session and message.qos > 0:
            self._client.ack(message.mid, message.qos)

    # Callbacks of the library's network thread. None may raise: that would end the thread.

    def _connected_to(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._last_problem = f"{self.broker} refused the connection: {reason}"
            log.warning("%s", self._last_problem)
            return
        self._session += 1
        # Always, whatever session_present says: brokers lose sessions when they restart.
        client.subscribe(self._subscriptions)

    def _subscribed(
        self, client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._last_problem = f"{self.broker} refused a subscription: {refused[0]}"
            log.error("%s", self._last_problem)
            client.disconnect()
            return
        self._since = time.time()
        self._ready.set()
        log.info("connected to broker %s", self.broker)
        self._on_ready()

    def _connect_failed(self, _client: mqtt.Client, _data: Any) -> None:
        problem = f"broker {self.broker} is not reachable"
        if self._last_problem != problem:  # once, not with every attempt
            log.warning("%s; trying again", problem)
        self._last_problem = problem

    def _disconnected(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        was_ready = self._ready.is_set()
        self._ready.clear()
        if was_ready:
            self._since = time.time()
            self._last_problem = f"connection to broker {self.broker} lost: {reason}"
            log.warning("%s; reconnecting", self._last_problem)

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "(not UTF-8)"
        self._on_incoming(
            Incoming(
                topic=topic,
                payload=bytes(message.payload),
                retained=message.retain,
                mid=message.mid,
                qos=message.qos,
                session=self._session,
            )
        )

    def _taken(
        self, _client: mqtt.Client, _data: Any, mid: int, _reason: Any, _properties: Any
    ) -> None:
        callback = None
        with self._lock:
            if mid in self._waiting:
                callback = self._waiting.pop(mid)
            else:
                self._taken_early.add(mid)
        if callback is not None:
            callback()
