"""Every field of the report is held to something: corrupt any one of them and the claims fail."""

import msgspec
import pytest

from edgekit.cli.demo import plan, report
from edgekit.contracts.verdict import Outcome, Verdict

DEVICES = list(plan.devices())
TARGETS = ("x86-64-v3", "x86-64-vnni", "rpi5")
T0 = 1.8e9


def verdict(metric, outcome, **figures):
    reason = f"{figures['n_devices']} devices, {figures['n']} samples"
    return Verdict(metric=metric, outcome=outcome, reason=reason, **figures)


def variant(version, target):
    native = target != "rpi5"
    return report.Variant(
        version=version,
        target=target,
        precision="int8",
        metric="top1",
        quality=0.970,
        quality_original=0.972,
        quality_drop=0.002,
        quality_drop_upper=0.012,
        quality_drop_max=0.02,
        size_bytes=90_000,
        size_bytes_original=340_000,
        latency_ms=0.1 if native else None,
        latency_ms_original=0.3 if native else None,
        validated="native" if native else "none",
        gates=("top1_drop", "size_bytes")
        + (("golden_agreement", "latency_ms_p50", "validation") if native else ()),
    )


def wave(name, start, devices, *, control=(), gates=(), phase="done"):
    return report.WaveFigures(
        name=name,
        phase=phase,
        started=T0 + start,
        soak_started=T0 + start + 2,
        finished=T0 + start + 6,
        devices=tuple(devices),
        control=tuple(control),
        gates=gates,
    )


def rollout(name, waves, **changes):
    values = {
        "name": name,
        "release": name,
        "verdict": "succeeded",
        "reason": "every wave passed its gates",
        "devices_exposed": 12,
        "ran_on": tuple(DEVICES),
        "errors": 0,
        "violations": 0,
        "waves": tuple(waves),
        "seconds": 9.0,
    }
    return report.RolloutFigures(**(values | changes))


def good():
    limits = {"accuracy_drop": 0.15, "prediction_shift": 0.35, "confidence_shift": 0.2}
    passed = tuple(
        verdict(
            metric, Outcome.PASS, low=-0.1, estimate=0.0, high=0.1, threshold=limit, n=500,
            n_devices=11,
        )
        for metric, limit in limits.items()
    )  # fmt: skip
    healthy = (
        verdict(
            "error_rate", Outcome.PASS, low=-0.001, estimate=0.0, high=0.001, threshold=0.05, n=900,
            n_devices=9,
        ),
    )  # fmt: skip
    failed = (
        verdict(
            "accuracy_drop", Outcome.FAIL, low=0.3, estimate=0.47, high=0.6, threshold=0.15,
            n=600, n_devices=12,
        ),
        *passed[1:],
    )  # fmt: skip
    never = report.WaveFigures(
        name="all", phase="waiting", started=None, soak_started=None, finished=None,
        devices=(), control=(), gates=(),
    )  # fmt: skip
    counts = {
        d: report.Count(answered=1200, produced=1200, counted=1200, evicted=0) for d in DEVICES
    }
    return report.Report(
        ok=True,
        broker="iotcore",
        seed=1,
        targets=TARGETS,
        rate_per_device=20.0,
        variants=tuple(variant(v, t) for v in "123" for t in TARGETS),
        rollouts=(
            rollout("meter-v1", [wave("all", 0, DEVICES, gates=healthy)]),
            rollout(
                "meter-v2",
                [
                    wave("canary", 10, DEVICES[:1]),
                    wave("quarter", 20, DEVICES[1:3], control=DEVICES[3:], gates=passed),
                    wave("all", 30, DEVICES[3:], gates=healthy),
                ],
            ),
            rollout(
                "meter-v3",
                [
                    wave("canary", 40, DEVICES[:4], control=DEVICES[4:], gates=failed,
                         phase="stopped"),
                    never,
                ],
                verdict="rolled_back",
                reason=failed[0].metric + ": " + failed[0].reason,
                devices_exposed=4,
                ran_on=tuple(DEVICES[:4]),
            ),
        ),
        inferences=report.Inferences(
            answered=14_400,
            produced=14_400,
            counted=14_400,
            evicted=0,
            undelivered=0,
            unanswered=0,
            retried=7,
            seconds=62.0,
            devices=counts,
        ),
        faults=tuple(
            report.FaultFigures(
                killed=name, pid=100 + i, pid_after=200 + i, at=T0 + 20 + i,
                during="meter-v2, wave quarter, soaking",
                unacked_at_kill=2, gone=True, recovered_after_s=2.0,
            )
            for i, name in enumerate(("broker", "manager", "agent meter-07"))
        ),
        agent=report.AgentFigures(
            rss_mb=80.0,
            start_to_first_inference_s=1.2,
            pids={device: 1000 + i for i, device in enumerate(DEVICES)},
            active=dict.fromkeys(DEVICES, "meter-v2"),
            refetched_bytes=dict.fromkeys(DEVICES, 0),
        ),
        seconds=90.0,
    )  # fmt: skip


# Told for people; `edgekit demo --verify` compares these with the traces.
INFORMATIVE = {"schema", "ok", "problems", "broker", "seed", "retried"}


def plain(value):
    return msgspec.json.decode(msgspec.json.encode(value))


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def corrupt(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return -value - 7
    if isinstance(value, float):
        return -3.0 * value - 3.0
    if isinstance(value, str):
        return value + "-altered"
    return ["altered"] if isinstance(value, list) else 1.0


def test_a_true_report_is_ok():
    assert report.check(good()) == []


def paths():
    for path, value in leaves(plain(good())):
        told_for_people = path[-1] in INFORMATIVE or ("gates" in path and path[-1] == "reason")
        waits = path[:4] == ("rollouts", 2, "waves", 1) and value is None
        stayed = path[:2] == ("agent", "refetched_bytes") and path[2] not in DEVICES[:4]
        if not (told_for_people or waits or stayed):
            yield path


@pytest.mark.parametrize("path", list(paths()), ids=lambda path: ".".join(map(str, path)))
def test_any_corrupted_field_is_noticed(path):
    document = plain(good())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = corrupt(node[path[-1]])
    try:
        changed = msgspec.convert(document, report.Report)
    except msgspec.ValidationError:
        return  # cannot even be read
    assert report.check(changed), path
