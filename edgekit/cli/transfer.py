"""``edgekit push`` and ``edgekit pull``: bundles and images to and from any OCI registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts import digest
from edgekit.contracts.errors import UsageError

if TYPE_CHECKING:
    from edgekit.package.transfer import Moved

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="HOST/REPOSITORY[:TAG]", help="Where it lies in a registry.")
]
PlainOption = Annotated[
    bool, typer.Option("--plain-http", help="Speak HTTP to a host that is not this machine.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout-s", min=0.1, help="Seconds without a byte before giving up.")
]


class _Tally:
    """Says what moves and sums it up."""

    def __init__(self, verb: str) -> None:
        self.verb, self.moved, self.held = verb, 0, 0

    def __call__(self, item: Moved) -> None:
        if item.transferred:
            self.moved += item.size
            output.note(f"  {self.verb} {digest.short(item.digest)} ({item.size} bytes)")
        else:
            self.held += item.size


def push(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT[@REF]", help="OCI layout folder, @ a tag or a digest.")
    ],
    to: ReferenceArgument,
    *,
    plain_http: PlainOption = False,
    timeout_s: TimeoutOption = 30.0,
    json: JsonOption = False,
) -> None:
    """Push a bundle or an image to an OCI registry; sends only what is missing there.

    Without a tag it is stored under its digest alone.
    """
    with output.needs("build"):
        from edgekit.package import reader, reference, registry, transfer
    target = reference.parse(to, plain_http=plain_http)
    if target.digest is not None:
        raise UsageError("push takes a tag, not a digest: the digest follows from the content")
    source, name = reader.split_reference(layout)
    found = source.resolve(name)
    tally = _Tally("sent")
    with registry.Registry(target, timeout_s=timeout_s) as remote:
        transfer.push(remote, source, found, [target.tag or found], tally)
    _finish(f"{target.host}/{target.repository}", target.tag, found, tally, json=json)


def pull(
    source: ReferenceArgument,
    *,
    out: Annotated[Path, typer.Option(help="OCI layout folder to pull into.")],
    plain_http: PlainOption = False,
    timeout_s: TimeoutOption = 30.0,
    json: JsonOption = False,
) -> None:
    """Pull a bundle or an image into a layout folder, what is missing there, all or nothing."""
    with output.needs("build"):
        from edgekit.package import reference, registry, transfer
    wanted = reference.parse(source, plain_http=plain_http)
    tally = _Tally("fetched")
    with registry.Registry(wanted, timeout_s=timeout_s) as remote:
        name = wanted.tag or digest.short(wanted.digest or "") or "latest"
        entry = transfer.pull(remote, out, name, tally)
    _finish(str(out), name, entry.digest, tally, json=json)


def _finish(where: str, tag: str | None, found: str, tally: _Tally, *, json: bool) -> None:
    if json:
        output.emit_json(
            {"digest": found, "tag": tag, "moved_bytes": tally.moved, "held_bytes": tally.held}
        )
        return
    name = f":{tag}" if tag else ""
    output.emit(f"{where}{name}  {found}")
    output.note(f"{tally.moved} bytes {tally.verb}, {tally.held} were there already")
