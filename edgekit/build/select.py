"""Order of preference among candidates: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build.candidates import FP32, Candidate
from edgekit.contracts.evaluation import Latency
from edgekit.stats.bounds import Drop

# Medians closer than this are a tie: medians of separate runs wobble by several per cent, and a
# choice made by noise would differ from build to build.
TIE_RATIO = 1.1


@dataclass(frozen=True)
class Figures:
    """What the tuning split said about one candidate."""

    candidate: Candidate
    size_bytes: int
    drop: Drop
    latency: Latency | None


def admissible(figures: Figures, drop_max: float) -> bool:
    """Whether the drop estimated on the tuning split is within budget; fp32 always competes."""
    return figures.candidate == FP32 or figures.drop.estimate <= drop_max


def preference(measured: Sequence[Figures], drop_max: float) -> list[Figures]:
    """Admissible candidates, best first: fastest where timed (ties: smallest), else smallest."""
    left = [figures for figures in measured if admissible(figures, drop_max)]
    order: list[Figures] = []
    while left:
        timed = [figures.latency.p50_ms for figures in left if figures.latency]
        fastest = min(timed) * TIE_RATIO if len(timed) == len(left) else None
        tied = [f for f in left if fastest is None or (f.latency and f.latency.p50_ms <= fastest)]
        best = min(tied, key=lambda figures: (figures.size_bytes, figures.candidate.name))
        order.append(best)
        left.remove(best)
    return order


def explain(loser: Figures, winner: Figures, drop_max: float) -> str:
    """Why ``loser`` was not chosen, without figures that differ from run to run."""
    if not admissible(loser, drop_max):
        return f"drops {loser.drop.estimate:.4f} on the tuning data, more than {drop_max:g}"
    if loser.latency and winner.latency:
        return f"not faster than {winner.candidate.name}, or as fast and larger"
    return f"larger than {winner.candidate.name} ({loser.size_bytes} bytes)"
