"""A container engine in memory: keeps images, starts workers as threads, fails when told to."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgekit.contracts import image as labels
from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import ImageRef
from edgekit.engine.ports import ContainerSpec, EngineAwayError, Exit, ImageFacts
from edgekit_runtime import wire
from edgekit_runtime.wire import FrameKind

from . import layouts

ARCHITECTURE = "amd64"


@dataclass
class Container:
    """One container; its worker is a thread that answers LOAD and then waits for the end."""

    spec: ContainerSpec
    ended: threading.Event = field(default_factory=threading.Event)
    exit: Exit = field(default_factory=lambda: Exit(0))
    channel: socket.socket | None = None

    def end(self, code: int, *, out_of_memory: bool = False) -> None:
        if not self.ended.is_set():
            self.exit = Exit(code, out_of_memory)
            self.ended.set()
            if self.channel is not None:
                with contextlib.suppress(OSError):  # it has hung up already
                    self.channel.shutdown(socket.SHUT_RDWR)


class MemoryEngine:
    """Implements `edgekit.engine.ports.ContainerEngine`; ``away`` and ``behave`` are the faults."""

    def __init__(self) -> None:
        self.away = False
        self.registry: dict[str, ImageFacts] = {}  # digest -> image
        self.names: dict[str, ImageFacts] = {}
        self.running: dict[str, Container] = {}
        self.behave = "serve"  # serve | refuse | silent | exit | gone
        self.calls: list[str] = []
        self._ids = itertools.count()

    def publish(self, letter: str, bundle: str, **changed: str) -> ImageRef:
        """An image of ``bundle`` in the registry."""
        digest = "sha256:" + letter * 64
        found = {
            labels.TITLE_LABEL: "meter",
            labels.VERSION_LABEL: letter,
            labels.TARGET_LABEL: "x86-64-v3",
            labels.BUNDLE_LABEL: bundle,
            labels.WORKER_LABEL: labels.WORKER_PROTOCOL,
        } | changed
        self.registry[digest] = ImageFacts(id=digest, architecture=ARCHITECTURE, labels=found)
        return ImageRef(digest=digest, repository="meter", size=1, registry="r.test")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise EngineAwayError("no container engine answers")

    def architecture(self) -> str:
        self._call("architecture")
        return ARCHITECTURE

    def pull(self, repository, digest, _said) -> int:
        self._call("pull")
        if digest not in self.registry:
            raise BadInputError(f"pull {repository}@{digest}: the registry has no such image")
        self.names[f"{repository}@{digest}"] = self.registry[digest]
        return 100

    def tag(self, image, name) -> None:
        self._call("tag")
        self.names[name] = msgspec.structs.replace(self.names[image], tags=(name,))

    def image(self, name) -> ImageFacts | None:
        self._call("image")
        return self.names.get(name)

    def remove_name(self, name) -> None:
        self._call("remove_name")
        found = self.names.pop(name, None)
        if found is not None:
            self.names = {key: each for key, each in self.names.items() if each.id != found.id}

    def start(self, spec: ContainerSpec) -> str:
        self._call("start")
        if self.behave == "gone" or spec.image not in self.names:
            raise BadInputError(f"container of {spec.image}: no such image")
        name = f"c{next(self._ids)}"
        container = self.running[name] = Container(spec)
        (folder,) = spec.mounts
        threading.Thread(target=self._work, args=(container, Path(folder)), daemon=True).start()
        return name

    def _work(self, container: Container, folder: Path) -> None:
        if self.behave == "exit":
            container.end(1)
        if self.behave not in {"serve", "refuse"}:
            return
        facts = self.names[container.spec.image]
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(folder / "s"))
            container.channel = channel
            frames = wire.Channel(channel)
            while (received := frames.receive()) is not None:
                for frame in received:
                    for descriptor in frame.descriptors:
                        os.close(descriptor)
                    frames.send(_answer(facts, refuse=self.behave == "refuse"))
            container.channel = None
        container.end(0)

    def wait(self, container) -> Exit:
        found = self.running.get(container)
        if found is None:
            raise BadInputError("no such container")
        while not found.ended.wait(0.01):
            self._call("wait")
        self._call("wait")
        return found.exit

    def logs(self, _container) -> tuple[bytes, bytes]:
        self._call("logs")
        return b"", b"first\nlast words\n"

    def kill(self, container) -> None:
        self._call("kill")
        if container in self.running:
            self.running[container].end(137)

    def remove(self, container) -> None:
        self._call("remove")
        found = self.running.pop(container, None)
        if found is not None:
            found.end(137)

    def containers(self, label, value) -> list[str]:
        self._call("containers")
        return [n for n, c in self.running.items() if c.spec.labels.get(label) == value]


def _answer(facts: ImageFacts, *, refuse: bool) -> wire.Frame:
    if refuse:
        refusal = wire.Refusal(error="UnsuitableError", message="golden set: 8 of 8 differ")
        meta, kind = msgspec.json.encode(refusal), FrameKind.FAILED
    else:
        manifest = BundleManifest(
            model="meter", version=facts.labels[labels.VERSION_LABEL], target="x86-64-v3",
            precision="fp32", engine="onnxruntime", engine_versions=">=1", files=(),
        )  # fmt: skip
        found = wire.Facts(manifest=manifest, contract=layouts.contract())
        meta, kind = msgspec.json.encode(found), FrameKind.LOADED
    return wire.Frame(kind, meta)
