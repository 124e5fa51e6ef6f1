"""Telemetry records for tests."""

from __future__ import annotations

from edgekit.contracts.messages import Ack, Window


def window(n: int, region: str = "r", last: int = 0) -> Window:
    return Window(
        model="m",
        digest="d",
        slot="a",
        release="r",
        rollout="o",
        wave=0,
        start=1.0,
        end=2.0,
        n=n,
        region=region,
        first=0,
        last=last,
    )


def ack(epoch: int, boot: int, lane: int, *intervals: tuple[int, int]) -> Ack:
    return Ack(epoch=epoch, boot=boot, lane=lane, intervals=intervals, manager_time=1.0)
