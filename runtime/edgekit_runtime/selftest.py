"""``edgekit-agent selftest``: loads what the device holds and replays the golden sets.

An image tests itself, in a container beside the one that serves.
"""

from __future__ import annotations

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.verdict import Outcome, Verdict, combine, not_measured
from edgekit.engine import opened
from edgekit.engine import selftest as images
from edgekit.stats.compare import METRIC
from edgekit_runtime import bundles, predictor
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.containers import slots
from edgekit_runtime.containers.launcher import local_name
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.twocopy import TwoCopy


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts by ``model/digest`` of everything that serves or could be gone back to."""

    outcome: Outcome
    verdicts: dict[str, Verdict]


def run(config: AgentConfig) -> SelfTest:
    """Test every active and fallback bundle; the running agent is not disturbed."""
    state = config.device.state_dir
    record = TwoCopy(PosixDisk(), state, "record", DeploymentRecord).peek().value
    verdicts: dict[str, Verdict] = {}
    for name, model in sorted((record.models if record else {}).items()):
        for ref in (model.active, model.fallback):
            if ref is not None:
                verdicts[f"{name}/{ref.content}"] = _test(config, ref)
    return SelfTest(outcome=combine(verdicts.values()), verdicts=verdicts)


def _test(config: AgentConfig, ref: SlotRef) -> Verdict:
    try:
        if ref.image is not None:
            return _test_image(config, ref)
        bundle = bundles.open_bundle(LayoutReader(config.device.state_dir), ref.digest)
        if bundle.golden is None:
            return not_measured(METRIC, "the bundle has no golden set")
        return predictor.load(bundle).replay_golden(bundle.golden)
    except EdgekitError as exc:
        return not_measured(METRIC, exc.message)


def _test_image(config: AgentConfig, ref: SlotRef) -> Verdict:
    if config.containers.engine is None:
        return not_measured(METRIC, "it is an image, and no [containers] engine is configured")
    engine = opened.engine(config.containers.engine)
    return images.run(engine, local_name(slots.owner_of(config), ref.content)).golden
