"""MQTT 3.1.1 over paho: one fresh client per connection, so that nothing can queue in the library.

The spool is the only queue. The will and the birth share the presence topic and carry a session id;
subscriptions are made anew in every ``on_connect`` because brokers forget them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.contracts import codec, topics
from edgekit.contracts.backoff import Backoff
from edgekit.contracts.messages import Presence
from edgekit.contracts.topics import Address
from edgekit_runtime.ports import Clock

if TYPE_CHECKING:
    import paho.mqtt.client as mqtt

KEEPALIVE_S = 30
CONNECT_S_MAX = 10.0
_SUCCESS = 0  # paho's MQTT_ERR_SUCCESS
STABLE_S = 10.0  # a connection that lived this long resets the back-off
log = logging.getLogger(__name__)


class MqttLink:
    """`edgekit_runtime.ports.Link` on paho."""

    def __init__(self, address: Address, host: str, port: int, clock: Clock) -> None:
        self.on_message: Callable[[str, bytes], None] = lambda _leaf, _payload: None
        self.on_connect: Callable[[], None] = lambda: None
        self._address = address
        self._host, self._port = host, port
        self._clock = clock
        self._backoff = Backoff(base_s=0.5, cap_s=30.0)
        self._stopping = threading.Event()
        self._gone = threading.Event()
        self._client: mqtt.Client | None = None
        self._sid = ""
        self._quiet = False
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)

    @property
    def connected(self) -> bool:
        """See `Link.connected`."""
        return self._client is not None

    def start(self) -> None:
        """See `Link.start`."""
        self._thread.start()

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> bool:
        """See `Link.publish`."""
        client = self._client
        if client is None:
            return False
        try:
            info = client.publish(self._address.topic(leaf), payload, qos=1, retain=retain)
        except (ValueError, RuntimeError, OSError) as exc:
            log.warning("publish to %s: %s", leaf, exc)
            return False
        return int(info.rc) == _SUCCESS

    def stop(self) -> None:
        """See `Link.stop`."""
        self._stopping.set()
        client = self._client
        if client is not None:
            bye = Presence(sid=self._sid, online=False, at=self._clock.wall())
            info = client.publish(
                self._address.topic(topics.PRESENCE), codec.encode(bye), qos=1, retain=True
            )
            try:
                info.wait_for_publish(2.0)
            except (ValueError, RuntimeError) as exc:
                log.info("goodbye was not acknowledged: %s", exc)
            client.disconnect()
        self._gone.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._gone.clear()
            self._sid = os.urandom(8).hex()
            client = self._make()
            begun = self._clock.monotonic()
            try:
                client.connect(self._host, self._port, keepalive=KEEPALIVE_S)
            except (OSError, ValueError) as exc:
                if not self._quiet:
                    log.warning("broker %s:%s: %s (retrying)", self._host, self._port, exc)
                    self._quiet = True
            else:
                client.loop_start()
                self._gone.wait()
                self._client = None
                client.loop_stop()
            if self._clock.monotonic() - begun > STABLE_S:
                self._backoff.reset()
            self._stopping.wait(self._backoff.next_delay_s())

    def _make(self) -> mqtt.Client:
        # Imported on this thread: the device answers while its link is still to come.
        import paho.mqtt.client as mqtt  # noqa: PLC0415
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._address.client_id,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S_MAX
        client.username_pw_set(self._address.identity)
        client.max_inflight_messages_set(128)  # above the uplink's own window of 64
        will = Presence(sid=self._sid, online=False, at=self._clock.wall())
        client.will_set(
            self._address.topic(topics.PRESENCE), codec.encode(will), qos=1, retain=True
        )
        client.on_connect = self._connected
        client.on_connect_fail = self._lost
        client.on_disconnect = self._lost
        client.on_message = self._received
        return client

    def _connected(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            log.warning("broker refused the connection: %s", reason)
            self._gone.set()
            return
        self._quiet = False
        log.info("connected to broker %s:%s", self._host, self._port)
        for leaf in (topics.DESIRED, topics.ACK):
            client.subscribe(self._address.topic(leaf), qos=1)
        birth = Presence(sid=self._sid, online=True, at=self._clock.wall())
        client.publish(
            self._address.topic(topics.PRESENCE), codec.encode(birth), qos=1, retain=True
        )
        self._client = client
        self._guarded(self.on_connect)

    def _lost(self, *_: Any) -> None:
        if not self._stopping.is_set() and (self._client is not None or not self._quiet):
            log.warning("broker %s:%s: connection lost (retrying)", self._host, self._port)
            self._quiet = True  # one line an outage, not one an attempt
        self._client = None
        self._gone.set()

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        leaf = message.topic.rpartition("/")[2]
        self._guarded(lambda: self.on_message(leaf, bytes(message.payload)))

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        """An exception that leaves a paho callback ends its network thread in silence."""
        try:
            call()
        except Exception:
            log.exception("MQTT callback failed")
