"""Loads bundles into the test's own process, as embedded mode does."""

from __future__ import annotations

from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import fitness


class LocalHost:
    def __init__(self, root) -> None:
        self._blobs = LayoutReader(root)

    def load(self, model, ref, _policy, *, tested):
        load = fitness.load_tested if tested else fitness.load
        return load(self._blobs, model, ref, 1)
