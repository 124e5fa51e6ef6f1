"""The demo's view of the manager, through its API only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from edgekit.cli.demo import plan

TERMINAL = {"succeeded", "rolled_back"}


@dataclass(frozen=True)
class RolloutView:
    """What the API says of a rollout."""

    raw: dict[str, Any]

    @property
    def status(self) -> str:
        """running, holding, rolling_back, succeeded or rolled_back."""
        return str(self.raw["status"])

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    def phases(self) -> list[tuple[str, str]]:
        """(wave, phase) of every wave."""
        return [(wave["name"], wave["phase"]) for wave in self.raw["waves"]]

    def line(self) -> str:
        """One line of progress."""
        parts = []
        for wave in self.raw["waves"]:
            gates = " ".join(f"{v['metric']}={v['outcome']}" for v in wave["verdicts"])
            members = f" {len(wave['devices'])} devices" if wave["devices"] else ""
            parts.append(f"{wave['name']}: {wave['phase']}{members}" + (gates and f" [{gates}]"))
        reason = f" - {self.raw['reason']}" if self.raw["reason"] else ""
        return f"{self.raw['name']} {self.status}: " + ", ".join(parts) + reason


class FleetClient:
    """A few questions to the manager; None or False while it is not there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=5.0)

    def _get(self, path: str) -> Any:
        try:
            answer = self._http.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def healthy(self) -> bool:
        """Whether the manager answers and has its broker."""
        health = self._get("/health")
        return bool(health and health["broker"]["ok"])

    def devices(self) -> list[dict[str, Any]]:
        """All devices; empty while the manager is away."""
        return self._get("/devices") or []

    def online(self) -> set[str]:
        """Devices the manager holds for online."""
        return {device["device"] for device in self.devices() if device["online"]}

    def rollout(self, name: str) -> RolloutView | None:
        """One rollout, or None while the manager is away."""
        raw = self._get(f"/rollouts/{name}")
        return RolloutView(raw) if raw else None

    def heard_since(self, moment: float) -> bool:
        """Whether every device was heard after ``moment``."""
        devices = self.devices()
        return len(devices) == plan.DEVICES and all(d["last_seen"] > moment for d in devices)
