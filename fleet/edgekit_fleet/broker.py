"""Broker launcher: mosquitto or iotcore, always with limits that do not lose messages.

Stock settings acknowledge and then drop most of a reconnect storm (mosquitto) or refuse anything
above 20 KB (iotcore); what is generated here was measured not to. The broker is a process of its
own: as a child it would die with its parent.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edgekit.contracts.errors import UnavailableError, UsageError, translate_os_errors
from edgekit_fleet.config import is_loopback

MESSAGE_BYTES_MAX = 512 * 1024  # four times the largest frame we send
READY_S_MAX = 15.0

_MOSQUITTO = """\
# Written by `edgekit broker run`; edits are overwritten.
listener {port} {listen}
allow_anonymous true
# One subscriber (the manager) takes what a whole fleet sends at once. The default of 20 in flight
# and 1000 queued dropped 95 % of an acknowledged burst.
max_inflight_messages 1000
max_queued_messages 200000
max_packet_size {bytes_max}
set_tcp_nodelay true
persistence true
persistence_location {folder}/
# The default of 1800 s loses half an hour of sessions and retained messages on SIGKILL.
autosave_interval 30
log_dest stderr
log_type error
log_type warning
"""

_IOTCORE = """\
# Written by `edgekit broker run`; edits are overwritten.
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
# Per topic filter: memory is bounded by size x count, and what falls out is lost to a subscriber
# that is away (devices send it again). 1 MB segments lost messages to a live subscriber.
max_segment_size = 16777216
max_segment_count = 8

[v4.1]
name = "v4-1"
listen = "{listen}:{port}"
next_connection_delay_ms = 1

[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = {bytes_max}
max_inflight_count = 500
dynamic_filters = true
"""


class Engine(str, Enum):
    """Which broker to run."""

    AUTO = "auto"
    IOTCORE = "iotcore"
    MOSQUITTO = "mosquitto"


@dataclass(frozen=True)
class BrokerConfig:
    """What `run` needs to know."""

    data_dir: Path
    engine: Engine = Engine.AUTO
    listen: str = "127.0.0.1"
    port: int = 1883
    insecure_bind: bool = False


def choose(engine: Engine) -> Engine:
    """The engine to run.

    Raises:
        UnavailableError: the one asked for is not installed.
    """
    mosquitto = shutil.which("mosquitto")
    if engine is Engine.AUTO:
        return Engine.MOSQUITTO if mosquitto else Engine.IOTCORE
    if engine is Engine.MOSQUITTO and not mosquitto:
        raise UnavailableError(
            "mosquitto is not on PATH", hint="install it, or use --engine iotcore"
        )
    return engine


def check(config: BrokerConfig) -> None:
    """Refuse what cannot work.

    Raises:
        UsageError: the address.
        UnavailableError: the port is in use.
    """
    if not is_loopback(config.listen) and not config.insecure_bind:
        raise UsageError(
            f"--listen {config.listen}: this broker lets anyone in, so it serves loopback only",
            hint="add --insecure-bind if everyone who can reach this address may control the fleet",
        )
    if not 0 < config.port < 65536:
        raise UsageError(f"--port {config.port} is not 1-65535")
    family = socket.AF_INET6 if ":" in config.listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((config.listen, config.port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise UnavailableError(
                    f"port {config.port} on {config.listen} is in use",
                    hint="is a broker running there already? choose another with --port",
                ) from exc
            raise UsageError(
                f"cannot listen on {config.listen}:{config.port}: {exc.strerror or exc}"
            ) from exc


def write_config(config: BrokerConfig, engine: Engine) -> Path:
    """Write the configuration file of ``engine``; returns its path.

    Raises:
        BadInputError, ResourceError: the folder cannot be written.
    """
    folder = config.data_dir.absolute() / "broker"
    listen = config.listen
    if engine is Engine.IOTCORE:
        listen = f"[{listen}]" if ":" in listen else listen.replace("localhost", "127.0.0.1")
    template, name = (
        (_MOSQUITTO, "mosquitto.conf") if engine is Engine.MOSQUITTO else (_IOTCORE, "iotcore.toml")
    )
    text = template.format(
        listen=listen, port=config.port, folder=folder, bytes_max=MESSAGE_BYTES_MAX
    )
    path = folder / name
    with translate_os_errors("write", path):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(text)
        temporary.replace(path)
    return path


def _answers(config: BrokerConfig) -> bool:
    try:
        socket.create_connection((config.listen, config.port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _say_when_ready(config: BrokerConfig, announce: Callable[[], None]) -> None:
    """Call ``announce`` when the port answers; give up when that takes too long."""
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        if _answers(config):
            announce()
            return
        time.sleep(0.05)


def run(config: BrokerConfig, announce: Callable[[str], None]) -> None:
    """Run a broker in this process; does not return before it is stopped.

    Args:
        config: where to listen and which engine.
        announce: called with one line when the broker answers.

    Raises:
        UsageError, UnavailableError, ResourceError: it could not start.
    """
    check(config)
    engine = choose(config.engine)
    path = write_config(config, engine)
    line = f"broker: {engine.value} listening on {config.listen}:{config.port}"
    if engine is Engine.MOSQUITTO:
        _exec_mosquitto(config, path, lambda: announce(line))
    _serve_iotcore(config, path, lambda: announce(line))


def _exec_mosquitto(config: BrokerConfig, path: Path, announce: Callable[[], None]) -> None:
    binary = shutil.which("mosquitto")
    assert binary is not None, "choose() looked"
    sys.stdout.flush()
    sys.stderr.flush()
    # mosquitto takes this process over (same pid, no parent to die with). A grandchild waits for
    # the port and says so; being orphaned at once, it leaves mosquitto no zombie to reap.
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            _say_when_ready(config, announce)
        os._exit(0)
    os.waitpid(child, 0)
    arguments = [binary, "-c", str(path)]
    if os.geteuid() == 0:
        # As root it would become user "mosquitto", who cannot write our data folder.
        with path.open("a") as file:
            file.write("user root\n")
    os.execv(binary, arguments)  # noqa: S606 - no shell is wanted


def _serve_iotcore(config: BrokerConfig, path: Path, announce: Callable[[], None]) -> None:
    try:
        from iotcore import IotCoreBroker  # noqa: PLC0415 - optional, and starts a runtime
    except ImportError as exc:
        raise UnavailableError(
            "iotcore is not installed", hint="pip install 'edgekit-ml[fleet]', or use mosquitto"
        ) from exc
    # It logs every packet as an error.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    # The broker's loop never returns to Python, so Python's own handlers would never run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    watcher = threading.Thread(target=_say_when_ready, args=(config, announce), daemon=True)
    watcher.start()
    try:
        IotCoreBroker(config_path=str(path)).run_forever()
    except (OSError, ValueError, RuntimeError) as exc:
        raise UnavailableError(f"iotcore did not start: {exc}") from exc
