"""What the demo does, as data: devices, models, rollouts. Durations fit a terminal, not a fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODEL = "meter"
DEVICES = 12
RATE_PER_DEVICE = 20.0  # inferences a second
LABEL_DELAY_S = 2.0
LABEL_SHARE = 0.5
WINDOW_S = 1.0
REPORT_S = 3.0
DROP_MAX = 0.02  # quality budget of the contract: two points of top-1
HALF_GAIN = 0.5  # v3 was trained on readings of current transformers with half the gain


@dataclass(frozen=True)
class ModelPlan:
    """One version of the model: what it is trained on and how large it is."""

    version: str
    kernels: tuple[int, int]
    seed: int
    gain: float
    notes: str

    @property
    def release(self) -> str:
        """Name of its release."""
        return f"{MODEL}-v{self.version}"


MODELS = (
    ModelPlan("1", (32, 64), 1, 1.0, "first model"),
    ModelPlan("2", (128, 256), 1, 1.0, "wider: more accurate"),
    ModelPlan("3", (96, 192), 11, HALF_GAIN, "trained and evaluated on half-gain sensors"),
)

POLICY = {"confirm_inferences_min": 20, "confirm_s_min": 1.5, "unproven_after_s": 60.0}
COMPARISON = [
    {"metric": "accuracy_drop", "max": 0.15, "n_min": 60},
    {"metric": "prediction_shift", "max": 0.35, "n_min": 200},
    {"metric": "confidence_shift", "max": 0.2, "n_min": 200},
]
HEALTH = [{"metric": "error_rate", "max": 0.05, "n_min": 200}]


def devices() -> dict[str, dict[str, str]]:
    """Labels by device: two sites, one device in the canary ring."""
    return {
        f"meter-{i:02}": {
            "site": "north" if i % 2 else "south",
            "ring": "canary" if i == 1 else "main",
        }
        for i in range(1, DEVICES + 1)
    }


def rollout(model: ModelPlan) -> dict[str, Any]:
    """The rollout spec of a version, as it would be written to a file."""
    everyone = {"name": "all", "percent": 100, "soak_s": 4, "looks": 1, "gates": HEALTH}
    ring = {"name": "canary", "selector": {"ring": "canary"}, "soak_s": 3, "looks": 1}
    quarter = {"name": "quarter", "percent": 25, "soak_s": 7, "looks": 2, "gates": COMPARISON}
    drawn = {"name": "canary", "percent": 33, "soak_s": 10, "looks": 2, "gates": COMPARISON}
    waves = {"1": [everyone], "2": [ring, quarter, everyone], "3": [drawn, everyone]}
    return {
        "name": f"{MODEL}-v{model.version}",
        "release": model.release,
        "waves": [{**wave, "timeout_s": 60} for wave in waves[model.version]],
        "policy": POLICY,
        "abort": [{"percent": 20}],
        "hold_s_max": 60,
    }


def moment(rollout: str, wave: str, phase: str) -> str:
    """How the report calls a moment of a rollout."""
    return f"{rollout}, wave {wave}, {phase}"
