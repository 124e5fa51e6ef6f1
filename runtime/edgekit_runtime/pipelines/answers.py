"""What sinks are given: one JSON object for each answer."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np

from edgekit.contracts.contract import Contract
from edgekit.stats.metrics import top_of_row
from edgekit_runtime import contract_facts
from edgekit_runtime.pipelines.endpoint import Answer
from edgekit_runtime.pipelines.intake import Item


def line(pipeline: str, contract: Contract, item: Item, answer: Answer) -> bytes:
    """The answer to ``item``, in one line."""
    return msgspec.json.encode(
        {
            "pipeline": pipeline,
            "id": item.id,
            "at": item.at,
            "answered_at": time.time(),
            "model": answer.model_name,
            "version": answer.model_version,
            "slot": answer.parameters.get("slot", ""),
            "flags": answer.parameters.get("flags", []),
            "source": item.about,
            **_class_of(contract, answer),
            "outputs": {
                output.name: {"shape": output.shape, "data": output.data}
                for output in answer.outputs
            },
        }
    )


def _class_of(contract: Contract, answer: Answer) -> dict[str, Any]:
    """Class, its label and the confidence in it, of models that classify."""
    if contract_facts.class_count(contract) == 0:
        return {}
    spec = contract_facts.scored_output(contract)
    found = next((output for output in answer.outputs if output.name == spec.name), None)
    if found is None or not found.data or not found.shape:
        return {}
    scores = np.array([np.nan if value is None else value for value in found.data], np.float64)
    best, confidence = top_of_row(scores.reshape(-1, found.shape[-1])[0])
    if best < 0:
        return {}
    label = spec.labels[best] if best < len(spec.labels) else str(best)
    return {"class": best, "label": label, "confidence": confidence}
