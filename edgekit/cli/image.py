"""``edgekit image``: container images of bundles, written without an engine and tried in one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import image_engine, output
from edgekit.cli.model import JsonOption
from edgekit.contracts.errors import UsageError

app = typer.Typer(
    no_args_is_help=True, help="Write container images of bundles, and try them in an engine."
)


def _epoch() -> int:
    """$SOURCE_DATE_EPOCH, the agreed way to date reproducible output; 0 without it.

    Raises:
        UsageError: not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdigit() or int(text) >= 2**33:
        raise UsageError(f"SOURCE_DATE_EPOCH={text!r} is not a number of seconds")
    return int(text)


@app.command()
def build(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT", help="Folder with the bundles that a build wrote.")
    ],
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="Target of a bundle in it; repeatable.")
    ],
    *,
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Image to stand on: OCI layout (folder or tar) or HOST/REPOSITORY@sha256:…; "
            "one for all targets or one a target. Default: the target profile's."
        ),
    ] = None,
    base_rootfs: Annotated[
        list[Path] | None,
        typer.Option(help="Root file system (tar) to stand on instead; one a target."),
    ] = None,
    out: Annotated[Path, typer.Option(help="OCI layout folder to write to.")] = Path("image"),
    wheels: Annotated[
        Path | None, typer.Option(help="Wheels to use and keep, by platform; default: the cache.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Step cache; $EDGEKIT_CACHE or the home folder's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write an image for each target: base, wheels, agent, and the bundle in a layer of its own.

    No engine is needed and no foreign code runs. The same inputs give the same digests. Several
    targets of one model version are also tagged together, as one multi-platform image.
    """
    with output.needs("build"):
        from edgekit.build import target as targets
        from edgekit.build.cache import Cache
        from edgekit.package import image, oci_base, reader
    roots = _bases(target, base or [], base_rootfs or [])
    steps = Cache(cache)
    builder = image.Builder(
        steps, wheels or steps.root / "wheels", epoch=_epoch(), on_step=output.note
    )
    bundles = {each.manifest.target: each for each in reader.find_all(layout)}
    plans = []
    for name, root in zip(target, roots, strict=True):
        if name not in bundles:
            raise UsageError(
                f"{layout} holds no bundle for {name}",
                hint="it has " + (", ".join(sorted(bundles)) or "none"),
            )
        arch = {"x86_64": "amd64", "aarch64": "arm64"}[targets.find(name).arch.value]
        if isinstance(root, Path):
            plans.append(builder.plan(bundles[name], arch, builder.rootfs(root)))
        else:
            found = oci_base.opened(root, arch, steps, output.note)
            plans.append(builder.plan(bundles[name], arch, found))
    written = builder.write(plans, out)
    if json:
        output.emit_json(written)
        return
    rows = [
        [w.tag, w.platform, _mb(w.compressed), _mb(w.unpacked), _mb(w.layers["model"].size),
         w.digest] for w in written
    ]  # fmt: skip
    header = ["IMAGE", "PLATFORM", "MB", "UNPACKED", "MODEL LAYER", "DIGEST"]
    output.emit(output.table(header, rows))


def _bases(target: list[str], base: list[str], base_rootfs: list[Path]) -> list[str | Path]:
    """What each target stands on.

    Raises:
        UsageError: neither given nor in the profile, or not as many as targets.
    """
    from edgekit.build import target as targets

    if base and base_rootfs:
        raise UsageError("give --base or --base-rootfs, not both")
    if base_rootfs:
        if len(base_rootfs) != len(target):
            raise UsageError("give --base-rootfs once for each --target, in the same order")
        return list(base_rootfs)
    if base:
        if len(base) not in {1, len(target)}:
            raise UsageError("give --base once, or once for each --target, in the same order")
        return list(base * len(target) if len(base) == 1 else base)
    found: list[str | Path] = []
    for name in target:
        known = targets.find(name).base
        if known is None:
            raise UsageError(
                f"{name}: its profile names no base",
                hint="--base-rootfs ROOT.tar (mmdebstrap makes one), or --base IMAGE@sha256:…",
            )
        found.append(known)
    return found


@app.command()
def save(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT@TAG", help="Image layout and the image in it.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Archive to write, for `docker load`.")],
    name: Annotated[str, typer.Option(help="Name to load it under.")] = "edgekit:latest",
) -> None:
    """Write an image as an archive that `docker load` takes."""
    with output.needs("build"):
        from edgekit.package import archive, reader
    source, reference = reader.split_reference(layout)
    archive.save(source, source.resolve(reference), name, out)
    output.emit(f"{out}  {name}")


app.command()(image_engine.load)
app.command()(image_engine.selftest)
app.command()(image_engine.push)


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
