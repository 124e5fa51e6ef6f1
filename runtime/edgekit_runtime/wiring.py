"""Builds the agent from its configuration: the only place that names the adapters."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit_runtime import agent, beside, process_facts, profile
from edgekit_runtime.agent import Agent, Parts
from edgekit_runtime.ahead import BODIES_MAX, Hosting
from edgekit_runtime.applications import Applications
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.control import Control
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import Environment
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.front import Front, Limits
from edgekit_runtime.golden_watch import GoldenWatch
from edgekit_runtime.link import MqttLink
from edgekit_runtime.loop import Loop
from edgekit_runtime.ports import Fetcher, Host
from edgekit_runtime.proving import ProvingHost
from edgekit_runtime.readings import Readings, Throttling
from edgekit_runtime.self_update import BLOBS, RuntimeUpdater, Surroundings
from edgekit_runtime.spool import Spool, SpoolLimits
from edgekit_runtime.store import BlobStore
from edgekit_runtime.uplink import Uplink
from edgekit_runtime.verifier import DigestVerifier
from edgekit_runtime.workers import WorkerHost

if TYPE_CHECKING:
    from edgekit_runtime.pipelines.keeper import Keeper

FIRST_INFERENCE = "first_inference_s"


class Built(msgspec.Struct, frozen=True):
    """The parts of the process that runs."""

    agent: Agent
    loop: Loop
    front: Front
    host: WorkerHost
    applications: Applications
    pipelines: Keeper | None = None


def detect_targets(config: AgentConfig) -> tuple[str, ...]:
    """What this device runs. Raises `UsageError` when the configuration asks for the impossible."""
    return profile.detect_targets(config.device.targets)


def build(config: AgentConfig, hosting: Hosting) -> Built:
    """The agent and what it serves; the state folder must be locked by the caller.

    Raises:
        EdgekitError: the state folder or the configuration cannot be used.
    """
    state = config.device.state_dir
    disk, clock, verifier = PosixDisk(), SystemClock(), DigestVerifier()
    targets = detect_targets(config)
    described = functools.cache(lambda: profile.describe(targets, config.device.labels))
    serve = config.serve
    host: Host = hosting.workers if serve.workers else ProvingHost(hosting.workers)
    throttled = Throttling(clock)
    wake = threading.Event()
    loop = Loop()
    control = Control()
    front = Front(loop, _limits(config), control, woken=wake.set)
    applications = Applications(
        loop, sessions_max=serve.sessions_max, threads=serve.threads, woken=wake.set
    )
    pipelines = _pipelines(config, disk, clock, control)
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
            targets=targets,
            host=host,
            fetcher=_fetcher,
            emit=lambda record: agent.emit(spool, record),
            wake=wake.set,
            serving_changed=front.changed,
            images=hosting.images,
            throttled=throttled,
            applications=applications,
            workers=serve.workers,
            readings=lambda: beside.Readings(throttled(), process_facts.memory_available()),
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
            engines=lambda: described().engines,
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
        readings=Readings(state),
        wake=wake,
        pipelines=pipelines,
    )

    def save_first(seconds: float) -> None:
        disk.replace(state / FIRST_INFERENCE, f"{seconds:.3f}\n".encode())

    built = Agent(parts, on_first_inference=save_first)
    return Built(built, loop, front, hosting.workers, applications, pipelines)


def _limits(config: AgentConfig) -> Limits:
    serve = config.serve
    return Limits(
        body_bytes_max=serve.body_bytes_max,
        bodies_bytes_max=serve.body_bytes_max * BODIES_MAX,
        connections_max=serve.connections_max,
        client_s_max=serve.client_s_max,
    )


def _pipelines(
    config: AgentConfig, disk: PosixDisk, clock: SystemClock, control: Control
) -> Keeper | None:
    """What looks after the pipelines' processes; None where there are none."""
    if not config.pipeline:
        return None
    from edgekit_runtime.pipelines import metrics  # noqa: PLC0415 - most devices have none
    from edgekit_runtime.pipelines.keeper import Keeper  # noqa: PLC0415

    keeper = Keeper(
        config.pipeline,
        device=config.device.id,
        socket_path=config.socket_path,
        state_dir=config.device.state_dir,
        disk=disk,
        clock=clock,
    )
    control.metrics.more = lambda: metrics.render(keeper.figures())
    return keeper


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
