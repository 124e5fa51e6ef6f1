"""Feeds a model from others: what is missing in a request is asked for first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edgekit.contracts.composition import Link
from edgekit_runtime.ports import Array

# (model, its inputs, outputs wanted) -> (outputs, version)
Ask = Callable[[str, Mapping[str, Array], Sequence[str]], tuple[Mapping[str, Array], str]]


def feed(
    links: Sequence[Link], own: Collection[str], arrays: Mapping[str, Array], ask: Ask
) -> tuple[Mapping[str, Array], dict[str, str]]:
    """The inputs of a model, and the versions of the models that made some of them.

    Args:
        links: of the model.
        own: names of its inputs.
        arrays: of the request. An input that is there is taken as it is, and nobody asked for it.
        ask: asks another model.

    Raises:
        EdgekitError: as ``ask``.
    """
    missing = [link for link in links if link.input not in arrays]
    if not missing:
        return arrays, {}
    fed = dict(arrays)
    versions: dict[str, str] = {}
    for model in dict.fromkeys(link.model for link in missing):
        mine = [link for link in missing if link.model == model]
        # What is not there that model's own guard will miss, and say so.
        given = {name: arrays[name] for name in mine[0].inputs if name in arrays}
        outputs, versions[model] = ask(model, given, [link.output for link in mine])
        for link in mine:
            fed[link.input] = outputs[link.output]
    for name in {name for link in missing for name in link.inputs} - set(own):
        fed.pop(name, None)  # it was for others alone
    return fed, versions
