"""Builds the agent from its configuration: the only place that names the adapters."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.contracts.messages import DeviceProfile
from edgekit_runtime import agent, profile
from edgekit_runtime.agent import Agent, Parts
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import NAME as RECORD
from edgekit_runtime.deployment import Environment
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.download import HttpFetcher
from edgekit_runtime.golden_watch import GoldenWatch
from edgekit_runtime.link import MqttLink
from edgekit_runtime.ports import Fetcher
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.self_update import BLOBS, RuntimeUpdater, Surroundings
from edgekit_runtime.serve import InferenceApp, Limits
from edgekit_runtime.serving import Serving
from edgekit_runtime.spool import Spool, SpoolLimits
from edgekit_runtime.store import BlobStore
from edgekit_runtime.twocopy import TwoCopy
from edgekit_runtime.uplink import Uplink
from edgekit_runtime.verifier import DigestVerifier
from edgekit_runtime.workers import WorkerHost

FIRST_INFERENCE = "first_inference_s"
BODIES_MAX = 4  # largest bodies held at once; small ones by the thousand


@dataclass(frozen=True)
class Built:
    """The parts of the process that runs."""

    agent: Agent
    app: InferenceApp
    host: WorkerHost
    servings: Callable[[], Mapping[str, Serving]]


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
    host = _host(config, disk)  # first of all: its processes start while we read
    wake = threading.Event()
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
    serve = config.serve
    limits_http = Limits(
        body_bytes_max=serve.body_bytes_max,
        requests_max=serve.requests_max,
        bodies_bytes_max=serve.body_bytes_max * BODIES_MAX,
    )
    app = InferenceApp(lambda: deployer.servings, clock, limits_http, on_answer=built.answered)
    return Built(built, app, host, lambda: deployer.servings)


def _host(config: AgentConfig, disk: PosixDisk) -> WorkerHost:
    state = config.device.state_dir
    host = WorkerHost(
        state, threads=config.serve.threads, body_bytes_max=config.serve.body_bytes_max
    )
    record = TwoCopy(disk, state, RECORD, DeploymentRecord).peek().value
    if record is not None and any(model.active for model in record.models.values()):
        host.prepare()  # the engine's library loads while the agent reads its spool
    return host


def prepare_state(state: Path) -> None:
    """Create the state folder.

    Raises:
        EdgekitError: it cannot be created.
    """
    PosixDisk().make_dir(state)


def _fetcher(url: str | None) -> Fetcher | None:
    return HttpFetcher(url) if url else None
