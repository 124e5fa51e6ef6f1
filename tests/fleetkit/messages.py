"""Messages as devices send them, written by hand."""

from __future__ import annotations

from typing import Any

from edgekit.contracts import codec, frames, topics
from edgekit.contracts.ids import shard_of
from edgekit.contracts.messages import (
    DeviceProfile,
    ModelReport,
    Presence,
    Record,
    Reported,
    Tombstone,
    VariantRef,
    Window,
)
from edgekit.contracts.release import Release
from edgekit.contracts.topics import Address
from edgekit_fleet.ports import Incoming

TENANT = "default"


def digest_of(letter: str) -> str:
    return "sha256:" + letter * 64


def address(device: str, shard: int | None = None) -> Address:
    return Address(TENANT, shard_of(device) if shard is None else shard, device)


def window(**changes: Any) -> Window:
    values: dict[str, Any] = {
        "model": "meter",
        "digest": digest_of("a"),
        "slot": "a",
        "release": "v1",
        "rollout": "r1",
        "wave": 0,
        "start": 100.0,
        "end": 101.0,
        "n": 10,
        "errors": 1,
        "labelled": 4,
        "correct": 3,
        "probes": {"class": (6, 4)},
        "sums": {"confidence": 8.5},
        "region": "r0",
        "first": 0,
        "last": 10,
    }
    return Window(**{**values, **changes})


def tombstone(inferences: int) -> Tombstone:
    return Tombstone(
        boot=1, lane=1, first=0, last=4, records=5, inferences=inferences, reason="full", at=1.0
    )


def frame(seq: int, *records: Record, epoch: int = 7, boot: int = 1, lane: int = 1) -> bytes:
    return frames.encode(epoch=epoch, boot=boot, lane=lane, seq=seq, records=records)


def counting_frame(seq: int, n: int = 10, **identity: int) -> bytes:
    """A frame with one window of its own region range."""
    first = seq * 1000
    region = f"r{identity.get('boot', 1)}"
    record = window(
        n=n, errors=0, labelled=0, correct=0, region=region, first=first, last=first + n
    )
    return frame(seq, record, **identity)


def reported(
    gen: int, *, models: dict[str, ModelReport] | None = None, labels: dict[str, str] | None = None
) -> bytes:
    profile = DeviceProfile(targets=("x86-64-v3",), arch="x86_64", labels=labels or {})
    document = Reported(
        gen_observed=gen, profile=profile, boot=1, epoch=7, models=models or {}, at=50.0
    )
    return codec.encode(document)


def presence(sid: str, *, online: bool) -> bytes:
    return codec.encode(Presence(sid=sid, online=online, at=50.0))


def incoming(
    device: str,
    leaf: str,
    payload: bytes,
    *,
    retained: bool = False,
    mid: int = 1,
    shard: int | None = None,
) -> Incoming:
    return Incoming(
        topic=address(device, shard).topic(leaf),
        payload=payload,
        retained=retained,
        mid=mid,
        qos=1,
        session=1,
    )


def live(device: str, payload: bytes, mid: int = 1) -> Incoming:
    return incoming(device, topics.TELEMETRY_LIVE, payload, mid=mid)


def release(name: str = "v1", letter: str = "a") -> Release:
    variant = VariantRef(digest=digest_of(letter), repository="meter", size=10)
    return Release(name=name, model="meter", version="1", variants={"x86-64-v3": variant})
