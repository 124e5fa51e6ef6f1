"""Deltas of a release, for the versions devices run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgekit.cli import output
from edgekit.cli.manager_client import Held, ManagerClient
from edgekit.contracts import digest, oci
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.release import Release
from edgekit.package import delta, reader
from edgekit.package.delta import DeltaFacts
from edgekit.package.reader import VerifiedBundle
from edgekit.package.transfer import Moved

BASES_MAX = 4  # of a target; versions that fewer devices run are fetched whole


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One delta of a release."""

    target: str
    devices: int | None  # that run the base; None when it was named by hand
    facts: DeltaFacts


def publish(
    client: ManagerClient,
    release: Release,
    layouts: Sequence[oci.LayoutReader],
    named: Sequence[str],
    told: Callable[[Moved], None],
) -> list[Made]:
    """Make and push a delta to each variant from each version in the field and each one named.

    Raises:
        BadInputError: a bundle is damaged, or one named has a target the release has not.
        UnavailableError: the manager is not there.
    """
    bases = [reader.find(text) for text in named]
    targets = {base.manifest.target for base in bases}
    if not targets <= release.variants.keys():
        raise BadInputError(
            f"release {release.name} has no variant for {', '.join(sorted(targets))}",
            hint="--delta-from takes bundles of the release's own targets",
        )
    field = client.field(release.model)
    made = []
    with tempfile.TemporaryDirectory(prefix="edgekit-delta-") as folder:
        work = Path(folder)
        for target, variant in sorted(release.variants.items()):
            held = [each for each in field if each.target == target][:BASES_MAX]
            for base, devices in (
                *((base, None) for base in bases if base.manifest.target == target),
                *_fetched(client, held, layouts, work),
            ):
                if base.digest == variant.digest:
                    continue
                new = reader.read(_holding(layouts, variant.digest), variant.digest)
                output.note(f"delta of {target} from {digest.short(base.digest)}")
                facts = delta.make(base, new, work / "made", tag=None)
                made_in = oci.LayoutReader(work / "made")
                client.push_bundle(made_in, variant.repository, facts.digest, told)
                made.append(Made(target=target, devices=devices, facts=facts))
    return made


def _holding(layouts: Sequence[oci.LayoutReader], wanted: str) -> oci.LayoutReader:
    return next(layout for layout in layouts if layout.blob_path(wanted).is_file())


def _fetched(
    client: ManagerClient, held: Sequence[Held], layouts: Sequence[oci.LayoutReader], work: Path
) -> list[tuple[VerifiedBundle, int]]:
    """The bundles devices run: from here when they lie here, else from the manager."""
    found = []
    for each in held:
        layout = next((a for a in layouts if a.blob_path(each.digest).is_file()), None)
        if layout is None and each.repository is None:
            output.note(f"no delta from {digest.short(each.digest)}: it belongs to no release")
            continue
        try:
            if layout is None:
                assert each.repository is not None
                client.pull_bundle(each.repository, each.digest, work / "held")
                layout = oci.LayoutReader(work / "held")
            found.append((reader.read(layout, each.digest), each.devices))
        except (
            BadInputError
        ) as exc:  # an old version is gone or no bundle: not this release's fault
            output.note(f"no delta from {digest.short(each.digest)}: {exc.message}")
    return found


def sentence(facts: DeltaFacts) -> str:
    """What a delta saves."""
    share = 100 * facts.transfer_bytes / max(1, facts.full_bytes)
    return f"to transfer {facts.transfer_bytes} of {facts.full_bytes} bytes ({share:.1f} %)"


def table(made: Sequence[Made]) -> str:
    """Every delta, for people."""
    rows = [
        (
            each.target,
            digest.short(each.facts.base),
            "-" if each.devices is None else str(each.devices),
            f"{each.facts.transfer_bytes / 1024:.0f} KiB",
            f"{each.facts.full_bytes / 1024:.0f} KiB",
        )
        for each in made
    ]
    return output.table(("delta of", "from", "devices", "transfer", "whole"), rows)
