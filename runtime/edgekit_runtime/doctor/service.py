"""Checks of what the device must reach, and of what must reach the device."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgekit_runtime import lock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.doctor.check import Check, fail, ok, warn
from edgekit_runtime.pipelines.endpoint import UnixConnection

REACH_S_MAX = 5.0


def _resolved(host: str, port: int) -> str:
    """Why ``host`` has no address; empty when it has one."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        return str(exc)
    return ""


def broker(config: AgentConfig) -> Check:
    """Resolve, connect, and be let in, under another client id than the agent's."""
    name, host, port = "broker", config.broker.host, config.broker.port
    offline = "inference and roll-back go on without it"
    problem = _resolved(host, port)
    if problem:
        mend = "check /etc/resolv.conf and the network, or give [broker] host as an address"
        return fail(name, f"{host} has no address: {problem}; {offline}", mend)
    answered, verdict = threading.Event(), [""]

    def on_connect(_c: Any, _d: Any, _f: Any, reason: Any, _p: Any) -> None:
        verdict[0] = str(reason) if reason.is_failure else "ok"
        answered.set()

    client_id = f"{config.address.client_id[:10]}-doctor-{secrets.token_hex(4)}"
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv311)
    client.connect_timeout = REACH_S_MAX
    client.username_pw_set(config.address.identity)
    client.on_connect = on_connect
    try:
        client.connect(host, port)
    except (OSError, ValueError) as exc:
        mend = "check that the broker runs, [broker] port, and the firewall between"
        return fail(name, f"{host}:{port}: {exc}; {offline}", mend)
    client.loop_start()
    answered.wait(REACH_S_MAX)
    client.disconnect()
    client.loop_stop()
    if verdict[0] == "ok":
        return ok(name, f"{host}:{port} lets {config.address.identity} in")
    if verdict[0]:
        mend = f"let {config.address.identity} in at the broker"
        return fail(name, f"{host}:{port} refuses: {verdict[0]}", mend)
    mend = "check that [broker] port is the MQTT port without TLS"
    return fail(name, f"{host}:{port} does not answer as an MQTT broker", mend)


def artifacts(url: str | None) -> Check:
    """Does the artifact server answer at all?"""
    name = "artifact server"
    if url is None:
        return ok(name, "none was named by the manager yet")
    parts = urlsplit(url)
    problem = _resolved(parts.hostname or "", parts.port or 80)
    if problem:
        mend = "check /etc/resolv.conf, or have the manager name it by address"
        return fail(name, f"{parts.hostname} has no address: {problem}", mend)
    mend = "check that the manager runs and that this device may reach it; updates wait meanwhile"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v2/", timeout=REACH_S_MAX) as response:  # noqa: S310 - the agent accepted only http(s)
            return ok(name, f"{url} answers {response.status}")
    except urllib.error.HTTPError as exc:
        if exc.code < http.client.INTERNAL_SERVER_ERROR:
            return ok(name, f"{url} answers {exc.code}")
        return fail(name, f"{url} answers {exc.code}", mend)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return fail(name, f"{url}: {exc}", mend)


def endpoint(config: AgentConfig) -> Check:
    """Does an agent run, and does it answer on its socket as an application would ask?"""
    name, path = "endpoint", config.socket_path
    pid, alive = lock.holder(config.device.state_dir)
    if not alive:
        detail = f"no agent runs on {config.device.state_dir}"
        return fail(name, detail, "start it: edgekit-agent run, or the service that does")
    with contextlib.closing(UnixConnection(str(path), REACH_S_MAX)) as connection:
        try:
            connection.request("GET", "/v2/health/ready")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as exc:
            mend = f"let applications read and write {path} (its group may), or restart the agent"
            return fail(name, f"the agent (pid {pid}) does not answer on {path}: {exc}", mend)
    if status != http.client.OK:
        mend = "deploy a model, or see the model's line above"
        return warn(name, f"the agent (pid {pid}) answers, no model is ready ({status})", mend)
    return ok(name, f"the agent (pid {pid}) answers on {path}, its models are ready")
