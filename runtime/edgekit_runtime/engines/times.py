"""From what an engine counted in each run to what is told of an operator: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.contracts.evaluation import NodeTime

_KEPT = 0.9  # of the runs of an operator: in the slowest something else had the processor


def means(runs: Sequence[Mapping[tuple[str, str], float]]) -> tuple[NodeTime, ...]:
    """Mean time of each operator over ``runs``, which give microseconds by name and type.

    The slowest tenth of an operator's runs is left out, and so is what never took any time: it
    became part of another operator.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    kept = max(1, int(_KEPT * len(runs)))
    found = []
    for name, op in keys:
        us = sorted(run.get((name, op), 0.0) for run in runs)
        if any(us[:kept]):
            found.append(NodeTime(name=name, op=op, us=sum(us[:kept]) / kept))
    return tuple(found)
