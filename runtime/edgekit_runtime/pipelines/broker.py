"""Connections of pipelines to a local MQTT broker: one fresh paho client for each."""

from __future__ import annotations

from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.contracts.errors import translate_os_errors
from edgekit_runtime.pipelines.spec import MqttSink, MqttSource

KEEPALIVE_S = 30
CONNECT_S_MAX = 10.0
PASSWORD_BYTES_MAX = 4096


def client(
    broker: MqttSource | MqttSink, client_id: str, *, keeps_session: bool, manual_ack: bool = False
) -> mqtt.Client:
    """A client that is not connected.

    Raises:
        BadInputError: the file with the password cannot be read.
    """
    made = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=not keeps_session,
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=manual_ack,
    )
    made.connect_timeout = CONNECT_S_MAX
    if broker.username:
        made.username_pw_set(broker.username, _password(broker.password_file))
    return made


def _password(path: str) -> str | None:
    if not path:
        return None
    with translate_os_errors("read", path), Path(path).open(encoding="utf-8") as stream:
        return stream.read(PASSWORD_BYTES_MAX).rstrip("\r\n")
