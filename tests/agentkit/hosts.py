"""Loads bundles into the test's own process, as embedded mode does."""

from __future__ import annotations

from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import fitness
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.session import Place, Session


class LocalHost:
    def __init__(self, root) -> None:
        self._blobs = LayoutReader(root)

    def load(self, model, ref, _policy, *, tested):
        loaded = fitness.load(self._blobs, model, ref, 1)
        if tested:
            fitness.warm_up(loaded)
        return loaded


def hosted(serving) -> Session:
    """What a host in this process does with what ``serving`` wants."""
    live = serving.live
    regions = serving.shelf.lend(live.region)
    return Session(live.loaded, Place.of(live.ref.version, live.slot, regions), SystemClock())
