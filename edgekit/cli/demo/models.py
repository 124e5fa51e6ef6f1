"""Steps 1 and 2: train, register and build three versions of the meter model."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from edgekit.cli import output
from edgekit.cli.demo import data, evidence, plan, train
from edgekit.cli.demo.shell import Shell
from edgekit.contracts import codec
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task
from edgekit.contracts.errors import BadInputError

CONTRACT = Contract(
    inputs=(
        InputSpec(
            name=train.INPUT,
            dtype="float32",
            shape=("batch", data.HOURS),
            unit="standardised kW",
            range=(-6.0, 6.0),  # what the meter can report, whatever a model was trained on
        ),
    ),
    outputs=(
        OutputSpec(
            name=train.OUTPUT,
            dtype="float32",
            shape=("batch", len(train.LABELS)),
            task=Task.CLASSIFICATION,
            labels=train.LABELS,
        ),
    ),
    quality=QualityBudget(metric="top1", drop_max=plan.DROP_MAX),
)
_SEARCH_S = 20  # of each version: what the demo shows is decided in the first seconds
SPLITS = ("calibration", "tuning", "evaluation", "golden")


def targets(shell: Shell) -> tuple[str, ...]:
    """Targets that can be proven on this machine, plus one that cannot.

    Raises:
        BadInputError: this machine cannot run the demo's devices.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        raise BadInputError(
            f"the demo's devices are x86-64, this machine is {platform.machine()}",
            hint="edgekit itself builds for and runs on arm64",
        )
    flags = set(Path("/proc/cpuinfo").read_text(errors="replace").split())
    if flags & {"avx512_vnni", "avx_vnni"}:
        return ("x86-64-v3", "x86-64-vnni", "rpi5")
    shell.say("no VNNI on this processor: x86-64-vnni cannot be proven here and is left out")
    return ("x86-64-v3", "rpi5")


def make(shell: Shell, built_for: tuple[str, ...]) -> data.MeterData:
    """Train, register and build every version; returns the data the fleet will see."""
    shell.say("1. Train and register: a fleet of meters (ItalyPowerDemand): winter or summer?")
    meters = data.load(data.cache_folder())
    for model in plan.MODELS:
        _register(shell, model, meters.with_gain(model.gain))
    shell.say("2. Build for " + ", ".join(built_for))
    for model in plan.MODELS:
        wanted = [word for target in built_for for word in ("-t", target)]
        out = str(shell.folder / f"v{model.version}")
        wanted += ["--time-budget", f"{_SEARCH_S}"]
        shell.edgekit("build", f"{plan.MODEL}:{model.version}", *wanted, "--out", out)
    output.note(_table(shell.folder))
    return meters


def _register(shell: Shell, model: plan.ModelPlan, meters: data.MeterData) -> None:
    work = shell.folder / "work" / f"v{model.version}"
    work.mkdir(parents=True)
    path = work / f"{plan.MODEL}.onnx"
    train.train(meters.train, path, kernels=model.kernels, seed=model.seed)
    contract = work / "contract.json"
    contract.write_bytes(codec.encode_pretty(CONTRACT))
    arguments = ["--version", model.version, "--contract", str(contract)]
    for name in SPLITS:
        split: data.Split = getattr(meters, name)
        file = work / f"{name}.npz"
        np.savez(file, allow_pickle=False, **{train.INPUT: split.x, "labels": split.y})
        arguments += [f"--{name}", str(file)]
    shell.edgekit("model", "add", plan.MODEL, str(path), *arguments)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(folder: Path) -> str:
    header = ("", "target", "ships", "top-1", "drop [95 % bound]", "bytes", "ms", "validated")
    rows = [
        (
            f"v{each.version}",
            each.target,
            each.precision,
            f"{each.quality:.4f}",
            f"{each.quality_drop:+.4f} [{each.quality_drop_upper:.4f}]",
            f"{each.size_bytes} of {each.size_bytes_original}",
            f"{_milliseconds(each.latency_ms)} of {_milliseconds(each.latency_ms_original)}",
            each.validated,
        )
        for each in evidence.variants(folder)
    ]
    return output.table(header, rows)
