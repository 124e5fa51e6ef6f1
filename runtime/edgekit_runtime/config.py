"""Agent configuration: one TOML file, overridden by ``EDGEKIT_<SECTION>_<KEY>`` variables.

::

    [device]
    id = "meter-07"
    tenant = "default"
    state_dir = "/var/lib/edgekit"
    targets = ["x86-64-v3"]        # default: detected, best first
    [device.labels]
    site = "north"
    [broker]
    host = "127.0.0.1"
    port = 1883
    [serve]
    socket = "/run/edgekit/agent.sock"   # default: <state_dir>/agent.sock
    port = 8471                          # loopback only; default: none
    threads = 1                          # of the engine, per inference
    cores = [2, 3]                       # that workers run on; default: all
    workers = true                       # false: only applications hold models (Session.open)
    sessions_max = 16                    # of applications at once; 0: none
    [spool]
    bytes_max = 67108864
    [containers]
    engine = "unix:///var/run/docker.sock"   # runs images of a release; default: none, its bundles
    [log]
    bytes_max = 1048576            # of the agent's own log on the device; 0: none
    [selftest]
    hour = 3                       # local; golden sets are replayed nightly. -1: never
    [[pipeline]]                   # any number; see docs/pipelines.md
    name = "door"
    model = "meter"
    source = {kind = "mqtt", topic = "sensors/door"}
    sinks = [{kind = "file", path = "/var/lib/edgekit/door.jsonl"}]

How long a telemetry window is, how often the device reports and where bundles lie comes from the
manager, in the desired state.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edgekit.contracts.errors import UsageError, translate_os_errors
from edgekit.contracts.ids import check_name, shard_of
from edgekit.contracts.limits import LABELS_MAX
from edgekit.contracts.topics import Address

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgekit_runtime.pipelines.spec import PipelineSpec
else:
    PipelineSpec = Any  # most devices have none: their start is spared the import

ENV_PREFIX = "EDGEKIT_"
_LISTS = ("targets", "cores")  # separated by commas in a variable
SOCKET_PATH_BYTES_MAX = 107  # sun_path without its final zero (unix(7))
SPOOL_BYTES_MIN = 2 * 1024 * 1024  # a few segments: below, eviction has nothing to choose from
LOG_BYTES_MIN = 16 * 1024  # below, a traceback or two are all there is
CONFIG_BYTES_MAX = 1024 * 1024
SESSIONS_MAX = 256  # each holds some descriptors of the agent
T = TypeVar("T")


class DeviceSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this device is."""

    id: str
    state_dir: Path
    tenant: str = "default"
    labels: dict[str, str] = {}
    targets: tuple[str, ...] | None = None


class BrokerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the MQTT broker is."""

    host: str = "127.0.0.1"
    port: int = 1883


class ServeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where applications reach the model."""

    socket: Path | None = None
    port: int | None = None
    threads: int = 1  # of the engine, per inference
    cores: tuple[int, ...] = ()  # that workers run on; (): all that the agent may
    body_bytes_max: int = 8 * 1024 * 1024
    requests_max: int = 64  # at once; more are told to come again (429)
    connections_max: int = 256
    client_s_max: float = 30.0  # for a client to send a whole request
    workers: bool = True  # false: models are held by the applications that embed them, alone
    sessions_max: int = 16  # of such applications at once; 0: none may


class SpoolSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Store-and-forward buffer."""

    bytes_max: int = 64 * 1024 * 1024


class ContainersSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The container engine for slots that are images."""

    engine: str | None = None  # e.g. unix:///var/run/docker.sock; none: bundles are run instead


class LogSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's own log on the device, for ``edgekit-agent logs``."""

    bytes_max: int = 1024 * 1024


class SelftestSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When golden sets are replayed beside what serves."""

    hour: int = 3  # local time; -1: not by the clock


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    device: DeviceSection
    broker: BrokerSection = BrokerSection()
    serve: ServeSection = ServeSection()
    spool: SpoolSection = SpoolSection()
    containers: ContainersSection = ContainersSection()
    log: LogSection = LogSection()
    selftest: SelftestSection = SelftestSection()
    pipeline: tuple[PipelineSpec, ...] = ()

    @property
    def address(self) -> Address:
        """Where this device lives on the broker."""
        return Address(self.device.tenant, shard_of(self.device.id), self.device.id)

    @property
    def socket_path(self) -> Path:
        """The Unix socket to serve on."""
        return self.serve.socket or self.device.state_dir / "agent.sock"


def load(path: Path, environ: Mapping[str, str]) -> AgentConfig:
    """Read and check the configuration.

    Raises:
        BadInputError: the file cannot be read.
        UsageError: not TOML, an unknown or missing key, or a value that cannot be used.
    """
    with translate_os_errors("read", path):
        raw = path.read_bytes()[:CONFIG_BYTES_MAX]
    try:
        document = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: not TOML: {exc}") from exc
    _override(document, environ)
    return check(document, str(path))


def check(document: Mapping[str, Any], what: str) -> AgentConfig:
    """The configuration in ``document``.

    Raises:
        UsageError: names the key.
    """
    rest = {key: value for key, value in document.items() if key != "pipeline"}
    try:
        config = msgspec.convert(
            rest, AgentConfig, strict=False, dec_hook=_decode, builtin_types=()
        )
    except msgspec.ValidationError as exc:
        raise UsageError(f"{what}: {exc}", hint="see `edgekit-agent run --help`") from exc
    device = config.device
    check_name(device.id, f"{what}: device id")
    check_name(device.tenant, f"{what}: tenant")
    _require(len(device.labels) <= LABELS_MAX, what, f"more than {LABELS_MAX} labels")
    _require(1 <= config.broker.port <= 65535, what, f"[broker] port {config.broker.port}")
    port = config.serve.port
    _require(port is None or 1 <= port <= 65535, what, f"[serve] port {port}")
    _require(config.serve.threads >= 1, what, f"[serve] threads {config.serve.threads}")
    cores, found = config.serve.cores, os.sched_getaffinity(0)
    _require(set(cores) <= found, what, f"[serve] cores {list(cores)}, here are {sorted(found)}")
    for key in ("requests_max", "connections_max", "client_s_max"):
        value = getattr(config.serve, key)
        _require(value > 0, what, f"[serve] {key} {value}")
    sessions = config.serve.sessions_max
    _require(0 <= sessions <= SESSIONS_MAX, what, f"[serve] sessions_max {sessions}")
    _require(
        config.serve.workers or sessions > 0,
        what,
        "[serve] workers = false and sessions_max = 0: nothing could hold a model",
    )
    _require(
        config.serve.workers or config.containers.engine is None,
        what,
        "[serve] workers = false and [containers] engine: images run in workers",
    )
    _require(config.serve.body_bytes_max >= 1024, what, "[serve] body_bytes_max is below 1024")
    _require(
        config.spool.bytes_max >= SPOOL_BYTES_MIN,
        what,
        f"[spool] bytes_max {config.spool.bytes_max} is below {SPOOL_BYTES_MIN}",
    )
    engine = config.containers.engine
    _require(
        engine is None or engine.partition("://")[0] in {"unix", "tcp"},
        what,
        f"[containers] engine {engine!r} is neither unix://… nor tcp://…",
    )
    log_bytes = config.log.bytes_max
    _require(
        log_bytes == 0 or log_bytes >= LOG_BYTES_MIN,
        what,
        f"[log] bytes_max {log_bytes} is neither 0 nor at least {LOG_BYTES_MIN}",
    )
    hour = config.selftest.hour
    _require(-1 <= hour <= 23, what, f"[selftest] hour {hour}")
    length = len(str(config.socket_path.absolute()).encode())
    _require(
        length <= SOCKET_PATH_BYTES_MAX,
        what,
        f"socket path of {length} bytes, the system allows {SOCKET_PATH_BYTES_MAX}: "
        f"{config.socket_path} (set [serve] socket)",
    )
    if "pipeline" not in document:
        return config
    from edgekit_runtime.pipelines import spec  # noqa: PLC0415 - see PipelineSpec above

    pipelines = spec.read(document["pipeline"], what)
    taken = spec.http_ports(pipelines).get(port or 0)
    _require(taken is None, what, f"pipeline {taken!r}: source.port {port} is [serve] port")
    return msgspec.structs.replace(config, pipeline=pipelines)


def _require(ok: bool, what: str, problem: str) -> None:
    if not ok:
        raise UsageError(f"{what}: {problem}", hint="correct the configuration")


def _decode(kind: type[T], value: Any) -> T:
    if kind is Path and isinstance(value, str) and value:
        return kind(value)  # type: ignore[call-arg]
    raise TypeError(f"expected a path, got {value!r}")


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> None:
    sections = {
        "device": DeviceSection,
        "broker": BrokerSection,
        "serve": ServeSection,
        "spool": SpoolSection,
        "containers": ContainersSection,
        "log": LogSection,
        "selftest": SelftestSection,
    }
    for section, kind in sections.items():
        for key in kind.__struct_fields__:
            value = environ.get(f"{ENV_PREFIX}{section}_{key}".upper())
            if value is None or key == "labels":
                continue
            table = document.setdefault(section, {})
            if isinstance(table, dict):
                table[key] = value.split(",") if key in _LISTS else value
