"""What begins before the agent has imported itself: the host of its workers, and the first load.

A device serves again as soon after a power cut as its cores allow. The agent imports what it takes
to know which bundle was active; a thread verifies that while numpy is imported. Then it forks the
first worker (`edgekit_runtime.head_start`), which loads the model while the agent imports the rest.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.messages import Policy, SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, head_start, shares, turns
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.head_start import Begun
from edgekit_runtime.ports import Disk
from edgekit_runtime.record import NAME as RECORD
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.twocopy import TwoCopy

if TYPE_CHECKING:
    from edgekit_runtime.containers.launcher import ContainerLauncher
    from edgekit_runtime.containers.slots import ImageSlots
    from edgekit_runtime.workers import WorkerHost, WorkerLimits

BODIES_MAX = 4  # largest bodies held at once; small ones by the thousand


class Hosting(NamedTuple):
    """Where models are loaded; ``images`` where a container engine is configured."""

    workers: WorkerHost
    images: ImageSlots | None


class _Active(NamedTuple):
    """What served last, of the models whose workers are processes."""

    model: str
    ref: SlotRef
    policy: Policy


def host(config: AgentConfig, disk: Disk) -> Hosting:
    """The host of the workers; the first of them loads what was active. Changes nothing.

    Raises:
        UsageError: the container engine's SDK is not installed.
    """
    active = _active(config, disk)
    begun = None if active is None else _begin(config, active)
    from edgekit_runtime.workers import WorkerHost  # noqa: PLC0415 - while that loads

    state = config.device.state_dir
    launcher, images = _containers(config, state)
    workers = WorkerHost(state, _limits(config), containers=launcher)
    if active is not None and begun is not None:
        workers.order_ahead(begun, *active)
    return Hosting(workers, images)


def _active(config: AgentConfig, disk: Disk) -> _Active | None:
    record = TwoCopy(disk, config.device.state_dir, RECORD, DeploymentRecord).peek().value
    for name, model in record.models.items() if record is not None and config.serve.workers else ():
        if model.active is not None and model.active.image is None:
            return _Active(name, model.active, model.policy)
    return None


def _begin(config: AgentConfig, active: _Active) -> Begun | None:
    """A process that loads it; None when none can be made: who needs it will say so again."""
    opened = _opened(config.device.state_dir, active)
    share = shares.of(active.policy, config.serve.threads, config.serve.cores)
    threads = None if share.limited else share.threads

    def main(channel: int) -> NoReturn:
        from edgekit_runtime import engines  # noqa: PLC0415 - in the fork only

        early = None
        with turns.quick():
            engines.preload()
            if opened is not None:
                from edgekit_runtime.early import Early  # noqa: PLC0415

                early = Early(opened, threads)
            from edgekit_runtime import worker  # noqa: PLC0415

        worker.main(str(channel), early)

    try:
        return head_start.fork(main)
    except OSError:
        return None


def _opened(state: Path, active: _Active) -> Bundle | None:
    """The bundle, verified while this thread imports; None when a worker is to say what is wrong.

    Hashing does not need the interpreter. The thread has ended on return.
    """
    found: list[Bundle] = []

    def verify() -> None:
        with contextlib.suppress(EdgekitError, MemoryError):
            found.append(bundles.open_promised(LayoutReader(state), active.model, active.ref))

    with turns.quick():
        thread = threading.Thread(target=verify)
        thread.start()
        import edgekit_runtime.region  # noqa: F401, PLC0415 - and numpy with it

        thread.join()
    return found[0] if found else None


def _limits(config: AgentConfig) -> WorkerLimits:
    from edgekit_runtime.workers import WorkerLimits  # noqa: PLC0415 - see `host`

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
