"""What begins before the agent has imported itself: the host of its workers, and the first load.

A device serves again as soon after a power cut as its cores allow. The agent imports what it has in
common with a worker, while a thread verifies the bundle that was active; then it forks the worker,
which goes on to import the engine and to load the model while the agent imports the rest of itself.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, turns
from edgekit_runtime.bundles import Bundle
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
            opened = _opened(state, name, model.active)
            workers.load_ahead(name, model.active, model.policy, opened)
            break
    return Hosting(workers, images)


def _opened(state: Path, name: str, ref: SlotRef) -> Bundle | None:
    """The bundle, verified while this thread imports; None when a worker is to say what is wrong.

    Hashing does not need the interpreter. The thread has ended on return.
    """
    found: list[Bundle] = []

    def verify() -> None:
        with contextlib.suppress(EdgekitError, MemoryError):
            found.append(bundles.open_promised(LayoutReader(state), name, ref))

    with turns.quick():
        thread = threading.Thread(target=verify)
        thread.start()
        import edgekit_runtime.region  # noqa: F401, PLC0415 - and numpy with it

        thread.join()
    return found[0] if found else None


def _limits(config: AgentConfig) -> WorkerLimits:
    serve = config.serve
    return WorkerLimits(
        threads=serve.threads,
        cores=serve.cores,
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
