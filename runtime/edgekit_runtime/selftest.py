"""``edgekit-agent selftest``: loads what the device holds and replays the golden sets."""

from __future__ import annotations

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.verdict import Outcome, Verdict, combine, not_measured
from edgekit.stats.compare import METRIC
from edgekit_runtime import bundles, predictor
from edgekit_runtime.config import AgentConfig
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
                verdicts[f"{name}/{ref.digest}"] = _test(LayoutReader(state), ref.digest)
    return SelfTest(outcome=combine(verdicts.values()), verdicts=verdicts)


def _test(blobs: LayoutReader, digest: str) -> Verdict:
    try:
        bundle = bundles.open_bundle(blobs, digest)
        if bundle.golden is None:
            return not_measured(METRIC, "the bundle has no golden set")
        return predictor.load(bundle).replay_golden(bundle.golden)
    except EdgekitError as exc:
        return not_measured(METRIC, exc.message)
