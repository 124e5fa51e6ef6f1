"""A `Host` that holds no model: for devices whose applications do ([serve] workers = false).

A bundle is still loaded in a worker before anything is believed of it: for its self-test, and
before an application is told to run it. Then the worker ends.
"""

from __future__ import annotations

import msgspec

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit_runtime.ports import Host, Replay


class Proven(msgspec.Struct, frozen=True):
    """`edgekit_runtime.ports.Loaded`: it loaded here a moment ago, and nobody holds it."""

    manifest: BundleManifest
    contract: Contract
    reference: Reference | None
    expectation: Expectation | None
    failure: None = None

    def close(self) -> None:
        """Nothing to unload."""


class ProvingHost:
    """`edgekit_runtime.ports.Host` over another one."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def load(self, model: str, ref: SlotRef, policy: Policy, *, tested: bool) -> Proven:
        """See `Host.load`."""
        loaded = self._host.load(model, ref, policy, tested=tested)
        try:
            return Proven(loaded.manifest, loaded.contract, loaded.reference, loaded.expectation)
        finally:
            loaded.close()

    def replay(self, model: str, ref: SlotRef, policy: Policy, replay: Replay) -> None:
        """See `Host.replay`."""
        self._host.replay(model, ref, policy, replay)
