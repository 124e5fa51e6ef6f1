"""Order of preference among candidates, and which of them nothing beats: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build.candidates import Candidate
from edgekit.contracts.evaluation import Latency
from edgekit.stats.bounds import Drop

# Medians closer than this are a tie: medians of separate runs wobble by several per cent, and a
# choice made by noise would differ from build to build. Sizes as close as this decide nothing.
TIE_RATIO = 1.1
RACE_TIE_RATIO = 1.01  # candidates timed in turns are told apart better than that
_CLOSE_RATIO = 1.3  # medians of separate runs can be this wrong on a busy machine
_CLOSE_MAX = 6  # all are loaded at once
GAIN_RATIO = 1.05  # what a repaired candidate may gain at least to be worth the search


@dataclass(frozen=True)
class Figures:
    """What the tuning split said about one candidate.

    ``expected`` is the drop as the evaluation split would show it, were its samples like those of
    the tuning split: the bound that the gate will hold against the budget, and any later look at
    other data, with room for what differs between sets by chance. ``noise`` is the
    distance of the scored output from the original's, relative to its size.
    """

    candidate: Candidate
    size_bytes: int
    drop: Drop
    latency: Latency | None
    expected: Drop
    noise: float = 0.0
    broken: tuple[str, ...] = ()  # slices that lose more than the budget


def admissible(figures: Figures, drop_max: float) -> bool:
    """Whether the evaluation split can be expected to pass; what is unquantized always competes."""
    if figures.candidate.unquantized:
        return True
    return figures.expected.upper <= drop_max and not figures.broken


def cost(figures: Figures, *, timed: bool) -> tuple[float, float, str]:
    """Less is better: latency where timed, else size.

    Without a clock, size stands in for speed. That is right for integer arithmetic only: what
    stores less and computes in float comes after the original then.
    """
    if timed and figures.latency is not None:
        return (figures.latency.p50_ms, figures.size_bytes, figures.candidate.name)
    unproven = figures.candidate.computes_in_float and not figures.candidate.unquantized
    return (float(unproven), figures.size_bytes, figures.candidate.name)


def gains(figures: Figures, over: Figures, *, timed: bool) -> bool:
    """Whether ``figures`` is cheaper by more than what repairing a layer would cost at once."""
    if cost(figures, timed=timed) >= cost(over, timed=timed):
        return False
    both = figures.latency, over.latency
    if timed and both[0] and both[1]:
        return both[0].p50_ms * GAIN_RATIO < both[1].p50_ms
    return figures.size_bytes * GAIN_RATIO < over.size_bytes


def close(order: Sequence[Figures]) -> list[Figures]:
    """Those whose latency is too near the least one for separate runs to tell."""
    timed = [(each.latency.p50_ms, each) for each in order if each.latency]
    least = min((found for found, _ in timed), default=0.0)
    near = [pair for pair in timed if pair[0] <= least * _CLOSE_RATIO]
    near.sort(key=lambda pair: pair[0])
    return [each for _, each in near[:_CLOSE_MAX]]


def preference(
    measured: Sequence[Figures], drop_max: float, *, tie_ratio: float = TIE_RATIO
) -> list[Figures]:
    """Admissible candidates, best first: fastest where timed (ties: smallest), else smallest.

    Among those that are as fast and as small, the one whose outputs are nearest the original's:
    what gains nothing is not worth any error, and the original wins against it.
    """
    left = [figures for figures in measured if admissible(figures, drop_max)]
    order: list[Figures] = []
    while left:
        timed = [figures.latency.p50_ms for figures in left if figures.latency]
        if len(timed) == len(left):
            fastest = min(timed) * tie_ratio
            tied = [f for f in left if f.latency and f.latency.p50_ms <= fastest]
        else:
            proven = min(cost(figures, timed=False)[0] for figures in left)
            tied = [f for f in left if cost(f, timed=False)[0] == proven]
        smallest = min(figures.size_bytes for figures in tied) * TIE_RATIO
        alike = [figures for figures in tied if figures.size_bytes <= smallest]
        best = min(alike, key=lambda f: (f.noise, f.size_bytes, f.candidate.name))
        order.append(best)
        left.remove(best)
    return order


def front(measured: Sequence[Figures]) -> frozenset[str]:
    """Names of the candidates that no other beats in drop (its bound), latency and size at once."""
    timed = all(figures.latency for figures in measured)

    def goals(figures: Figures) -> tuple[float, ...]:
        latency = figures.latency.p50_ms if timed and figures.latency else 0.0
        return (figures.expected.upper, latency, figures.size_bytes)

    def beaten(figures: Figures) -> bool:
        mine = goals(figures)
        return any(
            theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(goals, measured)
        )

    return frozenset(figures.candidate.name for figures in measured if not beaten(figures))


def explain(loser: Figures, winner: Figures, drop_max: float) -> str:
    """Why ``loser`` was not chosen, without figures that differ from run to run."""
    if not admissible(loser, drop_max):
        return _over_budget(loser, drop_max)
    if loser.latency and winner.latency:
        return f"not faster than {winner.candidate.name}, or as fast and no better"
    if loser.candidate.computes_in_float and not loser.candidate.unquantized:
        return f"stores less but computes in float: no gain over {winner.candidate.name} is proven"
    name, size = winner.candidate.name, winner.size_bytes
    if loser.size_bytes <= size * TIE_RATIO:
        return f"hardly smaller than {name} ({size} bytes), or not at all, and further off"
    return f"larger than {name} ({size} bytes)"


def _over_budget(figures: Figures, drop_max: float) -> str:
    drop = figures.drop.estimate
    if drop > drop_max:
        return f"drops {drop:.4f} on the tuning data, more than {drop_max:g}"
    if figures.broken:
        names = ", ".join(figures.broken)
        return f"slice {names} of the tuning data drops by more than {drop_max:g}"
    return (
        f"drops {drop:.4f} on the tuning data: up to {figures.expected.upper:.4f} is to be "
        f"expected on the evaluation data, more than {drop_max:g}"
    )
