"""What monitors and self-tests read out of a contract. Pure."""

from __future__ import annotations

from edgekit.contracts.contract import Contract, OutputSpec, Task


def scored_output(contract: Contract) -> OutputSpec:
    """The output that metrics and probes look at: the first classification, else the first."""
    for spec in contract.outputs:
        if spec.task is Task.CLASSIFICATION:
            return spec
    return contract.outputs[0]


def class_count(contract: Contract) -> int:
    """Number of classes of the scored output; 0 when it does not classify."""
    spec = scored_output(contract)
    if spec.task is not Task.CLASSIFICATION:
        return 0
    last = spec.shape[-1] if spec.shape else 0
    return len(spec.labels) or (last if isinstance(last, int) else 0)
