"""Database, releases, twins, outbox, rollouts: on real SQLite."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from fleetkit import messages as m
from fleetkit.links import MemoryLink
from sqlalchemy import select

from edgekit.contracts import codec, frames, topics
from edgekit.contracts.errors import BadInputError, BugError
from edgekit.contracts.messages import Deployment, DeviceConfig, VariantRef, Window
from edgekit.contracts.verdict import Outcome, Verdict
from edgekit_fleet.rollout import core
from edgekit_fleet.rollout.model import Assignment, Status
from edgekit_fleet.rollout.spec import RolloutSpec, Wave
from edgekit_fleet.store import devices, releases, rollouts, schema, telemetry, twins
from edgekit_fleet.store.engine import DATABASE_FILE, Database
from edgekit_fleet.store.rollouts import SqlRolloutStore
from edgekit_fleet.twin import Publisher

CONFIG = DeviceConfig(artifacts_url="http://127.0.0.1:1")
DEPLOYMENT = Deployment(
    rollout="r1",
    wave=0,
    release="v1",
    variants={"x86-64-v3": VariantRef(digest=m.digest_of("a"), repository="meter", size=10)},
)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database.open(tmp_path)
    yield database
    database.close()


@pytest.fixture
def device(database: Database) -> int:
    with database.write() as connection:
        return devices.join(connection, m.address("d1"), 1.0).id


def deploy(database: Database, device: int, deployment: Deployment | None = DEPLOYMENT) -> int:
    with database.write() as connection:
        return twins.set_deployment(
            connection, device, model="meter", deployment=deployment, config=CONFIG, now=2.0
        ).gen


def test_the_database_is_durable_and_guarded(tmp_path: Path, database: Database) -> None:
    with database.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_newer_database_is_refused_with_a_hint(tmp_path: Path) -> None:
    Database.open(tmp_path).close()
    raw = sqlite3.connect(tmp_path / DATABASE_FILE)
    raw.execute("UPDATE schema_version SET version = 99")
    raw.commit()
    raw.close()
    with pytest.raises(BadInputError, match="newer") as caught:
        Database.open(tmp_path)
    assert "upgrade" in (caught.value.hint or "")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"not a database at all, but long enough" * 50)
    with pytest.raises(BadInputError, match="not a database"):
        Database.open(tmp_path)


def test_a_raising_block_changes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            releases.publish(connection, m.release(), 1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        assert releases.all_releases(connection) == []


def test_a_release_never_changes(database: Database) -> None:
    with database.write() as connection:
        assert releases.publish(connection, m.release(), 1.0)
        assert not releases.publish(connection, m.release(), 2.0)
        with pytest.raises(BadInputError, match="other contents"):
            releases.publish(connection, m.release(letter="b"), 3.0)
        with pytest.raises(BadInputError, match="not published here") as caught:
            releases.get(connection, "v9")
    assert "v1" in (caught.value.hint or "")


def test_a_device_joins_only_under_its_own_shard(database: Database) -> None:
    right = m.address("d1").shard
    with database.write() as connection, pytest.raises(BadInputError, match="shard"):
        devices.join(connection, m.address("d1", (right + 1) % 256), 1.0)


def test_generations_only_grow(database: Database, device: int) -> None:
    assert [deploy(database, device), deploy(database, device, None)] == [1, 2]
    with database.write() as connection:
        twins.overtake(connection, device, 3.0)
        desired = twins.get(connection, device)
    assert desired is not None
    assert (desired.gen, desired.deployments) == (3, {})


def test_a_generation_overtakes_what_the_device_has_seen(database: Database, device: int) -> None:
    with database.write() as connection:
        connection.execute(devices.devices.update().values(gen_observed=70))
    assert deploy(database, device) == 71


def test_other_models_of_the_device_are_left_alone(database: Database, device: int) -> None:
    deploy(database, device)
    with database.write() as connection:
        desired = twins.set_deployment(
            connection, device, model="other", deployment=DEPLOYMENT, config=CONFIG, now=3.0
        )
    assert sorted(desired.deployments) == ["meter", "other"]


def test_an_oversized_document_is_never_stored(database: Database, device: int) -> None:
    variants = {f"target-{i}": DEPLOYMENT.variants["x86-64-v3"] for i in range(1000)}
    huge = msgspec.structs.replace(DEPLOYMENT, variants=variants)
    with pytest.raises(BugError):
        deploy(database, device, huge)
    with database.read() as connection:
        assert twins.get(connection, device) is None


def test_changed_settings_reissue_documents_once(database: Database, device: int) -> None:
    deploy(database, device)
    other = DeviceConfig(artifacts_url="http://127.0.0.1:2")
    with database.write() as connection:
        assert twins.refresh_config(connection, other, 3.0) == 1
        assert twins.refresh_config(connection, other, 4.0) == 0


def test_the_outbox_survives_everything_but_the_brokers_yes(
    database: Database, device: int
) -> None:
    deploy(database, device)
    away, deaf, well = MemoryLink(connected=False), MemoryLink(take=False), MemoryLink()

    def publisher() -> Publisher:
        return Publisher(database, tenant=m.TENANT, clock=lambda: 100.0)

    assert publisher().publish_owed(away) == 0
    assert publisher().publish_owed(deaf) == 1
    last = publisher()  # as after a kill: it plans from the database
    assert last.publish_owed(well) == 1
    assert last.publish_owed(well) == 0
    topic, payload, retained = well.published[0]
    assert topic == m.address("d1").topic(topics.DESIRED)
    assert retained
    assert twins.document(payload, "test").deployments == {"meter": DEPLOYMENT}


def test_every_document_is_published_again_when_the_broker_returns(
    database: Database, device: int
) -> None:
    deploy(database, device)
    link = MemoryLink()
    publisher = Publisher(database, tenant=m.TENANT, clock=lambda: 100.0)
    publisher.publish_owed(link)
    publisher.publish_owed(link)
    publisher.broker_returned()
    assert publisher.publish_owed(link) == 1


def test_a_document_changed_while_in_flight_stays_owed(database: Database, device: int) -> None:
    deploy(database, device)
    with database.write() as connection:
        deploy_again = twins.set_deployment(
            connection, device, model="meter", deployment=None, config=CONFIG, now=3.0
        )
        twins.published(connection, device, deploy_again.gen - 1)
        (owed,) = twins.owed(connection, m.TENANT, 10)
    assert owed.gen == deploy_again.gen


# -- rollouts --------------------------------------------------------------------------------------

SPEC = RolloutSpec(name="r1", release="v1", waves=(Wave(name="all", percent=100.0),))


@pytest.fixture
def store(database: Database, device: int) -> SqlRolloutStore:
    with database.write() as connection:
        releases.publish(connection, m.release(), 1.0)
        rollouts.create(connection, SPEC, core.initial(SPEC, 1.0), 1.0)
    return SqlRolloutStore(
        database, tenant=m.TENANT, config=CONFIG, changed=lambda: None, clock=lambda: 10.0
    )


def test_a_rollout_needs_a_release_a_free_name_and_a_free_model(
    database: Database, store: SqlRolloutStore
) -> None:
    for name, release, match in (("r1", "v1", "exists"), ("r2", "v1", "open"), ("r3", "x", "not")):
        spec = msgspec.structs.replace(SPEC, name=name, release=release)
        with database.write() as connection, pytest.raises(BadInputError, match=match):
            rollouts.create(connection, spec, core.initial(spec, 1.0), 1.0)


def test_commit_changes_state_and_twins_together(
    database: Database, store: SqlRolloutStore, device: int
) -> None:
    (rollout,) = store.open_rollouts()
    state = msgspec.structs.replace(rollout.state, reason="begun")
    assert store.commit(rollout, state, [Assignment(device="d1", deployment=DEPLOYMENT)])
    (after,) = store.open_rollouts()
    assert (after.state.reason, after.version) == ("begun", rollout.version + 1)
    view = store.observe(after, None).devices["d1"]
    assert (view.gen, view.deployment) == (1, DEPLOYMENT)


def test_a_stale_writer_changes_nothing(store: SqlRolloutStore) -> None:
    (rollout,) = store.open_rollouts()
    assert store.commit(rollout, rollout.state, [])
    stale = msgspec.structs.replace(rollout.state, reason="stale")
    assert not store.commit(rollout, stale, [Assignment(device="d1", deployment=DEPLOYMENT)])
    (after,) = store.open_rollouts()
    assert after.state.reason == ""
    assert store.observe(after, None).devices["d1"].gen == 0


def test_probes_and_broken_rules_are_kept_with_the_window(database: Database, device: int) -> None:
    window = m.window(
        probes={"x[0]": (0, 4, 1, 0)}, violated={"x nan clamp": 3}, outside={"x[0]": 3}
    )
    header = frames.FrameHeader(epoch=7, boot=1, lane=1, seq=0, records=1, length=1)
    with database.write() as connection:
        assert telemetry.add_record(connection, device, header, window, 50.0)
        body = connection.execute(select(schema.windows.c.body)).scalar_one()
    assert codec.decode(Window, body, what="window") == window


def test_evidence_splits_by_release_and_starts_at_the_soak(
    database: Database, store: SqlRolloutStore, device: int
) -> None:
    windows = [
        m.window(start=5.0, first=0),
        m.window(start=20.0, first=1, errors=2),
        m.window(start=30.0, first=2, probes={"class": (1, 2, 3)}),
        m.window(start=30.0, first=3, digest=m.digest_of("c"), n=7),
        m.window(start=30.0, first=4, model="other"),
    ]
    with database.write() as connection:
        for seq, window in enumerate(windows):
            header = frames.FrameHeader(epoch=7, boot=1, lane=1, seq=seq, records=1, length=1)
            assert telemetry.add_record(connection, device, header, window, 50.0)
    (rollout,) = store.open_rollouts()
    assert store.observe(rollout, None).devices["d1"].candidate.n == 0
    view = store.observe(rollout, 10.0).devices["d1"]
    assert (view.candidate.n, view.candidate.errors, view.other.n) == (20, 3, 7)
    assert view.candidate.classes == (7, 6, 3)
    assert view.candidate.confidence_sum == pytest.approx(17.0)


def test_an_abort_reaches_the_controller_until_the_end(
    database: Database, store: SqlRolloutStore
) -> None:
    (rollout,) = store.open_rollouts()
    with database.write() as connection:
        assert rollouts.request_abort(connection, "r1", "smoke", 2.0)
    assert store.observe(rollout, None).abort_requested == "smoke"
    ended = msgspec.structs.replace(rollout.state, status=Status.ROLLED_BACK)
    assert store.commit(rollout, ended, [])
    assert store.open_rollouts() == []
    with database.write() as connection:
        assert not rollouts.request_abort(connection, "r1", "late", 3.0)
        with pytest.raises(BadInputError, match="unknown"):
            rollouts.request_abort(connection, "nope", "x", 3.0)


def test_verdicts_of_every_look_are_kept(database: Database, store: SqlRolloutStore) -> None:
    verdict = Verdict(metric="error_rate", outcome=Outcome.INCONCLUSIVE, reason="too few", n=3)
    for look in (1, 1, 2):
        (rollout,) = store.open_rollouts()
        wave = msgspec.structs.replace(rollout.state.waves[0], looks=look, verdicts=(verdict,))
        assert store.commit(rollout, msgspec.structs.replace(rollout.state, waves=(wave,)), [])
    with database.read() as connection:
        kept = rollouts.verdicts_of(connection, "r1")
    assert [(entry.look, entry.verdict) for entry in kept] == [(1, verdict), (2, verdict)]
