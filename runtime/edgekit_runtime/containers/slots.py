"""Images as slots: `edgekit_runtime.ports.Images` over a container engine.

An image that was pulled gets a name of this agent's own, ``edgekit-slot/<owner>:<digest>``: by it
the image is found offline, kept from ``docker image prune``, and removed when no slot refers to it.
An image that others named as well only loses our name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import urlsplit

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import UnavailableError
from edgekit.contracts.image import (
    BUNDLE_LABEL,
    TARGET_LABEL,
    TITLE_LABEL,
    VERSION_LABEL,
)
from edgekit.contracts.messages import SlotRef
from edgekit.engine.ports import ContainerEngine, Progress
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.containers.launcher import ContainerLauncher, check_protocol, local_name
from edgekit_runtime.errors import UnsuitableError

log = logging.getLogger(__name__)


class ImageSlots:
    """Thread-safe as far as the engine is."""

    def __init__(self, engine: ContainerEngine, launcher: ContainerLauncher, owner: str) -> None:
        self._engine, self._launcher, self._owner = engine, launcher, owner

    @property
    def untidy(self) -> bool:
        """See `Images.untidy`."""
        return self._launcher.untidy

    def fetch(self, ref: SlotRef, artifacts_url: str | None) -> int:
        """See `Images.fetch`."""
        assert ref.image is not None
        name = local_name(self._owner, ref.content)
        if self._engine.image(name) is not None:
            return 0
        host = ref.image.registry or urlsplit(artifacts_url or "").netloc
        if not host:
            raise UnavailableError(
                f"image {digests.short(ref.content)}: no registry and no artifacts_url is set",
                hint="the manager sets config.artifacts_url in the desired state",
            )
        repository = f"{host}/{ref.image.repository}"
        moved = self._engine.pull(repository, ref.content, _say)
        self._engine.tag(f"{repository}@{ref.content}", name)
        return moved

    def check(self, model: str, ref: SlotRef) -> str:
        """See `Images.check`."""
        what = f"image {digests.short(ref.content)}"
        name = local_name(self._owner, ref.content)
        found = check_protocol(self._engine.image(name), what)
        labels, own = found.labels, self._engine.architecture()
        if found.architecture != own:
            raise UnsuitableError(
                f"{what}: is for {found.architecture}, this engine runs {own}",
                hint="build an image for a target of that architecture",
            )
        promised = {TITLE_LABEL: model, BUNDLE_LABEL: ref.digest, TARGET_LABEL: ref.target}
        for label, wanted in promised.items():
            if labels.get(label) != wanted:
                raise UnsuitableError(
                    f"{what}: label {label} is {labels.get(label)!r}, not {wanted!r}"
                )
        return labels.get(VERSION_LABEL, "")

    def tidy(self, stale: Collection[str]) -> None:
        """See `Images.tidy`."""
        self._launcher.sweep()
        for digest in stale:
            self._engine.remove_name(local_name(self._owner, digest))


def owner_of(config: AgentConfig) -> str:
    """A name for one agent on one engine: several may share it."""
    device = config.device
    text = f"{device.tenant}\0{device.id}\0{device.state_dir.absolute()}"
    return digests.hex_of(digests.of_bytes(text.encode()))[:16]


def _say(progress: Progress) -> None:
    if progress.total and progress.done == progress.total:
        log.info("%s %s %d bytes", progress.subject, progress.text, progress.total)
