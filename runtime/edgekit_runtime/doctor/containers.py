"""Checks of the container engine and of the slots that are images."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError
from edgekit.engine import opened
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.containers import slots
from edgekit_runtime.containers.launcher import local_name
from edgekit_runtime.doctor.check import Check, fail, ok
from edgekit_runtime.doctor.held import Held


def containers(config: AgentConfig, held: Held) -> Iterator[Check]:
    """Does the engine answer, and does it hold what this device serves or could go back to?"""
    images = {
        f"{model} ({role})": ref.content
        for model, role, ref in held.refs()
        if ref.image is not None and role != "candidate"
    }
    if config.containers.engine is None:
        if images:
            detail = f"{', '.join(images)}: an image, and no engine is configured"
            yield fail("containers", detail, "[containers] engine in the agent's configuration")
        return
    try:
        engine = opened.engine(config.containers.engine)
        yield ok("containers", f"the engine answers and runs {engine.architecture()}")
        for name, content in images.items():
            short = digests.short(content)
            if engine.image(local_name(slots.owner_of(config), content)) is None:
                detail = f"{name}: image {short} is not in the container engine"
                yield fail("model", detail, "restart the agent: it falls back")
            else:
                yield ok("model", f"{name}: image {short} is in the container engine")
    except EdgekitError as exc:
        yield fail("containers", exc.message, exc.hint or "see the engine's log")
