"""Builds the agent from its configuration: the only place that names the adapters."""

from __future__ import annotations

import threading
from pathlib import Path

from edgekit.contracts.messages import DeviceProfile
from edgekit_runtime import agent, profile
from edgekit_runtime.agent import Agent, Parts
from edgekit_runtime.clock import SystemClock
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.counting import Counting
from edgekit_runtime.deployer import Deployer
from edgekit_runtime.deployment import Environment
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.download import HttpFetcher
from edgekit_runtime.link import MqttLink
from edgekit_runtime.ports import Fetcher
from edgekit_runtime.serve import InferenceApp
from edgekit_runtime.spool import Spool, SpoolLimits
from edgekit_runtime.store import BlobStore
from edgekit_runtime.uplink import Uplink
from edgekit_runtime.verifier import DigestVerifier

FIRST_INFERENCE = "first_inference_s"


def detect_profile(config: AgentConfig) -> DeviceProfile:
    """What this device is. Raises `UsageError` when the configuration asks for the impossible."""
    return profile.detect(config.device.targets, config.device.labels)


def build(config: AgentConfig) -> tuple[Agent, InferenceApp]:
    """The agent and the application it serves; the state folder must be locked by the caller.

    Raises:
        EdgekitError: the state folder or the configuration cannot be used.
    """
    state = config.device.state_dir
    disk, clock, verifier = PosixDisk(), SystemClock(), DigestVerifier()
    described = detect_profile(config)
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
            threads=config.serve.threads,
            fetcher=_fetcher,
            emit=lambda record: agent.emit(spool, record),
            wake=wake.set,
        )
    )
    link = MqttLink(config.address, config.broker.host, config.broker.port, clock)
    parts = Parts(
        clock=clock,
        link=link,
        spool=spool,
        counting=counting,
        deployer=deployer,
        uplink=Uplink(spool, link, clock),
        verifier=verifier,
        profile=described,
        wake=wake,
    )

    def save_first(seconds: float) -> None:
        disk.replace(state / FIRST_INFERENCE, f"{seconds:.3f}\n".encode())

    built = Agent(parts, on_first_inference=save_first)
    app = InferenceApp(
        lambda: deployer.sessions,
        clock,
        body_bytes_max=config.serve.body_bytes_max,
        on_answer=built.answered,
    )
    return built, app


def prepare_state(state: Path) -> None:
    """Create the state folder.

    Raises:
        EdgekitError: it cannot be created.
    """
    PosixDisk().make_dir(state)


def _fetcher(url: str | None) -> Fetcher | None:
    return HttpFetcher(url) if url else None
