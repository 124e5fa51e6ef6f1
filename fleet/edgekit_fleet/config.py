"""Settings of one manager process, checked when they are given."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

from edgekit.contracts.errors import UsageError
from edgekit.contracts.ids import check_name
from edgekit.contracts.messages import DeviceConfig

PORT_DEFAULT = 8470
BROKER_DEFAULT = "127.0.0.1:1883"


@dataclass(frozen=True)
class HostPort:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str, *, port_default: int, what: str) -> HostPort:
    """Split ``host``, ``host:port`` or ``[v6]:port``.

    Raises:
        UsageError: names ``what`` and the rule.
    """
    host, port = text.strip(), str(port_default)
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{what} {text!r} is not HOST:PORT", hint=f"for example {BROKER_DEFAULT}")
    return HostPort(host, int(port))


def is_loopback(host: str) -> bool:
    """Whether listening on ``host`` reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ManagerConfig:
    """Everything `wiring.run` needs to know.

    ``artifacts_url`` is what devices are told; when None it is derived from the listening address.
    """

    data_dir: Path
    broker: HostPort
    listen: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    tenant: str = "default"
    artifacts_url: str | None = None
    artifacts: str | None = None  # s3://bucket/prefix; None: in the data folder
    s3_endpoint: str | None = None  # of an S3 that is not Amazon's
    device_broker: HostPort | None = None  # what joining devices are told; None: ``broker``
    window_s: float = 60.0
    report_s: float = 30.0
    require_broker: bool = False
    insecure_bind: bool = False
    tick_s: float = 0.5  # shorter gains nothing while soak times are seconds or more
    batch_s_max: float = 0.05  # longer delays acks, shorter costs an fsync per few messages
    batch_messages_max: int = 500
    broker_wait_s: float = 5.0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: names the option.
        """
        check_name(self.tenant, "tenant")
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port} is not 0-65535")
        for name, value in (("window-s", self.window_s), ("report-s", self.report_s)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"--{name} {value} is not a duration in seconds")
        if not is_loopback(self.listen) and not self.insecure_bind:
            raise UsageError(
                f"--listen {self.listen}: the manager has no authentication yet, so it serves "
                "loopback only",
                hint="add --insecure-bind if everyone who can reach this address may control "
                "the fleet",
            )

    def device_config(self, port: int) -> DeviceConfig:
        """The part of every desired document that the manager's own settings decide."""
        host = "127.0.0.1" if self.listen in ("0.0.0.0", "::", "") else self.listen  # noqa: S104 - compared, not bound
        url = self.artifacts_url or f"http://{HostPort(host, port)}"
        return DeviceConfig(
            artifacts_url=url.rstrip("/"), window_s=self.window_s, report_s=self.report_s
        )
