"""``edgekit-agent doctor``: what is wrong with this device, in plain words, each with one mend.

Each check does the real thing (writes, resolves, connects, loads) rather than look whether it might
work. `device` looks at the machine, `service` at what it must reach, `deployed` at what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekit_runtime.config import AgentConfig
from edgekit_runtime.doctor import containers, deployed, device, pipelines, service
from edgekit_runtime.doctor.check import Check
from edgekit_runtime.doctor.held import Held


def run(config: AgentConfig) -> Iterator[Check]:
    """Every check, as it is done."""
    state = config.device.state_dir
    yield device.state_folder(state)
    yield device.space(state)
    held = Held.read(config)
    yield device.clock()
    yield device.memory()
    yield device.heat()
    yield device.mounts(config)
    yield from deployed.engines(held)
    yield deployed.targets(config, held)
    yield from deployed.models(held)
    yield from containers.containers(config, held)
    yield from deployed.runtimes(state)
    yield deployed.endings(held)
    yield deployed.spool(held, config.spool.bytes_max)
    yield service.broker(config)
    yield service.artifacts(held.record.config.artifacts_url)
    yield service.endpoint(config)
    yield from pipelines.pipelines(config, held)


def describe(check: Check) -> str:
    """For people."""
    line = f"{check.status.value:4}  {check.name}: {check.detail}"
    return f"{line}\n      mend: {check.mend}" if check.mend else line
