"""Builds the agent from its configuration: the only place that names the adapters."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from edgekit.contracts.messages import DeviceProfile
from edgekit.engine import opened
from edgekit_runtime import agent, prestart, process_facts, profile
from edgekit_runtime.agent import Agent, Parts
from edgekit_runtime.beside import Readings
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.containers import slots
from edgekit_runtime.containers.launcher import ContainerLauncher
from edgekit_runtime.containers.slots import ImageSlots
from edgekit_runtime.control import Control
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import NAME as RECORD
from edgekit_runtime.deployment import Environment
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.front import Front, Limits
from edgekit_runtime.golden_watch import GoldenWatch
from edgekit_runtime.link import MqttLink
from edgekit_runtime.loop import Loop
from edgekit_runtime.ports import Fetcher
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.self_update import BLOBS, RuntimeUpdater, Surroundings
from edgekit_runtime.spool import Spool, SpoolLimits
from edgekit_runtime.store import BlobStore
from edgekit_runtime.twocopy import TwoCopy
from edgekit_runtime.uplink import Uplink
from edgekit_runtime.verifier import DigestVerifier
from edgekit_runtime.workers import WorkerHost, WorkerLimits

FIRST_INFERENCE = "first_inference_s"
BODIES_MAX = 4  # largest bodies held at once; small ones by the thousand


@dataclass(frozen=True)
class Built:
    """The parts of the process that runs."""

    agent: Agent
    loop: Loop
    front: Front
    host: WorkerHost


def detect_profile(config: AgentConfig) -> DeviceProfile:
    """What this device is. Raises `UsageError` when the configuration asks for the impossible."""
    return profile.detect(config.device.targets, config.device.labels)


def build(config: AgentConfig) -> Built:
    """The agent and what it serves; the state folder must be locked by the caller.

    Raises:
        EdgekitError: the state folder or the configuration cannot be used.
    """
    state = config.device.state_dir
    disk, clock, verifier = PosixDisk(), SystemClock(), DigestVerifier()
    described = detect_profile(config)
    containers = _containers(config)
    host = _host(config, disk, containers)  # first of all: its processes start while we read
    wake = threading.Event()
    loop = Loop()
    front = Front(loop, _limits(config), Control(), woken=wake.set)
    limits = SpoolLimits(bytes_max=config.spool.bytes_max)
    spool = Spool.open(disk, state / "spool", clock, limits)
    counting = Counting(disk, state / "regions", clock, spool)
    deployer = Deployer(
        Environment(
            disk=disk,
            clock=clock,
            store=BlobStore(disk, state, verifier),
            counting=counting,
            state_dir=state,
            targets=described.targets,
            host=host,
            fetcher=_fetcher,
            emit=lambda record: agent.emit(spool, record),
            wake=wake.set,
            serving_changed=front.changed,
            images=containers[1] if containers else None,
            readings=lambda: Readings(memory_available=process_facts.memory_available()),
            runtime_on_trial=os.environ.get("EDGEKIT_SUPERVISOR") == "trial",
        )
    )
    link = MqttLink(config.address, config.broker.host, config.broker.port, clock)
    parts = Parts(
        clock=clock,
        link=link,
        spool=spool,
        counting=counting,
        deployer=deployer,
        golden=GoldenWatch(
            disk,
            state,
            clock,
            host,
            hour=config.selftest.hour,
            engines=described.engines,
            emit=lambda record: agent.emit(spool, record),
            wake=wake.set,
        ),
        updater=RuntimeUpdater(
            Surroundings(
                disk=disk,
                clock=clock,
                store=BlobStore(disk, state / BLOBS, verifier),
                state_dir=state,
                fetcher=_fetcher,
                emit=lambda record: agent.emit(spool, record),
                wake=wake.set,
                environ=os.environ,
            )
        ),
        uplink=Uplink(spool, link, clock),
        verifier=verifier,
        profile=described,
        wake=wake,
    )

    def save_first(seconds: float) -> None:
        disk.replace(state / FIRST_INFERENCE, f"{seconds:.3f}\n".encode())

    built = Agent(parts, on_first_inference=save_first)
    return Built(built, loop, front, host)


def _limits(config: AgentConfig) -> Limits:
    serve = config.serve
    return Limits(
        body_bytes_max=serve.body_bytes_max,
        bodies_bytes_max=serve.body_bytes_max * BODIES_MAX,
        connections_max=serve.connections_max,
        client_s_max=serve.client_s_max,
    )


def _containers(config: AgentConfig) -> tuple[ContainerLauncher, ImageSlots] | None:
    """What runs images; None where no engine is configured.

    Raises:
        UsageError: the SDK is not installed.
    """
    url, device = config.containers.engine, config.device
    if url is None:
        return None
    engine, state = opened.engine(url), device.state_dir.absolute()
    owner = slots.owner_of(config)
    launcher = ContainerLauncher(engine, state / "containers", owner)
    return launcher, ImageSlots(engine, launcher, owner)


def _host(
    config: AgentConfig,
    disk: PosixDisk,
    containers: tuple[ContainerLauncher, ImageSlots] | None,
) -> WorkerHost:
    state = config.device.state_dir
    serve = config.serve
    limits = WorkerLimits(
        threads=serve.threads,
        body_bytes_max=serve.body_bytes_max,
        bodies_bytes_max=serve.body_bytes_max * BODIES_MAX,
        requests_max=serve.requests_max,
        connections_max=serve.connections_max,
        client_s_max=serve.client_s_max,
    )
    host = WorkerHost(state, limits, containers=containers[0] if containers else None)
    record = TwoCopy(disk, state, RECORD, DeploymentRecord).peek().value
    for name, model in record.models.items() if record is not None else ():
        if model.active is not None and model.active.image is None:
            # The engine's library and the model load while the agent reads its spool.
            host.load_ahead(name, model.active, model.policy)
            break
    prestart.discard()
    return host


def prepare_state(state: Path) -> None:
    """Create the state folder.

    Raises:
        EdgekitError: it cannot be created.
    """
    PosixDisk().make_dir(state)


def _fetcher(url: str | None) -> Fetcher | None:
    if not url:
        return None
    from edgekit_runtime.download import HttpFetcher  # noqa: PLC0415 - slow to import

    return HttpFetcher(url)
