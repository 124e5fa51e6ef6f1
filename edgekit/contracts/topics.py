"""MQTT topics (docs/protocol.md §2): ``ek/1/{tenant}/{shard}/{device}/{leaf}``."""

from __future__ import annotations

import msgspec

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import SHARDS, check_name

ROOT = "ek/1"
DESIRED = "desired"
REPORTED = "reported"
PRESENCE = "presence"
EVENT = "evt"
TELEMETRY_LIVE = "tel/live"
TELEMETRY_BACKFILL = "tel/backfill"
ACK = "ack"
COMMAND = "cmd"
RESPONSE = "rsp"
LEAVES = frozenset(
    {
        DESIRED,
        REPORTED,
        PRESENCE,
        EVENT,
        TELEMETRY_LIVE,
        TELEMETRY_BACKFILL,
        ACK,
        COMMAND,
        RESPONSE,
    }
)
# What the manager listens to; devices listen to DESIRED, ACK and COMMAND of their own.
FROM_DEVICE = (REPORTED, PRESENCE, EVENT, TELEMETRY_LIVE, TELEMETRY_BACKFILL)


class Address(msgspec.Struct, frozen=True):
    """Where a device lives on the broker. ``identity`` is its MQTT username."""

    tenant: str
    shard: int
    device: str

    @property
    def identity(self) -> str:
        """``tenant/shard/device``, the MQTT username: the broker's ACL is ``ek/1/%u/…``."""
        return f"{self.tenant}/{self.shard}/{self.device}"

    @property
    def client_id(self) -> str:
        """The MQTT client id: the identity without ``/``, which ends rumqttd 0.20 at once."""
        return self.identity.replace("/", ":")

    def topic(self, leaf: str) -> str:
        """The full topic of ``leaf`` for this device."""
        return f"{ROOT}/{self.identity}/{leaf}"


def subscription(tenant: str, leaf: str) -> str:
    """Filter that matches ``leaf`` of every device of ``tenant``."""
    return f"{ROOT}/{tenant}/+/+/{leaf}"


def parse(topic: str) -> tuple[Address, str]:
    """Split a topic into address and leaf.

    Raises:
        BadInputError: not an edgekit topic.
    """
    parts = topic.split("/", 5)
    if len(parts) != 6 or f"{parts[0]}/{parts[1]}" != ROOT or parts[5] not in LEAVES:
        raise BadInputError(f"not an edgekit topic: {topic[:200]!r}")
    _, _, tenant, shard, device, leaf = parts
    if not (shard.isascii() and shard.isdigit() and int(shard) < SHARDS):
        raise BadInputError(f"topic {topic[:200]!r}: shard {shard[:20]!r} is not 0-{SHARDS - 1}")
    check_name(tenant, "tenant")
    check_name(device, "device")
    return Address(tenant, int(shard), device), leaf
