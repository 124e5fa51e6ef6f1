"""What a build expects of a variant in the shadow of its original."""

from __future__ import annotations

import numpy as np

from edgekit.build import derive
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task


def test_a_build_expects_the_lower_bound_of_what_it_measured():
    contract = Contract(
        inputs=(InputSpec(name="x", dtype="float32", shape=("n", 2)),),
        outputs=(OutputSpec(name="y", dtype="float32", shape=("n", 2), task=Task.CLASSIFICATION),),
        quality=QualityBudget(metric="agreement", drop_max=0.02),
    )
    before = np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1))
    after = before.copy()
    after[:3] = after[:3, ::-1]
    found = derive.expectation(contract, {"y": before}, {"y": after})
    assert found is not None
    assert (found.n, found.agreement) == (100, 0.97)
    assert 0.9 < found.agreement_min < 0.97
