"""Reads behind the API: rows into views, one snapshot each."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from sqlalchemy import Row

from edgekit.contracts import codec
from edgekit.contracts.messages import DeviceProfile
from edgekit_fleet.rollout.model import TERMINAL
from edgekit_fleet.rollout.ports import StoredRollout
from edgekit_fleet.store import devices, releases, rollouts, shadows, telemetry, twins
from edgekit_fleet.store.engine import Database
from edgekit_fleet.store.shadows import Shadowed
from edgekit_fleet.views import (
    DeviceDetail,
    DeviceSummary,
    EventsView,
    FieldVersion,
    InferencesView,
    ReleaseView,
    RolloutDetail,
    RolloutView,
    Totals,
)

_SUMS = ("n", "errors", "nan", "violations", "labelled", "correct")


class Queries:
    """Everything the API reads."""

    def __init__(self, database: Database, *, tenant: str, report_s: float) -> None:
        self._database = database
        self._tenant = tenant
        self._report_s = report_s

    def device_list(self, now: float) -> list[DeviceSummary]:
        """Every device, by name."""
        with self._database.read() as connection:
            rows = devices.rows(connection, self._tenant)
            generations = twins.generations(connection)
        return [
            DeviceSummary(**self._summary(row, generations.get(row.id, 0), now)) for row in rows
        ]

    def device(self, name: str, now: float) -> DeviceDetail:
        """One device with its documents.

        Raises:
            NotFoundError: unknown.
        """
        with self._database.read() as connection:
            row = devices.row(connection, self._tenant, name)
            desired = twins.get(connection, row.id)
        summary = self._summary(row, desired.gen if desired else 0, now)
        return DeviceDetail(
            **summary,
            joined=row.joined,
            desired=None if desired is None else msgspec.Raw(codec.encode(desired)),
            reported=None if row.reported is None else msgspec.Raw(row.reported),
        )

    def _summary(self, row: Row[tuple[object, ...]], gen: int, now: float) -> dict[str, Any]:
        reported = devices.reported_of(row)
        profile = reported.profile if reported else DeviceProfile(targets=(), arch="")
        return {
            "device": row.device,
            "shard": row.shard,
            "online": devices.is_online(row, now, self._report_s),
            "last_seen": row.last_seen,
            "labels": profile.labels,
            "targets": profile.targets,
            "agent_version": profile.agent_version,
            "gen": gen,
            "gen_observed": row.gen_observed,
            "device_state": reported.device_state.value if reported else "",
            "models": reported.models if reported else {},
            "note": reported.note if reported else "",
            "health": reported.health if reported else None,
        }

    def fleet_counts(self, now: float) -> tuple[int, int]:
        """Devices, and how many of them are online."""
        with self._database.read() as connection:
            rows = devices.rows(connection, self._tenant)
        return len(rows), sum(devices.is_online(row, now, self._report_s) for row in rows)

    def release_list(self) -> list[ReleaseView]:
        """Every release, newest first."""
        with self._database.read() as connection:
            return [
                ReleaseView(release=release, created=created)
                for release, created in releases.all_releases(connection)
            ]

    def shadow(self, model: str) -> list[Shadowed]:
        """What candidates of ``model`` showed in the shadow of what served."""
        with self._database.read() as connection:
            return shadows.sums(connection, self._tenant, model)

    def field(self, model: str) -> list[FieldVersion]:
        """Which bundles of ``model`` devices run, by target, the most frequent first."""
        with self._database.read() as connection:
            rows = devices.rows(connection, self._tenant)
            known = {
                variant.digest: variant.repository
                for release, _ in releases.all_releases(connection)
                for variant in release.variants.values()
            }
        reports = (
            reported.models.get(model) for reported in map(devices.reported_of, rows) if reported
        )
        active = [report.active for report in reports if report and report.active]
        active = [ref for ref in active if ref.image is None]  # an image's files are the engine's
        counts = Counter((ref.target, ref.digest, ref.version) for ref in active)
        found = [
            FieldVersion(
                target=target,
                digest=digest,
                version=version,
                devices=count,
                repository=known.get(digest),
            )
            for (target, digest, version), count in counts.items()
        ]
        return sorted(found, key=lambda each: (each.target, -each.devices, each.digest))

    def rollout_list(self) -> list[RolloutView]:
        """Every rollout, newest first."""
        with self._database.read() as connection:
            return [RolloutView(**_rollout(stored)) for stored in rollouts.all_rollouts(connection)]

    def rollout(self, name: str) -> RolloutDetail:
        """One rollout with every verdict.

        Raises:
            NotFoundError: unknown.
        """
        with self._database.read() as connection:
            stored = rollouts.get(connection, name)
            verdicts = rollouts.verdicts_of(connection, name)
        return RolloutDetail(
            **_rollout(stored), spec=stored.spec, state=stored.state, verdicts=verdicts
        )

    def events(self, *, device: str | None, limit: int) -> EventsView:
        """The newest events."""
        with self._database.read() as connection:
            return EventsView(
                events=telemetry.recent_events(connection, self._tenant, device=device, limit=limit)
            )

    def inferences(self) -> InferencesView:
        """What was counted, overall, by device and by release."""
        with self._database.read() as connection:
            rows = telemetry.counted(connection, self._tenant)
            evicted = telemetry.evicted(connection, self._tenant)
            counters = telemetry.counter_values(connection)
        by_device = {
            device: _total([row for row in rows if row.device == device], evicted.get(device, 0))
            for device in sorted({row.device for row in rows} | evicted.keys())
        }
        by_release = {
            release: _total([row for row in rows if row.release == release], 0)
            for release in sorted({row.release for row in rows})
        }
        names = (
            *("frames", "frames_duplicate", "frames_damaged"),
            *("windows_duplicate", "records_unknown", "messages_malformed"),
        )
        return InferencesView(
            totals=_total(rows, sum(evicted.values())),
            devices=by_device,
            releases=by_release,
            rows=rows,
            **{name: counters.get(name, 0) for name in names},
        )


def _total(rows: list[telemetry.Counted], evicted: int) -> Totals:
    sums = {name: sum(getattr(row, name) for row in rows) for name in _SUMS}
    return Totals(**sums, evicted=evicted)


def _rollout(stored: StoredRollout) -> dict[str, Any]:
    state = stored.state
    return {
        "name": stored.spec.name,
        "release": stored.release.name,
        "model": stored.release.model,
        "status": state.status.value,
        "terminal": state.status in TERMINAL,
        "reason": state.reason,
        "created": state.created,
        "finished": state.finished,
        "wave": state.wave,
        "waves": state.waves,
        "devices_exposed": state.exposed,
        "ineligible": state.ineligible,
    }
