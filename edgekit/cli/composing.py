"""``edgekit release create --compose``: links between models, checked against their contracts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgekit.cli import release_file
from edgekit.contracts import codec, composition
from edgekit.contracts.bundle import BundleManifest, Role
from edgekit.contracts.composition import Link
from edgekit.contracts.contract import Contract
from edgekit.contracts.contract import validate as validate_contract
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.release import Release


class _Source(NamedTuple):
    """A model that may feed others."""

    release: Release
    contracts: dict[str, Contract]  # by target


def with_links(
    release: Release, layouts: Sequence[Path], specs: Sequence[str], sources: Sequence[Path]
) -> Release:
    """``release`` with the links that ``specs`` (``INPUT=MODEL.OUTPUT``) name.

    Args:
        release: of the model that is fed.
        layouts: hold its bundles.
        specs: one for each input that is fed.
        sources: folders that builds wrote, or release files, of the models that feed it.

    Raises:
        UsageError: a link is not of that form, or names a model without a source.
        BadInputError: it does not fit the contracts, or closes a circle.
    """
    if not specs and not sources:
        return release
    known = {found.release.model: found for found in map(_source, sources)}
    links = tuple(_link(spec, known) for spec in specs)
    composition.check_links(release.model, links)
    unused = sorted(set(known) - {link.model for link in links})
    if unused:
        raise UsageError(f"--with {unused[0]}: no --compose names that model")
    composition.check_acyclic(
        {release.model: links, **{name: each.release.compose for name, each in known.items()}}
    )
    readers = [LayoutReader(folder) for folder in layouts]
    for target, contract in _contracts(release, readers):
        at_target = {name: _at(each, target) for name, each in known.items()}
        composition.check_fit(release.model, contract, links, at_target)
    return msgspec.structs.replace(release, compose=links)


def _source(path: Path) -> _Source:
    if path.is_dir():
        release, folders = release_file.compose("source", [path], "")
        readers = [LayoutReader(folder) for folder in folders]
    else:
        release, readers = release_file.read(path)
    return _Source(release, dict(_contracts(release, readers)))


def _contracts(release: Release, layouts: Sequence[LayoutReader]) -> Iterator[tuple[str, Contract]]:
    for target, variant in release.variants.items():
        layout = release_file.holding(layouts, variant.digest)
        config = layout.manifest(variant.digest).config
        raw = layout.read_blob(config.digest, bytes_max=DOCUMENT_BYTES_MAX)
        manifest = codec.decode(BundleManifest, raw, what=f"bundle for {target}")
        entry = manifest.required(Role.CONTRACT)
        document = layout.read_blob(entry.sha256, bytes_max=DOCUMENT_BYTES_MAX)
        yield target, validate_contract(codec.decode(Contract, document, what=entry.path))


def _link(spec: str, known: dict[str, _Source]) -> Link:
    fed, _, source = spec.partition("=")
    # Names may hold dots: the model is whichever of those that were given fits.
    model = next((name for name in known if source.startswith(f"{name}.")), None)
    if not fed or not source or "." not in source:
        raise UsageError(f"--compose {spec!r}: is not INPUT=MODEL.OUTPUT")
    if model is None:
        raise UsageError(
            f"--compose {spec!r}: no --with gives that model",
            hint="--with names the folder its build wrote, or its release file",
        )
    found = known[model]
    contract = next(iter(found.contracts.values()))
    inputs = composition.request_inputs(contract, found.release.compose)
    return Link(input=fed, model=model, output=source.removeprefix(f"{model}."), inputs=inputs)


def _at(source: _Source, target: str) -> Contract:
    contract = source.contracts.get(target)
    if contract is None:
        raise BadInputError(
            f"compose: {source.release.model} has no variant for {target}",
            hint="build it for every target of this release",
        )
    return contract
