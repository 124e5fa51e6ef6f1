"""What begins before the agent has imported itself: the host of its workers, and the first load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgekit_runtime import prestart
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.ports import Disk
from edgekit_runtime.record import NAME as RECORD
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.twocopy import TwoCopy
from edgekit_runtime.workers import WorkerHost, WorkerLimits

if TYPE_CHECKING:
    from edgekit_runtime.containers.launcher import ContainerLauncher
    from edgekit_runtime.containers.slots import ImageSlots

BODIES_MAX = 4  # largest bodies held at once; small ones by the thousand


class Hosting(NamedTuple):
    """Where models are loaded; ``images`` where a container engine is configured."""

    workers: WorkerHost
    images: ImageSlots | None


def host(config: AgentConfig, disk: Disk) -> Hosting:
    """The host of the workers; the first of them loads what was active. Changes nothing.

    Raises:
        UsageError: the container engine's SDK is not installed.
        ResourceError: no process can be made.
    """
    state = config.device.state_dir
    launcher, images = _containers(config, state)
    workers = WorkerHost(state, _limits(config), containers=launcher)
    record = TwoCopy(disk, state, RECORD, DeploymentRecord).peek().value
    for name, model in record.models.items() if record is not None and config.serve.workers else ():
        if model.active is not None and model.active.image is None:
            # The engine's library and the model load while the agent imports and reads its spool.
            workers.load_ahead(name, model.active, model.policy)
            break
    prestart.discard()
    return Hosting(workers, images)


def _limits(config: AgentConfig) -> WorkerLimits:
    serve = config.serve
    return WorkerLimits(
        threads=serve.threads,
        body_bytes_max=serve.body_bytes_max,
        bodies_bytes_max=serve.body_bytes_max * BODIES_MAX,
        requests_max=serve.requests_max,
        connections_max=serve.connections_max,
        client_s_max=serve.client_s_max,
        socket=str(config.socket_path.absolute()),
    )


def _containers(
    config: AgentConfig, state: Path
) -> tuple[ContainerLauncher | None, ImageSlots | None]:
    url = config.containers.engine
    if url is None:
        return None, None
    from edgekit.engine import opened  # noqa: PLC0415 - most devices have no engine
    from edgekit_runtime.containers import slots  # noqa: PLC0415
    from edgekit_runtime.containers.launcher import ContainerLauncher  # noqa: PLC0415

    engine, owner = opened.engine(url), slots.owner_of(config)
    launcher = ContainerLauncher(engine, state.absolute() / "containers", owner)
    return launcher, slots.ImageSlots(engine, launcher, owner)
