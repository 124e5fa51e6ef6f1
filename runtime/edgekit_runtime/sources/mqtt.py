"""MQTT source: messages of a topic filter, QoS 1, acknowledged after they were answered.

The session is kept by the broker while this process is away. A message that was not acknowledged
comes again: under the same id where it says its own (``id_key``), or where this process still
knows it; else it is another item.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import secrets
import time
from collections import OrderedDict
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

from edgekit.contracts.backoff import Backoff
from edgekit_runtime.pipelines import broker, decode
from edgekit_runtime.pipelines.intake import Fate, Item, Outcome
from edgekit_runtime.pipelines.spec import MqttSource
from edgekit_runtime.sources.admission import Admission, plain_id

IDLE_S = 0.2  # of one wait for messages
BUSY_S = 0.02  # while acknowledgements are due
UNACKED_MAX = 1024  # messages that may come again and are known
log = logging.getLogger(__name__)
_Key = tuple[str, bytes]


class MqttReader:
    """`edgekit_runtime.sources.admission.Source` over paho, in one thread.

    The thread drives the client itself: it stops reading while the pipeline has no room, and
    acknowledgements are sent on the connection their message came on, or not at all.
    """

    def __init__(self, source: MqttSource, door: Admission, client_id: str) -> None:
        """Nothing connected.

        Raises:
            BadInputError: the file with the password cannot be read.
        """
        self._source, self._door, self._client_id = source, door, client_id
        self._make()
        self._run_id, self._count = secrets.token_hex(4), 0
        self._connection = 0  # which one it is
        self._subscribed = False
        self._refusal = ""
        self._told = False
        self._out = 0  # taken on this connection and not settled
        self._unacked: OrderedDict[_Key, str] = OrderedDict()
        self._settled: queue.SimpleQueue[tuple[int, int, _Key, Fate]] = queue.SimpleQueue()

    def run(self) -> None:
        """See `Source.run`."""
        backoff = Backoff(base_s=0.2, cap_s=15.0)
        while not self._door.stopping.is_set():
            client = self._make()
            self._connection += 1
            self._out, self._subscribed, self._refusal = 0, False, ""
            try:
                client.connect(self._source.host, self._source.port, keepalive=broker.KEEPALIVE_S)
                problem = self._read(client, backoff)
            except (OSError, ValueError) as exc:
                problem = str(exc)
            self._door.be(away=True)
            if not self._told and not self._door.stopping.is_set():
                where = f"{self._source.host}:{self._source.port}"
                log.warning("broker %s: %s (trying again)", where, problem)
                self._told = True
            self._door.stopping.wait(backoff.next_delay_s())

    def close(self) -> None:
        """See `Source.close`."""

    def _make(self) -> mqtt.Client:
        client = broker.client(self._source, self._client_id, keeps_session=True, manual_ack=True)
        client.on_connect = self._connected
        client.on_subscribe = self._answered
        client.on_message = self._received
        return client

    def _read(self, client: mqtt.Client, backoff: Backoff) -> str:
        """Until the connection ends, and why."""
        try:
            while not self._door.stopping.is_set():
                if self._door.has_room():
                    code = client.loop(BUSY_S if self._out else IDLE_S)
                else:
                    self._door.stopping.wait(BUSY_S)
                    client.loop_write()
                    code = client.loop_misc()
                if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    return mqtt.error_string(code)
                if self._refusal:
                    return self._refusal
                if self._subscribed:
                    backoff.reset()
                self._acknowledge(client)
            self._acknowledge(client)
        finally:
            client.disconnect()
        return "ended"

    def _acknowledge(self, client: mqtt.Client) -> None:
        while True:
            try:
                connection, number, key, fate = self._settled.get_nowait()
            except queue.Empty:
                return
            if connection != self._connection:
                continue  # it will come again, under an id we know
            self._out -= 1
            if fate.outcome is not Outcome.RETURNED:
                client.ack(number, 1)
                self._unacked.pop(key, None)

    # --- called by the client, in our thread ----------------------------------------------------

    def _connected(self, client: mqtt.Client, _d: Any, _f: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            self._refusal = f"refuses: {reason}"
        else:
            client.subscribe(self._source.topic, qos=1)

    def _answered(self, _c: mqtt.Client, _d: Any, _m: int, reasons: Any, _p: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = f"refuses the subscription to {self._source.topic}"
            return
        self._subscribed, self._told = True, False
        log.info("subscribed to %s", self._source.topic)
        self._door.be(away=False)

    def _received(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        payload, number = bytes(message.payload), message.mid
        connection = self._connection
        key = message.topic, hashlib.blake2b(payload, digest_size=16).digest()
        item_id = self._id_of(payload, key, again=message.dup)

        def settle(fate: Fate) -> None:
            if message.qos:
                self._settled.put((connection, number, key, fate))

        if message.qos:
            self._out += 1
            self._unacked[key] = item_id
            if len(self._unacked) > UNACKED_MAX:
                self._unacked.popitem(last=False)
        about = {"topic": message.topic}
        item = Item(item_id, payload, len(payload), time.time(), about, settle)
        if len(payload) > self._source.bytes_max:
            text = f"{len(payload)} bytes, allowed are {self._source.bytes_max}"
            self._door.refuse(item, "too_large", text)
        else:
            self._door.admit(item)

    def _id_of(self, payload: bytes, key: _Key, *, again: bool) -> str:
        name = self._door.spec.name
        if self._source.id_key:
            said = decode.json_id(payload, self._source.id_key)
            if said is not None:
                return f"{name}-{plain_id(said)}"
        if again and key in self._unacked:
            return self._unacked[key]
        self._count += 1
        return f"{name}-{self._run_id}-{self._count}"
