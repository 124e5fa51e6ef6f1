"""``edgekit infer``: run a model or a bundle over a file, here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption, RegistryOption, split_reference

if TYPE_CHECKING:
    from edgekit_runtime.bundles import Bundle
    from edgekit_runtime.predictor import Predictor


def infer(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_BUNDLE", help="NAME[:VERSION] of the registry, or LAYOUT[@REF]."
        ),
    ],
    *,
    data: Annotated[
        Path, typer.Option("--in", help=".npz, a folder of .npy (one for each input), or .csv.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Outputs by name (.npz).")],
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Rows answered at a time; default: about 8 MB.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads the engine may use.")] = 1,
    refused_max: Annotated[
        int, typer.Option(min=0, help="Rows that may break the contract; more: exit code 3.")
    ] = 0,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Answer every row of a file with the code that devices run.

    An interrupted run goes on where it was when the same command is given again. A bundle is
    verified before; a registered model runs as the original it is.
    """
    with output.needs("runtime"):
        from edgekit_runtime import offline

    run = offline.BatchRun(_load(model, registry, threads), data, out, chunk=chunk)
    summary = run.run(offline.Progress(output.note))
    if json:
        output.emit_json(summary)
    else:
        if summary.resumed:
            output.note(f"{summary.resumed} samples were answered by an earlier run")
        output.emit(offline.describe(summary, out))
    offline.check_refused(summary, refused_max)


def _load(reference: str, registry: Path | None, threads: int) -> Predictor:
    from edgekit_runtime import chosen, predictor

    found = chosen.layout_of(reference)
    if found is not None:
        return chosen.from_layout(*found, threads)
    return predictor.load(_registered(reference, registry), threads=threads)


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
