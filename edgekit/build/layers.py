"""The chosen variant layer by layer: what each gets wrong, and what it costs.

It explains a build and decides nothing, so whatever goes wrong here is said in the record, and the
build goes on. Times differ from run to run: they belong into the record and never into a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgekit.build import tools
from edgekit.build.cache import Step
from edgekit.build.candidates import Engine
from edgekit.build.host import Host
from edgekit.build.measure import CandidateError, Measurer
from edgekit.build.outcome import Chosen
from edgekit.build.processes import says_memory
from edgekit.build.quantizers.layer_errors import LayerError, LayerErrors
from edgekit.build.record import LayerRecord, LayersRecord
from edgekit.build.study import Artifact, Study
from edgekit.build.target import TargetProfile
from edgekit.contracts import codec, digest
from edgekit.contracts.errors import EdgekitError, ResourceError
from edgekit.contracts.evaluation import NodeTime

_VERSION = 1  # of edgekit.build.quantizers.layer_errors
_ERRORS = "edgekit.build.quantizers.layer_errors"
# What quantizers and engines add to the name of a layer's node. What was fused under another name
# is nobody's layer, and stands among the nodes.
_ENDINGS = ("", "_quant", "_MatMul", "_MatMul_quant", "/WithoutBiases")
_IR = "errors: OpenVINO IR keeps no names of tensors by which its layers could be compared"
_FOREIGN = "times: this machine does not count as the target"


@dataclass(frozen=True)
class _Times:
    variant: tuple[NodeTime, ...] = ()
    original: tuple[NodeTime, ...] = ()


@dataclass(frozen=True)
class Inspector:
    """Looks into what was chosen. ``tick`` announces each unit of work."""

    study: Study
    measurer: Measurer
    host: Host
    scratch: Path
    tick: Callable[[str], None]

    def inspect(self, target: TargetProfile, chosen: Chosen) -> LayersRecord:
        """Errors and times of the chosen variant's layers, as far as they can be known."""
        unknown = []
        errors, times = LayerErrors(), _Times()
        artifact = chosen.trial.artifact
        self.tick(f"{target.name}: looking at {chosen.trial.figures.candidate.name} by layers")
        if chosen.trial.figures.candidate.engine is Engine.OPENVINO:
            unknown.append(_IR)
        else:
            try:
                errors = self._errors(artifact)
            except (CandidateError, EdgekitError, OSError) as exc:
                unknown.append(f"errors: {exc}")
        if not self.measurer.is_real(target):
            unknown.append(_FOREIGN)
        else:
            try:
                times = self._times(target, chosen)
            except (CandidateError, EdgekitError, OSError) as exc:
                unknown.append(f"times: {exc}")
        return self._joined(errors, times, unknown)

    def _errors(self, artifact: Artifact) -> LayerErrors:
        """Raises `CandidateError` with the reason why there are none."""
        if artifact.digest == self.study.normalised.digest:
            same = (
                LayerError(name=layer.name, error=0.0, own_error=0.0)
                for layer in self.study.structure.layers
            )
            return LayerErrors(layers=tuple(same))
        contract = self.measurer.contract
        inputs = {
            "model": self.study.normalised.digest,
            "variant": artifact.digest,
            "contract": digest.of_bytes(codec.encode(contract)),
            "data": self.study.tuning.digest,
        }
        # They come from running both models here: the CPU class belongs to the key.
        facts = {"host": self.host.facts()}
        step = Step("layer-errors", _VERSION, tools.versions(), inputs, facts)
        entry = self.measurer.cache.run(step, lambda _: self._run(artifact))
        found = codec.decode(LayerErrors, codec.encode(entry.facts), what="layer errors")
        if found.error is not None:
            raise CandidateError(found.error)
        return found

    def _run(self, artifact: Artifact) -> dict[str, Any]:
        request = {
            "model": self.study.normalised.path,
            "variant": artifact.path,
            "data": self.study.tuning.path(),
            "contract": self.measurer.contract,
        }
        path = self.scratch / "layers.json"
        path.write_bytes(codec.encode(request))
        done = self.measurer.processes.run([*tools.python(), _ERRORS, str(path)])
        if done.starved:
            raise CandidateError(done.wanted)  # with more memory it may be known: nothing is cached
        if done.returncode < 0:
            return {"error": f"the engine crashed with signal {-done.returncode}"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise ResourceError(lines[-1])
        found = codec.decode(LayerErrors, done.stdout, what=f"output of {_ERRORS}")
        if says_memory(found.error or ""):
            raise CandidateError(f"{done.wanted}: {found.error}")
        told: dict[str, Any] = msgspec.to_builtins(found)
        return told

    def _times(self, target: TargetProfile, chosen: Chosen) -> _Times:
        """Of the variant's operators, and of the float model's."""
        variant = self.measurer.subject(
            target, chosen.trial.artifact, chosen.trial.figures.candidate
        )
        original = self.measurer.subject(target, self.study.normalised)
        # What is registered may win: then both are one, and are timed once.
        subjects = [variant] if variant == original else [variant, original]
        found = self.measurer.node_times(subjects, self.study.tuning)
        return _Times(found[0], found[-1])

    def _joined(self, errors: LayerErrors, times: _Times, unknown: Sequence[str]) -> LayersRecord:
        wrong = {each.name: each for each in errors.layers}
        layers = [
            LayerRecord(
                name=layer.name,
                op=layer.op,
                error=wrong[layer.name].error if layer.name in wrong else None,
                own_error=wrong[layer.name].own_error if layer.name in wrong else None,
                us=time_of(layer.name, times.variant),
                original_us=time_of(layer.name, times.original),
            )
            for layer in self.study.structure.layers
        ]
        return LayersRecord(
            samples=errors.samples,
            layers=tuple(layers),
            nodes=times.variant,
            original_nodes=times.original,
            unknown=tuple(unknown),
        )


def time_of(layer: str, nodes: Sequence[NodeTime]) -> float | None:
    """Microseconds of the nodes that are ``layer``; None where the engine has none of its name."""
    names = {layer + ending for ending in _ENDINGS}
    found = [node.us for node in nodes if node.name in names]
    return sum(found) if found else None
