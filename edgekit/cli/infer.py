"""``edgekit infer``: run a model or a bundle over a file, here."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption, RegistryOption, split_reference

if TYPE_CHECKING:
    from edgekit_runtime.bundles import Bundle
    from edgekit_runtime.predictor import Predictor

PROGRESS_S = 1.0  # between two lines of progress


def infer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE", help="NAME[:VERSION] of the registry, or LAYOUT[@REF]."
        ),
    ],
    *,
    data: Annotated[Path, typer.Option("--in", help="Arrays by input name (.npz).")],
    out: Annotated[Path, typer.Option("--out", help="Outputs by name (.npz).")],
    chunk: Annotated[int, typer.Option(min=1, help="Samples kept at a time.")] = 1024,
    threads: Annotated[int, typer.Option(min=1, help="Threads the engine may use.")] = 1,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Answer every sample of a file with the code that devices run.

    An interrupted run goes on where it was when the same command is given again. A bundle is
    verified before; a registered model runs as the original it is.
    """
    with output.needs("runtime"):
        from edgekit_runtime.offline import BatchRun

    loaded = _load(model, registry, threads)
    run = BatchRun(loaded, data, out, chunk=chunk)
    begun, told = monotonic(), monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = monotonic()
        if now - told >= PROGRESS_S and done < total:
            told = now
            left_s = (now - begun) / done * (total - done)
            output.note(f"{done} of {total} samples, about {left_s:.0f} s left")

    summary = run.run(progress)
    if json:
        output.emit_json(summary)
        return
    if summary.resumed:
        output.note(f"{summary.resumed} samples were answered by an earlier run")
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in summary.outputs.items())
    output.emit(f"{out}: {summary.samples} samples, {shapes}")


def _load(reference: str, registry: Path | None, threads: int) -> Predictor:
    from edgekit.contracts.oci import LayoutReader
    from edgekit_runtime import bundles, predictor

    folder, _, tag = reference.rpartition("@")
    if Path(reference).is_dir():
        folder, tag = reference, ""
    if folder and Path(folder).is_dir():
        reader = LayoutReader(Path(folder))
        bundle = bundles.open_bundle(reader, reader.resolve(tag or None))
    else:
        bundle = _registered(reference, registry)
    return predictor.load(bundle, threads=threads)


def _registered(reference: str, root: Path | None) -> Bundle:
    from edgekit.contracts.bundle import BundleManifest
    from edgekit.registry.local import LocalRegistry
    from edgekit_runtime import bundles

    registry = LocalRegistry(root)
    found = registry.get(*split_reference(reference))
    manifest = BundleManifest(
        model=found.name,
        version=found.version,
        target="host",
        precision="fp32",
        engine="onnxruntime",
        engine_versions="",  # an original fits whatever engine is here
        files=(),
    )
    return bundles.Bundle(
        digest=found.digest,
        manifest=manifest,
        contract=found.contract,
        model_path=registry.blob(found.file().sha256),
    )
