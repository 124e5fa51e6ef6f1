"""``edgekit build``: variants of a model for targets, with evidence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import (
    CalibrationOption,
    ContractOption,
    DataOption,
    DropOption,
    EvaluationOption,
    GoldenOption,
    JsonOption,
    RegistryOption,
    TuningOption,
    say,
    sources,
    split_reference,
)
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract
from edgekit.contracts.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from edgekit.build.ports import Progress
    from edgekit.build.record import BuildRecord, VariantRecord
    from edgekit.registry.model import ModelVersion
    from edgekit.registry.ports import Registry
    from edgekit.registry.register import Sources


def build(
    model: Annotated[
        str, typer.Argument(metavar="NAME[:VERSION]|FILE.onnx", help="Registered model, or a file.")
    ],
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="Target profile; may be repeated.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="OCI layout folder to write to.")] = Path("build-out"),
    data: DataOption = None,
    calibration: CalibrationOption = None,
    tuning: TuningOption = None,
    evaluation: EvaluationOption = None,
    golden: GoldenOption = None,
    contract: ContractOption = None,
    drop_max: DropOption = None,
    registry: RegistryOption = None,
    time_budget: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Time for the search, shared by the targets; one that ran out goes on next time.",
        ),
    ] = 120.0,
    memory_budget: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="GB",
            help="Memory of all quantizers and measurements together; most of what is free.",
        ),
    ] = None,
    fold_preprocessing: Annotated[
        bool,
        typer.Option(
            "--fold-preprocessing", help="Let the variants' graphs do the declared preprocessing."
        ),
    ] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="TARGET=COMMAND",
            help="Measure that target on a device: its shell runs what is appended to COMMAND, "
            "e.g. 'rpi5=ssh pi@attic'. May be repeated.",
        ),
    ] = None,
    device_python: Annotated[
        str, typer.Option(help="Python with edgekit-ml[runtime] on the devices.")
    ] = "python3",
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate",
            help="Also gate on the emulated target CPU (qemu-user); see `targets emulator`.",
        ),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Step cache; $EDGEKIT_CACHE or the home folder's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Quantize, measure and gate a model for each target, and write bundles that pass.

    A file is registered first, under its own name. A failed gate ends with exit code 4 and leaves
    no bundle for that target; the record build-record.json says why.
    """
    with output.needs("build"):
        from edgekit.build import devices
        from edgekit.build import target as targets
        from edgekit.build.cache import Cache
        from edgekit.build.pipeline import build as run
        from edgekit.package.bundle import OciBundleWriter
        from edgekit.registry.local import LocalRegistry
    profiles = [targets.find(name) for name in dict.fromkeys(target)]
    if emulate:
        profiles = [targets.emulating(profile) for profile in profiles]
    store = LocalRegistry(registry)
    given = sources(data, calibration, tuning, evaluation, golden)
    version = _version(store, model, given, contract, drop_max)
    record = run(
        store,
        version,
        profiles,
        out,
        writer=OciBundleWriter(),
        cache=Cache(cache) if cache else None,
        time_budget_s=time_budget,
        fold_preprocessing=fold_preprocessing,
        devices=dict(devices.parse(each, device_python) for each in device or ()),
        memory_bytes=int(memory_budget * 1e9) if memory_budget else None,
        on_progress=_progress,
    )
    if json:
        output.emit_json(record)
    else:
        output.emit(describe(record))
        for warning in record.warnings:
            output.note(f"warning: {warning}")
        for variant in record.variants:
            for entry in variant.candidates:
                if entry.outcome == "probe":
                    continue
                output.note(f"{variant.target}: {entry.name} {entry.outcome}: {entry.reason}")
    record.raise_if_failed()


def _version(
    store: Registry, model: str, given: Sources, contract: Path | None, drop_max: float | None
) -> ModelVersion:
    """The registered version that ``model`` names, registering a file first."""
    path = Path(model)
    has_data = given.data is not None or bool(given.splits)
    if not (path.suffix == ".onnx" or "/" in model or path.is_file()):
        if has_data or contract is not None or drop_max is not None:
            raise UsageError(
                "data and contract belong to the registered version and cannot be replaced",
                hint="leave --data and --contract away, or give the ONNX file",
            )
        return store.get(*split_reference(model))
    with output.needs("build"):
        from edgekit.registry.register import register
    if not path.is_file():
        raise BadInputError(f"{model}: no such file", hint="check the path")
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:64] or "model"
    registered = register(
        store,
        name,
        path,
        given,
        contract=codec.read(Contract, contract) if contract else None,
        drop_max=drop_max,
    )
    say(registered)
    return registered.version


def _progress(progress: Progress) -> None:
    eta = "" if progress.eta_s is None else f", about {progress.eta_s:.0f} s left"
    output.note(f"[{progress.done + 1}/{progress.total}{eta}] {progress.what}")


def describe(record: BuildRecord) -> str:
    """The variants as a table."""
    header = [
        "TARGET",
        "PRECISION",
        record.variants[0].metric.upper(),
        "DROP (UPPER)",
        "SIZE",
        "LATENCY",
        "VALIDATED",
        "RESULT",
    ]
    return output.table(header, [_row(variant) for variant in record.variants])


def _row(variant: VariantRecord) -> list[str]:
    share = 100.0 * variant.size_bytes / variant.original_size_bytes
    latency = "not measured"
    if variant.latency_ms is not None and variant.original_latency_ms is not None:
        ratio = variant.original_latency_ms / variant.latency_ms
        latency = f"{variant.latency_ms:.3f} ms ({ratio:.2f}x)"
    return [
        variant.target,
        variant.precision,
        f"{variant.quality:.4f}",
        f"{variant.quality_drop:+.4f} ({variant.quality_drop_upper:+.4f})",
        f"{variant.size_bytes / 1024:.1f} KiB ({share:.0f} %)",
        latency,
        variant.validated,
        "bundle" if variant.digest else "gate failed",
    ]
