"""What is asked of a container engine, and in which values. Implemented by `docker_engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from edgekit.contracts.errors import UnavailableError


class EngineAwayError(UnavailableError):
    """The engine itself does not answer: nothing was learnt about what was asked of it."""


class ImageFacts(msgspec.Struct, frozen=True):
    """An image the engine holds."""

    id: str
    architecture: str  # in Go's names
    labels: Mapping[str, str]
    tags: tuple[str, ...] = ()


class ContainerSpec(msgspec.Struct, frozen=True):
    """A container that sees nothing but its image and ``mounts``: no network, no rights."""

    image: str
    command: tuple[str, ...]
    name: str
    labels: Mapping[str, str] = {}
    user: str | None = None  # None: the image's
    mounts: Mapping[str, str] = {}  # folder here -> folder inside
    environment: Mapping[str, str] = {}
    memory_bytes_max: int = 0  # 0: no limit


class Exit(msgspec.Struct, frozen=True):
    """How a container ended."""

    code: int  # 128 + N: ended by signal N
    out_of_memory: bool = False


class Progress(msgspec.Struct, frozen=True):
    """One line of what the engine does: about which layer, and how far it is."""

    subject: str
    text: str
    done: int = 0  # bytes
    total: int = 0


OnProgress = Callable[[Progress], None]


class ContainerEngine(Protocol):
    """An engine. Every method may take long, and raises as follows.

    Raises:
        EngineAwayError: it does not answer.
        UnavailableError: the registry does not.
        BadInputError: no such thing, refused, altered, or for another platform.
        ResourceError: no space.
    """

    def architecture(self) -> str:
        """What it runs without emulation, in Go's names; also shows that it answers."""

    def load(self, archive: Iterator[bytes]) -> None:
        """Take a ``docker save`` archive."""

    def pull(self, repository: str, digest: str, said: OnProgress) -> int:
        """Pull by digest from ``host/name``; returns the bytes that were transferred."""

    def push(self, name: str, said: OnProgress) -> str:
        """Push the image called ``name`` (``host/repository:tag``); its digest there."""

    def tag(self, image: str, name: str) -> None:
        """Call ``image`` ``name`` (``repository:tag``) as well."""

    def image(self, name: str) -> ImageFacts | None:
        """The image; None when there is none."""

    def remove_name(self, name: str) -> None:
        """Take a name away and, when it was the last tag, the image; absent is fine."""

    def start(self, spec: ContainerSpec) -> str:
        """Create and start; the container's id. Nothing is left when it cannot be started."""

    def wait(self, container: str) -> Exit:
        """Block until it has ended."""

    def logs(self, container: str) -> tuple[bytes, bytes]:
        """The newest of its stdout and stderr."""

    def kill(self, container: str) -> None:
        """End it now; not running is fine."""

    def remove(self, container: str) -> None:
        """Remove it, running or not; absent is fine."""

    def containers(self, label: str, value: str) -> list[str]:
        """Ids of all containers with this label, running or not."""
