"""What to try after the first round: pure, and without a state of its own.

The next candidates follow from what is known, and what is known is in the step cache; a search that
was stopped therefore goes on where it was. In order:

1. the best candidates once more, laid out for the processor when they are loaded;
2. other calibration rules, when static quantization costs too much quality: ranges are there;
3. other quantizers than ONNX Runtime's, which take long to calibrate;
4. the cheapest candidate that is over budget and cheaper than the best within it is repaired:
   each of its layers is quantized alone and judged by the *task metric* (ranking layers by the
   error of their outputs alone was measured to make things worse), then the layers that hurt most
   go back to float, as few as bring the expected bound within budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgekit.build import select
from edgekit.build.candidates import (
    CONVOLUTIONS,
    Calibration,
    Candidate,
    Engine,
    Ops,
    Scheme,
    Structure,
    with_layout,
)
from edgekit.build.select import Figures

_NAMES_SHOWN = 3  # a name lists the layers that are left in float up to this many
_LAYOUTS_MAX = 2  # beside the original: what is slower as it is seldom becomes the fastest
_RECALIBRATED_MAX = 3  # the rules mend ranges, and ranges of noisier ones are not what is wrong
_REPAIRS_MAX = 2  # bases to repair: a third was never cheaper than what the first two led to


@dataclass(frozen=True)
class Known:
    """Figures of all that ran, and what was dropped. ``timed``: latency decides, else size."""

    figures: Mapping[Candidate, Figures]
    dropped: frozenset[Candidate]
    drop_max: float
    timed: bool

    def tried(self, candidate: Candidate) -> bool:
        """Whether there is nothing more to learn about ``candidate``."""
        return candidate in self.figures or candidate in self.dropped

    def fits(self, candidate: Candidate) -> bool:
        """Whether it ran and the evaluation split can be expected to pass."""
        found = self.figures.get(candidate)
        return found is not None and select.admissible(found, self.drop_max)


def next_candidates(
    known: Known, structure: Structure, others: Sequence[Candidate] = ()
) -> tuple[Candidate, ...]:
    """What to measure next, best first; empty when the search is over.

    Args:
        known: what was measured.
        structure: of the graph.
        others: candidates that are no part of the first round, and are always tried.
    """
    for stage in (_layouts(known, structure), _calibrations(known), others):
        if left := tuple(each for each in stage if not known.tried(each)):
            return left
    for base in _bases(known):
        wanted = _probes(known, base, structure) or _reversal(known, base, structure)
        if wanted:
            return wanted
        if any(each.floats and known.fits(each) for each in known.figures):
            break  # one repair worked, and left as little in float as its ranking allows
    return ()


def _layouts(known: Known, structure: Structure) -> Iterable[Candidate]:
    """The original and the best few, where there are convolutions and the clock can tell."""
    if not known.timed or not CONVOLUTIONS & set(structure.ops):
        return
    fitting = [
        figures
        for figures in known.figures.values()
        if figures.candidate.engine is Engine.ONNXRUNTIME
        and not (figures.candidate.layout or figures.candidate.only)
        and select.admissible(figures, known.drop_max)
    ]
    fitting.sort(key=lambda figures: select.cost(figures, timed=True))
    best = [f.candidate for f in fitting if not f.candidate.unquantized][:_LAYOUTS_MAX]
    for candidate in [*(f.candidate for f in fitting if f.candidate.unquantized), *best]:
        yield with_layout(candidate)


def _calibrations(known: Known) -> Iterable[Candidate]:
    """Percentile and entropy for the few least noisy that would be the best within the budget."""
    plain = [
        candidate
        for candidate in _promising(known)
        if candidate.needs_ranges
        and candidate.calibration is Calibration.MINMAX
        and not (candidate.floats or candidate.layout)
    ]
    for candidate in plain[:_RECALIBRATED_MAX]:
        for rule in (Calibration.PERCENTILE, Calibration.ENTROPY):
            name = f"{candidate.name}-{rule.value}"
            yield msgspec.structs.replace(candidate, name=name, calibration=rule)


def _promising(known: Known) -> list[Candidate]:
    """Candidates over budget that would gain on the best within it; the least noisy first."""
    shipping = [f for f in known.figures.values() if not f.candidate.only]
    fitting = [f for f in shipping if select.admissible(f, known.drop_max)]
    best = min(fitting, key=lambda f: select.cost(f, timed=known.timed), default=None)
    found = [
        figures
        for figures in shipping
        if not select.admissible(figures, known.drop_max)
        and (best is None or select.gains(figures, best, timed=known.timed))
    ]
    found.sort(key=lambda figures: (figures.noise, figures.candidate.name))
    return [figures.candidate for figures in found]


def _bases(known: Known) -> list[Candidate]:
    """Candidates worth a repair.

    Where all operators are quantized it need not be a layer that hurts, and the other operator sets
    are what reversal makes of this one.
    """
    repairable = {Scheme.STATIC, Scheme.EXPLICIT, Scheme.DYNAMIC}
    found = [
        candidate
        for candidate in _promising(known)
        if candidate.scheme in repairable
        and candidate.ops is Ops.WEIGHTS
        and not (candidate.floats or candidate.layout)
    ]
    return found[:_REPAIRS_MAX]


def probe(base: Candidate, layer: str) -> Candidate:
    """``base`` with ``layer`` alone quantized."""
    return msgspec.structs.replace(base, name=f"{base.name}~only({layer})", only=(layer,))


def reverted(base: Candidate, layers: Iterable[str], structure: Structure) -> Candidate:
    """``base`` with ``layers`` back in float."""
    chosen = set(layers)
    floats = tuple(name for name in base.layers_of(structure) if name in chosen)
    shown = ",".join(floats)
    if len(floats) > _NAMES_SHOWN:
        shown = f"{len(floats)}:{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
    return msgspec.structs.replace(base, name=f"{base.name}+float({shown})", floats=floats)


def _probes(known: Known, base: Candidate, structure: Structure) -> tuple[Candidate, ...]:
    layers = base.layers_of(structure)
    if len(layers) < 2:
        return ()
    wanted = (probe(base, layer) for layer in layers)
    return tuple(each for each in wanted if not known.tried(each))


def sensitivity(known: Known, base: Candidate, structure: Structure) -> list[str]:
    """Layers of ``base``, the one that costs most of the metric first; noise breaks ties."""

    def harm(layer: str) -> tuple[float, float]:
        found = known.figures.get(probe(base, layer))
        return (found.drop.estimate, found.noise) if found else (float("inf"), 0.0)

    return sorted(base.layers_of(structure), key=harm, reverse=True)


def _reversal(known: Known, base: Candidate, structure: Structure) -> tuple[Candidate, ...]:
    """The next reversal: doubling until one fits, then bisecting, then putting layers back."""
    order = sensitivity(known, base, structure)
    if len(order) < 2:
        return ()
    count = _prefix(known, base, structure, order)
    if count is None:
        return ()
    candidate = reverted(base, order[:count], structure)
    if not known.tried(candidate):
        return (candidate,)
    return _put_back(known, base, structure, order[:count])


def _prefix(known: Known, base: Candidate, structure: Structure, order: list[str]) -> int | None:
    """The number of worst layers to revert next; once it is settled, the least that fits."""

    def fits(count: int) -> bool | None:
        candidate = reverted(base, order[:count], structure)
        return known.fits(candidate) if known.tried(candidate) else None

    low, high = 0, 1  # low does not fit; high is to be tried
    while True:
        answer = fits(high)
        if answer is None or answer:
            break
        if high == len(order) - 1:
            return None
        low, high = high, min(2 * high, len(order) - 1)
    while answer and high - low > 1:
        middle = (low + high) // 2
        found = fits(middle)
        if found is None:
            return middle
        low, high = (low, middle) if found else (middle, high)
    return high


def _put_back(
    known: Known, base: Candidate, structure: Structure, chosen: list[str]
) -> tuple[Candidate, ...]:
    """Try to do without each reverted layer but the worst; the order was only a ranking."""
    kept = list(chosen)
    for layer in reversed(chosen[1:]):
        fewer = [name for name in kept if name != layer]
        candidate = reverted(base, fewer, structure)
        if not known.tried(candidate):
            return (candidate,)
        if known.fits(candidate):
            kept = fewer
    return ()
