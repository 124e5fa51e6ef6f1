"""Composition: inputs of a model that are outputs of others on the same device. Pure.

A release declares it, the desired state carries it, and whoever holds the model carries it out: one
request with the inputs of all of them gives the outputs of the last. Each model keeps its own
slots, versions and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgekit.contracts.contract import Contract, InputSpec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import check_name

LINKS_MAX = 16  # of one model


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One input is another model's output."""

    input: str
    model: str  # which other one
    output: str  # of that
    inputs: tuple[str, ...]  # what a request carries for it instead


def check_links(model: str, links: Sequence[Link]) -> None:
    """Return when ``links`` of ``model`` make sense by themselves.

    Raises:
        BadInputError: names the input.
    """
    if len(links) > LINKS_MAX:
        raise BadInputError(f"compose: {len(links)} inputs of {model}, at most {LINKS_MAX}")
    seen: set[str] = set()
    for link in links:
        where = f"compose: input {link.input!r}"
        check_name(link.model, f"{where}: model")
        if link.model == model:
            raise BadInputError(f"{where}: {model} cannot feed itself")
        if link.input in seen:
            raise BadInputError(f"{where}: has two sources")
        if not link.inputs:
            raise BadInputError(f"{where}: {link.model} takes nothing")
        seen.add(link.input)


def check_acyclic(links: Mapping[str, Sequence[Link]]) -> None:
    """Return when no model feeds itself through others.

    Raises:
        BadInputError: names the circle.
    """
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " <- ".join((*path[path.index(name) :], name))
            raise BadInputError(
                f"compose: models feed each other in a circle: {circle}",
                hint="remove one of these links",
            )
        if name not in done:
            for link in links.get(name, ()):
                visit(link.model, (*path, name))
            done.add(name)

    for name in sorted(links):
        visit(name, ())


def check_fit(
    model: str, contract: Contract, links: Sequence[Link], sources: Mapping[str, Contract]
) -> None:
    """Return when every link fits the contracts at both of its ends.

    Raises:
        BadInputError: names input and output, and what differs.
    """
    inputs = {spec.name: spec for spec in contract.inputs}
    for link in links:
        where = f"compose: {link.input} = {link.model}.{link.output}"
        wanted = inputs.get(link.input)
        if wanted is None:
            raise BadInputError(
                f"{where}: {model} has no such input", hint=f"inputs: {', '.join(inputs)}"
            )
        outputs = {spec.name: spec for spec in sources[link.model].outputs}
        given = outputs.get(link.output)
        if given is None:
            raise BadInputError(
                f"{where}: {link.model} has no such output", hint=f"outputs: {', '.join(outputs)}"
            )
        if given.dtype != wanted.dtype:
            raise BadInputError(f"{where}: it is {given.dtype}, {model} wants {wanted.dtype}")
        if not _shape_fits(given.shape, wanted.shape):
            raise BadInputError(
                f"{where}: its shape [{_shown(given.shape)}] is not always "
                f"[{_shown(wanted.shape)}], which {model} wants"
            )
    _check_shared(model, contract, links, sources)


def request_inputs(contract: Contract, links: Sequence[Link]) -> tuple[str, ...]:
    """What a request to a model carries: its own inputs, and those of the models that feed it."""
    fed = {link.input for link in links}
    own = [spec.name for spec in contract.inputs if spec.name not in fed]
    return tuple(dict.fromkeys([*own, *(name for link in links for name in link.inputs)]))


def _check_shared(
    model: str, contract: Contract, links: Sequence[Link], sources: Mapping[str, Contract]
) -> None:
    """An array of one name goes to every model with such an input: they must mean the same."""
    fed = {link.input for link in links}
    seen: dict[str, tuple[str, InputSpec]] = {
        spec.name: (model, spec) for spec in contract.inputs if spec.name not in fed
    }
    for name in sorted(sources):
        for spec in sources[name].inputs:
            other, known = seen.setdefault(spec.name, (name, spec))
            if (known.dtype, len(known.shape)) != (spec.dtype, len(spec.shape)):
                raise BadInputError(
                    f"compose: input {spec.name!r} of {other} and of {name} are not alike",
                    hint="a request has one array of that name for both: rename one",
                )


def _shape_fits(given: tuple[int | str, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether an output of this shape always fits: a named dimension takes any length."""
    if len(given) != len(wanted):
        return False
    return all(
        isinstance(want, str) or have == want for have, want in zip(given, wanted, strict=True)
    )


def _shown(shape: tuple[int | str, ...]) -> str:
    return ", ".join(str(dim) for dim in shape)
