"""Rollouts: specs, states with compare-and-set, verdicts of every look."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy import Connection, Row, select, update

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import DeviceConfig, DeviceProfile, check_group
from edgekit.contracts.verdict import Verdict
from edgekit_fleet.errors import NotFoundError
from edgekit_fleet.rollout.model import (
    TERMINAL,
    Assignment,
    DeviceView,
    Evidence,
    Observation,
    RolloutState,
)
from edgekit_fleet.rollout.ports import StoredRollout
from edgekit_fleet.rollout.spec import RolloutSpec
from edgekit_fleet.store import devices as device_store
from edgekit_fleet.store import releases as release_store
from edgekit_fleet.store import telemetry, twins
from edgekit_fleet.store.engine import Database, upsert
from edgekit_fleet.store.schema import rollouts, verdicts
from edgekit_fleet.store.schema import twins as twins_table


def _stored(connection: Connection, row: Row[tuple[object, ...]]) -> StoredRollout:
    return StoredRollout(
        spec=codec.decode(RolloutSpec, row.spec, what=f"stored rollout {row.name}"),
        release=release_store.get(connection, row.release),
        state=codec.decode(RolloutState, row.state, what=f"state of rollout {row.name}"),
        version=row.version,
    )


def create(
    connection: Connection, spec: RolloutSpec, state: RolloutState, now: float
) -> StoredRollout:
    """Store a new rollout.

    Raises:
        BadInputError: the release is unknown, the name is taken, or another rollout of the same
            model is still open (two would fight over the same devices).
    """
    release = release_store.get(connection, spec.release)
    if spec.group:
        check_group(release.model, spec.group)
    taken = connection.execute(select(rollouts.c.name).where(rollouts.c.name == spec.name)).first()
    if taken is not None:
        raise BadInputError(f"rollout {spec.name}: exists already", hint="choose another name")
    rival = connection.execute(
        select(rollouts.c.name).where(
            rollouts.c.model == release.model, rollouts.c.terminal.is_(False)
        )
    ).scalar()
    if rival is not None:
        raise BadInputError(
            f"rollout {spec.name}: rollout {rival} of model {release.model} is still open",
            hint=f"wait for it, or: edgekit fleet rollout abort {rival}",
        )
    connection.execute(
        rollouts.insert().values(
            name=spec.name,
            release=spec.release,
            model=release.model,
            spec=codec.encode(spec),
            state=codec.encode(state),
            status=state.status.value,
            terminal=state.status in TERMINAL,
            version=1,
            created=now,
            updated=now,
        )
    )
    return StoredRollout(spec=spec, release=release, state=state, version=1)


def get(connection: Connection, name: str) -> StoredRollout:
    """One rollout.

    Raises:
        NotFoundError: unknown.
    """
    row = connection.execute(select(rollouts).where(rollouts.c.name == name)).first()
    if row is None:
        raise NotFoundError(
            f"rollout {name!r}: unknown", hint="`edgekit fleet rollout list` shows them"
        )
    return _stored(connection, row)


def all_rollouts(connection: Connection) -> list[StoredRollout]:
    """Every rollout, newest first."""
    found = connection.execute(select(rollouts).order_by(rollouts.c.created.desc()))
    return [_stored(connection, row) for row in found.all()]


def request_abort(connection: Connection, name: str, reason: str, now: float) -> bool:
    """Ask the controller to roll ``name`` back.

    Returns:
        False when it had ended already.

    Raises:
        NotFoundError: unknown.
    """
    if get(connection, name).state.status in TERMINAL:
        return False
    connection.execute(
        update(rollouts).where(rollouts.c.name == name).values(abort_requested=reason, updated=now)
    )
    return True


class StoredVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate's figures at one look."""

    wave: int
    look: int
    at: float
    verdict: Verdict


def verdicts_of(connection: Connection, name: str) -> list[StoredVerdict]:
    """Every verdict of a rollout, in the order it was reached."""
    statement = select(verdicts).where(verdicts.c.rollout == name).order_by(verdicts.c.id)
    return [
        StoredVerdict(
            wave=row.wave,
            look=row.look,
            at=row.at,
            verdict=codec.decode(Verdict, row.body, what=f"verdict of {name}"),
        )
        for row in connection.execute(statement)
    ]


class SqlRolloutStore:
    """The controller's `rollout.ports.RolloutStore` on the manager's database.

    ``config`` yields the device settings of this manager; ``changed`` is called after a commit that
    left documents to publish.
    """

    def __init__(
        self,
        database: Database,
        *,
        tenant: str,
        config: DeviceConfig,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._tenant = tenant
        self._config = config
        self._changed = changed
        self._clock = clock

    def open_rollouts(self) -> list[StoredRollout]:
        """Every rollout that is not in a terminal state."""
        with self._database.read() as connection:
            statement = select(rollouts).where(rollouts.c.terminal.is_(False))
            found = connection.execute(statement.order_by(rollouts.c.created)).all()
            return [_stored(connection, row) for row in found]

    def observe(self, rollout: StoredRollout, since: float | None) -> Observation:
        """Views of all devices, in one snapshot."""
        model, now = rollout.release.model, self._clock()
        candidate: dict[int, telemetry.EvidenceSums] = {}
        other: dict[int, telemetry.EvidenceSums] = {}
        with self._database.read() as connection:
            if since is not None:
                digests = {variant.digest for variant in rollout.release.variants.values()}
                candidate, other = telemetry.evidence(
                    connection, model=model, digests=digests, since=since
                )
            payloads = {
                row.device_id: row.payload
                for row in connection.execute(
                    select(twins_table.c.device_id, twins_table.c.payload)
                )
            }
            views = {
                row.device: self._view(
                    row,
                    payloads.get(row.id),
                    model,
                    candidate=candidate.get(row.id),
                    other=other.get(row.id),
                    now=now,
                )
                for row in device_store.rows(connection, self._tenant)
            }
            abort = connection.execute(
                select(rollouts.c.abort_requested).where(rollouts.c.name == rollout.spec.name)
            ).scalar()
        return Observation(devices=views, abort_requested=abort)

    def _view(
        self,
        row: Row[tuple[object, ...]],
        payload: bytes | None,
        model: str,
        *,
        candidate: telemetry.EvidenceSums | None,
        other: telemetry.EvidenceSums | None,
        now: float,
    ) -> DeviceView:
        desired = None if payload is None else twins.document(payload, f"twin of {row.device}")
        reported = device_store.reported_of(row)
        profile = reported.profile if reported else DeviceProfile(targets=(), arch="")
        return DeviceView(
            device=row.device,
            labels=profile.labels,
            targets=profile.targets,
            online=device_store.is_online(row, now, self._config.report_s),
            gen=desired.gen if desired else 0,
            gen_observed=row.gen_observed,
            deployment=desired.deployments.get(model) if desired else None,
            report=reported.models.get(model) if reported else None,
            candidate=_evidence(candidate),
            other=_evidence(other),
        )

    def commit(
        self, rollout: StoredRollout, state: RolloutState, assignments: Sequence[Assignment]
    ) -> bool:
        """Store ``state``, its new verdicts and the assignments in one transaction."""
        now, name = self._clock(), rollout.spec.name
        with self._database.write() as connection:
            result = connection.execute(
                update(rollouts)
                .where(rollouts.c.name == name, rollouts.c.version == rollout.version)
                .values(
                    state=codec.encode(state),
                    status=state.status.value,
                    terminal=state.status in TERMINAL,
                    version=rollout.version + 1,
                    updated=now,
                )
            )
            if result.rowcount != 1:
                return False
            _add_verdicts(connection, name, state, now)
            wanted = {assignment.device for assignment in assignments}
            known = device_store.find(connection, self._tenant, wanted)
            for assignment in assignments:
                twins.set_deployment(
                    connection,
                    known[assignment.device].id,
                    model=rollout.release.model,
                    deployment=assignment.deployment,
                    config=self._config,
                    now=now,
                )
        if assignments:
            self._changed()
        return True


def _evidence(sums: telemetry.EvidenceSums | None) -> Evidence:
    if sums is None:
        return Evidence()
    values = msgspec.structs.asdict(sums)
    return Evidence(**{**values, "classes": tuple(sums.classes)})


def _add_verdicts(connection: Connection, name: str, state: RolloutState, now: float) -> None:
    """Keep the verdicts of each wave's newest look; those of earlier looks are there already."""
    rows = [
        {
            "rollout": name,
            "wave": index,
            "look": wave.looks,
            "metric": verdict.metric,
            "outcome": verdict.outcome.value,
            "body": codec.encode(verdict),
            "at": now,
        }
        for index, wave in enumerate(state.waves)
        for verdict in wave.verdicts
    ]
    upsert(connection, verdicts, rows, keys=("rollout", "wave", "look", "metric"))
