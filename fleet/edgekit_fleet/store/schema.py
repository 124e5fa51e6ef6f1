"""Tables. ``SCHEMA_VERSION`` grows with every change; a newer database is refused, not guessed at.

Frame numbers, epochs and times fit signed 64-bit columns on both engines (epoch < 2**53).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 3  # 2: join_tokens, 3: shadows

metadata = MetaData()

schema_version = Table(
    "schema_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("device", String(64), nullable=False),
    Column("shard", Integer, nullable=False),  # fixed at joining
    Column("joined", Float, nullable=False),
    Column("labels", Text, nullable=False, default="{}"),  # JSON
    Column("profile", LargeBinary),  # JSON of messages.DeviceProfile
    Column("reported", LargeBinary),  # as received
    Column("reported_at", Float),
    Column("gen_observed", Integer, nullable=False, default=0),
    Column("online", Boolean, nullable=False, default=False),
    Column("sid", String(128)),  # session of the newest birth; wills of other sessions are stale
    Column("last_seen", Float, nullable=False, default=0.0),
    UniqueConstraint("tenant", "device"),
)

twins = Table(
    "twins",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("gen", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # sealed envelope, published byte for byte
    Column("digest", String(71), nullable=False),  # of the document inside
    Column("published_gen", Integer, nullable=False),  # < gen: the publisher owes a message
    Column("updated", Float, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("model", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("release", String(64), nullable=False),
    Column("rollout", String(64), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("start", Float, nullable=False),
    Column("end", Float, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("nan", BigInteger, nullable=False),
    Column("violations", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("confidence_sum", Float, nullable=False),
    Column("classes", Text, nullable=False),  # JSON counts of the "class" probe
    Column("edges_digest", String(71), nullable=False),
    Column("body", LargeBinary, nullable=False),  # JSON of the whole record
    Column("received_at", Float, nullable=False),
    # The frame it came in: a tombstone names frames, and some of those may have arrived.
    Column("epoch", BigInteger, nullable=False),
    Column("boot", BigInteger, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    # Identity of what was drained. NULL region when the range is empty (overflow counts only):
    # NULLs are distinct, so such windows rest on the identity of their frame alone.
    Column("region", String(128)),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    UniqueConstraint("device_id", "region", "first", "last"),
    Index("windows_by_model", "model", "digest", "start"),
    Index("windows_by_device", "device_id", "release"),
    Index("windows_by_frame", "device_id", "epoch", "boot", "lane", "seq"),
)

shadows = Table(
    "shadows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("model", String(64), nullable=False),
    Column("release", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("start", Float, nullable=False),
    Column("end", Float, nullable=False),
    Column("shadowed", BigInteger, nullable=False),
    Column("agreed", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("nan", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Index("shadows_by_model", "model", "digest"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("kind", String(64), nullable=False),  # "slot", or the device event's own kind
    Column("model", String(64), nullable=False, default=""),
    Column("digest", String(71), nullable=False, default=""),
    Column("release", String(64), nullable=False, default=""),
    Column("rollout", String(64), nullable=False, default=""),
    Column("state", String(32), nullable=False, default=""),
    Column("detail", Text, nullable=False),
    Column("at", Float, nullable=False),  # device clock
    Column("received_at", Float, nullable=False),
    Index("events_by_device", "device_id", "id"),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("boot", BigInteger, nullable=False),
    Column("lane", Integer, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),
    # Less what arrived after all: produced = counted + evicted holds to the unit.
    Column("inferences", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
)

frames_seen = Table(
    "frames_seen",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("boot", BigInteger, primary_key=True, autoincrement=False),
    Column("lane", Integer, primary_key=True, autoincrement=False),
    Column("intervals", Text, nullable=False),  # JSON [[first, last], ...]
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("release", ForeignKey("releases.name"), nullable=False),
    Column("model", String(64), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("status", String(32), nullable=False),
    Column("terminal", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("abort_requested", Text),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("rollout", ForeignKey("rollouts.name"), nullable=False),
    Column("wave", Integer, nullable=False),
    Column("look", Integer, nullable=False),
    Column("metric", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),  # JSON of verdict.Verdict
    Column("at", Float, nullable=False),
    UniqueConstraint("rollout", "wave", "look", "metric"),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of the secret, never itself
    Column("device", String(64)),  # the only name it is good for; NULL: any
    Column("note", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Float),
    Column("used", Float),
    Column("used_by", String(64)),
)
