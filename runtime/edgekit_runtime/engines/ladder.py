"""Which engine runs a model that may be accelerated: the first that reproduces its golden set.

TensorRT on the GPU, else ONNX Runtime on the GPU, else ONNX Runtime on the CPU. An engine that was
kept and answers wrongly is built once more. What refused, and why, is told: a slow fallback that
nobody sees is how accelerators are lost in the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.ports import Array, LoadedModel

LABEL = "accelerate"  # of a bundle: the accelerator it was made for, e.g. tensorrt


class Rung(msgspec.Struct, frozen=True):
    """One way to run a model. ``load`` gets it ready; ``forget`` drops what was kept of it."""

    name: str
    load: Callable[[], LoadedModel]
    forget: Callable[[], None] | None = None


class Reported(msgspec.Struct, frozen=True):
    """A model that says which rung it stands on, and why not on a higher one."""

    model: LoadedModel
    facts: Mapping[str, str]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The model's."""
        return self.model.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """The model's."""
        return self.model.output_names

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's. Raises `EngineError`."""
        return self.model.run(inputs)


def climb(rungs: Sequence[Rung], accept: Callable[[LoadedModel], Verdict | None]) -> Reported:
    """The highest rung that loads and is accepted; the lowest needs no acceptance here.

    Args:
        rungs: best first; the last one is what the build measured.
        accept: replays the golden set; None where there is none, which accepts nothing but the
            last rung: an engine that was built here has to prove itself.

    Raises:
        EdgekitError: the last rung does not load.
    """
    refused: list[str] = []
    for rung in rungs[:-1]:
        for again in (False, True):
            try:
                model = rung.load()
                verdict = accept(model)
            except EdgekitError as exc:
                refused.append(f"{rung.name}: {exc.message}")
                break
            if verdict is not None and verdict.outcome is Outcome.PASS:
                return Reported(model, _facts(rung, model, refused))
            reason = verdict.reason if verdict else "the bundle has no golden set to prove it by"
            refused.append(f"{rung.name}: {reason}")
            if again or rung.forget is None or verdict is None:
                break
            rung.forget()
    if not rungs:
        raise UnsuitableError("no engine is offered for this model")
    last = rungs[-1]
    model = last.load()
    return Reported(model, _facts(last, model, refused))


def _facts(rung: Rung, model: LoadedModel, refused: Sequence[str]) -> dict[str, str]:
    facts = {**model.facts, "accelerator": rung.name}
    if refused:
        facts["refused"] = "; ".join(refused)
    return facts
