"""What a worker gets: as its bundle's policy says, else as the device is configured."""

from __future__ import annotations

from typing import NamedTuple

from edgekit.contracts.messages import Policy


class Share(NamedTuple):
    """Of one worker."""

    threads: int
    cores: tuple[int, ...]  # (): all
    memory_bytes_max: int  # 0: no limit

    @property
    def limited(self) -> bool:
        """Whether nothing may be loaded before the worker keeps to it."""
        return bool(self.cores or self.memory_bytes_max)


def of(policy: Policy, threads: int, cores: tuple[int, ...]) -> Share:
    """The share under ``policy``; the others are the device's own."""
    return Share(policy.threads or threads, policy.cores or cores, policy.worker_bytes_max)
