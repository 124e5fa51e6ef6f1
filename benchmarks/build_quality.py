"""Is what the build chooses as fast as the best that an expert would get from other tools by hand?

Each peer (the defaults of ONNX Runtime's quantizers, NNCF, OpenVINO, Olive) and edgekit start from
the same file and the same data. On a held-out part that no search and no gate has seen, each
variant's upper bound of the paired quality drop is held to the same budget; those within it are
timed in turns, one thread, one process. The ratio is edgekit's median to the fastest such peer,
with a bootstrap interval over rounds; ``A/A`` is the chosen variant against itself.

``--cases power,voice`` picks cases, ``--memory`` adds the curve of calibration memory. The search
has the ``--budgets``, in seconds of search in all: each build goes on where the one before ran out
of time, until one is complete, and each is a row. The last one takes part. Results are written
after each case. ``EDGEKIT_BENCH_TORCH`` names a Python that has PyTorch, scikit-learn and
transformers, for the cases that are made there; ``EDGEKIT_BENCH_PEERS`` a folder that holds Olive's
environment, ``olive``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from harness import RESULTS, Row, write
from quality import peers
from quality.cases import CASES
from quality.memory import memory_rows
from quality.workshop import Case, Workshop

from edgekit.build import host, target
from edgekit.build.cache import Cache
from edgekit.build.pipeline import build
from edgekit.build.record import VariantRecord
from edgekit.contracts import bundle, codec
from edgekit.contracts.contract import Contract, QualityBudget
from edgekit.contracts.oci import LayoutReader
from edgekit.package.bundle import OciBundleWriter
from edgekit.registry import graph, infer
from edgekit.registry.local import LocalRegistry
from edgekit.registry.model import ModelVersion, Split
from edgekit.registry.register import Sources, register
from edgekit.stats.metrics import metric_of

Answer = dict[str, np.ndarray]
HERE = Path(__file__).parent / "quality"
RATIO_MAX, RATIO_UPPER_MAX = 1.02, 1.05
PEER_TIMEOUT_S = 900


def _register(case: Case, folder: Path) -> tuple[LocalRegistry, ModelVersion]:
    """The registry and the version; each split from its own file where the case has splits."""
    registry = LocalRegistry(folder / "registry")
    paths = {}
    for name, arrays in case.splits.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], **arrays)
    if "data" in paths:
        sources = Sources(data=str(paths["data"]))
    else:
        sources = Sources(splits={Split(name): str(path) for name, path in paths.items()})
    if case.metric is None:
        made = register(registry, "case", case.model, sources, drop_max=case.budget)
    else:
        made = register(registry, "case", case.model, sources, contract=_contract(case))
    return registry, made.version


def _contract(case: Case) -> Contract:
    """What edgekit derives from the graph, with the case's own metric."""
    facts = graph.facts(graph.load(case.model), case.name)
    contract = infer.contract_of(facts, None).contract
    quality = QualityBudget(metric=case.metric, drop_max=case.budget)
    return msgspec.structs.replace(contract, quality=quality)


def _target() -> target.TargetProfile:
    machine = host.detect()
    vnni = target.find("x86-64-vnni-openvino")
    return vnni if machine.runs(vnni) else target.find("x86-64-v3-openvino")


def _ours(
    registry: LocalRegistry, model: ModelVersion, folder: Path, budget_s: float
) -> tuple[VariantRecord, Path, float]:
    begun = time.perf_counter()
    record = build(
        registry,
        model,
        [_target()],
        folder / "out",
        writer=OciBundleWriter(),
        cache=Cache(folder / "cache"),
        time_budget_s=budget_s,
        on_progress=lambda step: print(f"    {step.what}", file=sys.stderr),
    )
    took = time.perf_counter() - begun
    variant = record.variants[0]
    place = folder / f"ours-{budget_s:g}"
    place.mkdir(exist_ok=True)
    if variant.digest is not None:
        reader = LayoutReader(folder / "out")
        manifest = reader.manifest(variant.digest)
        raw = reader.read_blob(manifest.config.digest, bytes_max=1 << 20)
        built = codec.decode(bundle.BundleManifest, raw, what="bundle")
        (place / "options.json").write_text(json.dumps(built.engine_options))
        for entry in built.files:
            if entry.role in {"model", "weights"}:
                (place / entry.path).write_bytes(
                    reader.read_blob(entry.sha256, bytes_max=entry.size)
                )
    return variant, place, took


def _python(peer: str) -> str | None:
    if peer != "olive":
        return sys.executable
    root = os.environ.get("EDGEKIT_BENCH_PEERS")
    path = Path(root) / "olive" / "bin" / "python" if root else None
    return str(path) if path and path.exists() else None


def _peers(
    case: Case, calibration: Path, folder: Path
) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    """Models that peers made, and why others made none."""
    models, failed = {}, {}
    for peer in peers.PEERS:
        python = _python(peer)
        if python is None:
            failed[peer] = "its environment is not there (EDGEKIT_BENCH_PEERS)"
            continue
        out = folder / peer
        command = [
            python,
            str(HERE / "peers.py"),
            peer,
            str(case.model),
            str(calibration),
            str(out),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PEER_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            failed[peer] = f"did not end within {PEER_TIMEOUT_S} s"
            continue
        if done.returncode:
            failed[peer] = (done.stderr.strip().splitlines() or ["?"])[-1][:200]
            continue
        engine = "openvino" if peer in {"ov-fp32", "nncf-ov"} else "onnxruntime"
        models[peer] = {"folder": str(out), "engine": engine, "ours": False}
    return models, failed


def _contest(
    models: dict[str, dict[str, object]], case: Case, contract: Contract, folder: Path, rounds: int
) -> Answer:
    names = [spec.name for spec in contract.inputs]
    np.savez(folder / "held.npz", **{name: case.held[name] for name in names})
    request = {
        "models": models,
        "data": str(folder / "held.npz"),
        "scored": infer.scored_output(contract).name,
        "rounds": rounds,
        "out": str(folder / "answer.npz"),
    }
    (folder / "request.json").write_text(json.dumps(request))
    subprocess.run(
        [sys.executable, str(HERE / "contest.py"), str(folder / "request.json")], check=True
    )
    with np.load(folder / "answer.npz") as found:
        return {name: found[name] for name in found.files}


def _ratio(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Median ratio and its 95 % interval: rounds are pairs, since each holds both."""
    ratios = mine / theirs
    rng = np.random.default_rng(0)
    drawn = np.median(ratios[rng.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def run_case(case: Case, folder: Path, args: argparse.Namespace) -> list[Row]:
    print(f"== {case.name}", file=sys.stderr)
    registry, model = _register(case, folder)
    contract = model.contract
    calibration = folder / "calibration-peers.npz"
    source = registry.blob(model.dataset(Split.CALIBRATION).digest)
    calibration.write_bytes(source.read_bytes())
    budgets = [float(each) for each in args.budgets.split(",")]
    variant, place, rows = _searched(case, registry, model, folder, budgets)
    begun = time.perf_counter()
    _ours(registry, model, folder, 0.0)  # a search that had no time left would go on otherwise
    warm = time.perf_counter() - begun
    models, failed = _peers(case, calibration, folder)
    if variant.digest is not None:
        mine = {"folder": str(place), "engine": variant.engine, "ours": True}
        models |= {"edgekit": mine, "edgekit again": mine}
    answer = _contest(models, case, contract, folder, args.rounds)
    rows += _judge(case, contract, variant, answer, failed)
    rows.append(Row(case.name, "warm rebuild, s (not us)", warm, "< 1", warm < 1))
    return rows


def _searched(
    case: Case, registry: LocalRegistry, model: ModelVersion, folder: Path, budgets: list[float]
) -> tuple[VariantRecord, Path, list[Row]]:
    """The variant after the last budget, and what each budget led to."""
    rows: list[Row] = []
    spent = total = 0.0
    for budget in budgets:
        variant, place, took = _ours(registry, model, folder, budget - spent)
        spent, total = budget, total + took
        note = f"{_search(variant)}; drop at most {variant.quality_drop_upper:.4f}, "
        note += f"{variant.latency_ms or float('nan'):.4f} ms, {variant.outcome.value}"
        # The step in hand, races and the final evaluation come on top of the search.
        what = f"build with {budget:g} s of search, s (not us)"
        rows.append(Row(case.name, what, total, "-", True, note=note))
        if variant.search.complete:
            break  # more time changes nothing
    return variant, place, rows


def _judge(
    case: Case,
    contract: Contract,
    variant: VariantRecord,
    answer: Answer,
    failed: dict[str, str],
) -> list[Row]:
    metric = metric_of(contract.quality.metric)
    if "out.ort-fp32" not in answer:
        raise SystemExit(f"{case.name}: the original does not run: {answer['error.ort-fp32']}")
    original = answer["out.ort-fp32"]
    truth = case.held["labels"] if metric.needs_labels else original
    base = metric.score(original, truth)
    n = len(base)
    rows, within = [], {}
    for name in [*peers.PEERS, "edgekit"]:
        if f"out.{name}" not in answer:
            why = failed.get(name) or str(answer.get(f"error.{name}", "no bundle: a gate failed"))
            rows.append(
                Row(
                    case.name,
                    f"{name}: quality drop (not us)",
                    None,
                    "-",
                    name != "edgekit",
                    note=why,
                )
            )
            continue
        scores = metric.score(answer[f"out.{name}"], truth)
        drop = metric.drop(base, scores, confidence=contract.quality.confidence)
        meets = drop.upper <= case.budget
        ms = float(np.median(answer[f"ms.{name}"]))
        within[name] = ms if meets else None
        note = f"{metric.name} {metric.value(scores):.4f} on {n} held-out samples, at most "
        note += f"{drop.upper:.4f} lost; {ms:.4f} ms"
        goal = f"<= {case.budget:g} at 95 %" if name == "edgekit" else "-"
        rows.append(
            Row(case.name, f"{name}: quality drop (not us)", drop.estimate, goal,
                meets or name != "edgekit", note=note)
        )  # fmt: skip
    return rows + _speed_rows(case, variant, answer, within)


def _search(variant: VariantRecord) -> str:
    state = "complete" if variant.search.complete else f"would go on with {variant.search.next}"
    return f"chose {variant.candidate} in {variant.engine}; search {state}"


def _speed_rows(
    case: Case, variant: VariantRecord, answer: Answer, within: dict[str, float | None]
) -> list[Row]:
    fitting = {name: ms for name, ms in within.items() if ms is not None and name != "edgekit"}
    best = min(fitting, key=fitting.__getitem__, default=None)
    goal = f"median <= {RATIO_MAX}, upper <= {RATIO_UPPER_MAX}"
    if within.get("edgekit") is None:
        why = f"edgekit is not within the budget; peers that are: {', '.join(fitting) or 'none'}"
        return [Row(case.name, "latency", None, goal, best is None, best, note=why)]
    noise, low, high = _ratio(answer["ms.edgekit"], answer["ms.edgekit again"])
    rows = [
        Row(case.name, "A/A latency", within["edgekit"] * 1e3, "-", True, "edgekit again",
            float(np.median(answer["ms.edgekit again"])) * 1e3, noise,
            f"noise floor: [{low:.3f}, {high:.3f}]")
    ]  # fmt: skip
    if best is None:
        note = f"{variant.candidate}; no peer is within the budget"
        return [*rows, Row(case.name, "latency", within["edgekit"] * 1e3, goal, True, note=note)]
    ratio, low, high = _ratio(answer["ms.edgekit"], answer[f"ms.{best}"])
    met = ratio <= RATIO_MAX and high <= RATIO_UPPER_MAX
    note = f"{variant.candidate} in {variant.engine}; interval [{low:.3f}, {high:.3f}]"
    rows.append(
        Row(case.name, "latency", within["edgekit"] * 1e3, goal, met, best,
            fitting[best] * 1e3, ratio, note)
    )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--budgets", default="60,300,600")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for downloads and trained models")
    args = parser.parse_args()
    shop_folder = args.keep or Path(tempfile.mkdtemp(prefix="edgekit-quality-"))
    shop_folder.mkdir(parents=True, exist_ok=True)
    shop = Workshop(shop_folder, os.environ.get("EDGEKIT_BENCH_TORCH"))
    rows: list[Row] = []
    for name in filter(None, args.cases.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            try:
                case = CASES[name](shop)
                rows += run_case(case, Path(folder), args)
            except (LookupError, subprocess.CalledProcessError) as exc:
                rows.append(Row(name, "latency", None, "-", False, note=f"not measured: {exc}"))
        _save(rows)
    if args.memory:
        rows += memory_rows()
        _save(rows)


def _save(rows: list[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    write("build_quality", "What the build chooses, beside other tools", rows, __doc__ or "")


if __name__ == "__main__":
    main()
