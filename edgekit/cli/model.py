"""``edgekit model``: register models and look at what is registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.contracts import codec, digest
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import UsageError, translate_os_errors

if TYPE_CHECKING:
    from edgekit.registry.model import ModelVersion
    from edgekit.registry.register import Registered, Sources

app = typer.Typer(no_args_is_help=True, help="Register models and look at registered ones.")

RegistryOption = Annotated[
    Path | None,
    typer.Option("--registry", help="Registry folder; $EDGEKIT_REGISTRY or the home folder's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="One data set (.npz, folder of .npy, .csv), split for you."),
]
CalibrationOption = Annotated[
    str | None, typer.Option(help="Data that quantization takes its ranges from.")
]
TuningOption = Annotated[str | None, typer.Option(help="Data that candidates are chosen on.")]
EvaluationOption = Annotated[str | None, typer.Option(help="Data of the final gate only.")]
GoldenOption = Annotated[str | None, typer.Option(help="Samples replayed on every device.")]
ContractOption = Annotated[
    Path | None, typer.Option("--contract", help="Contract (JSON); derived when not given.")
]
DropOption = Annotated[
    float | None, typer.Option("--drop-max", help="Quality a variant may lose (0.02 = 2 points).")
]


def sources(
    data: str | None,
    calibration: str | None,
    tuning: str | None,
    evaluation: str | None,
    golden: str | None,
) -> Sources:
    """Data options as `Sources`."""
    from edgekit.registry.model import Split
    from edgekit.registry.register import Sources

    given = {
        Split.CALIBRATION: calibration,
        Split.TUNING: tuning,
        Split.EVALUATION: evaluation,
        Split.GOLDEN: golden,
    }
    return Sources(data=data, splits={kind: path for kind, path in given.items() if path})


def say(registered: Registered) -> None:
    """Tell on stderr what was assumed and whether anything is new."""
    for sentence in registered.assumptions:
        output.note(f"assumed: {sentence}")
    version = registered.version
    verb = "registered" if registered.created else "already registered:"
    output.note(f"{verb} {version.name} version {version.version} ({digest.short(version.digest)})")


def split_reference(reference: str) -> tuple[str, str | None]:
    """``NAME[:VERSION]`` in its parts."""
    name, _, version = reference.partition(":")
    return name, version or None


def _figures(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--metric {text!r} is not NAME=NUMBER", hint="e.g. --metric accuracy=0.96"
            ) from None
    return found


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[Path, typer.Argument(help="The ONNX file.")],
    *,
    version: Annotated[str | None, typer.Option(help="Version; next integer if none.")] = None,
    data: DataOption = None,
    calibration: CalibrationOption = None,
    tuning: TuningOption = None,
    evaluation: EvaluationOption = None,
    golden: GoldenOption = None,
    contract: ContractOption = None,
    drop_max: DropOption = None,
    card: Annotated[Path | None, typer.Option(help="Model card (Markdown).")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER from training; may be repeated.")
    ] = None,
    parent: Annotated[str | None, typer.Option(help="Version this one was made from.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Run of the training system.")] = None,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Register an ONNX file as an immutable model version.

    What the graph tells is derived; each guess is printed as `assumed: ...`. Data sets are paths,
    or digests of stored ones (sha256:...).
    """
    with output.needs("build"):
        from edgekit.registry.local import LocalRegistry
        from edgekit.registry.register import register
    text = ""
    if card is not None:
        with translate_os_errors("read", card):
            text = card.read_text(encoding="utf-8", errors="replace")
    registered = register(
        LocalRegistry(registry),
        name,
        file,
        sources(data, calibration, tuning, evaluation, golden),
        version=version,
        contract=codec.read(Contract, contract) if contract else None,
        drop_max=drop_max,
        metrics=_figures(metric or []),
        card=text,
        parent=parent,
        run_id=run_id,
    )
    say(registered)
    if json:
        output.emit_json(registered.version)
    else:
        output.emit(f"{registered.version.name}:{registered.version.version}")


@app.command("list")
def list_models(*, registry: RegistryOption = None, json: JsonOption = False) -> None:
    """List all model versions."""
    with output.needs("build"):
        from edgekit.registry.local import LocalRegistry
    versions = LocalRegistry(registry).versions()
    if json:
        output.emit_json(versions)
        return
    rows = [[v.name, v.version, digest.short(v.digest), _quality(v), v.created] for v in versions]
    output.emit(output.table(["MODEL", "VERSION", "CONTENT", "QUALITY BUDGET", "ADDED"], rows))


def _quality(version: ModelVersion) -> str:
    quality = version.contract.quality
    return f"{quality.metric} may drop {quality.drop_max:g}"


def _tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
    return f"{name}  {dtype}[{', '.join(str(dim) for dim in shape)}]"


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="Model to show.")],
    *,
    registry: RegistryOption = None,
    json: JsonOption = False,
) -> None:
    """Show one model version: contract, data, lineage, metrics, card."""
    with output.needs("build"):
        from edgekit.registry.local import LocalRegistry
    found = LocalRegistry(registry).get(*split_reference(reference))
    if json:
        output.emit_json(found)
        return
    lines = [f"{found.name}:{found.version}  {found.digest}", f"added    {found.created}"]
    lines += [f"file     {f.path}  {f.size} bytes  {digest.short(f.sha256)}" for f in found.files]
    lines += [f"input    {_tensor(s.name, s.dtype, s.shape)}" for s in found.contract.inputs]
    lines += [f"output   {_tensor(s.name, s.dtype, s.shape)}" for s in found.contract.outputs]
    lines.append(f"quality  {_quality(found)}")
    lines += [
        f"data     {d.split.value}: {d.n} samples  {digest.short(d.digest)}" for d in found.datasets
    ]
    origin = found.lineage
    lines.append(
        f"source   {origin.source}" + (f" @ {origin.git_commit}" * bool(origin.git_commit))
    )
    lines += [f"metric   {name} = {value:g}" for name, value in sorted(found.metrics.items())]
    lines += [f"assumed  {sentence}" for sentence in found.assumptions]
    output.emit("\n".join(lines))
