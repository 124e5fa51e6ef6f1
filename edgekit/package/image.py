"""Container images, written as OCI layouts with no engine (image-spec v1.1).

Layers from the bottom: base, wheels, agent, model; the model on top, so that a new model ships one
layer. The same inputs give the same layer, config and manifest digests. Base and wheel layers come
from the step cache, keyed by the digests of what went into them.
"""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit import __version__
from edgekit.build.cache import Cache, Step
from edgekit.build.cache import Entry as Cached
from edgekit.contracts import codec, digest
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.golden import INPUT_PREFIX
from edgekit.contracts.image import (
    BUNDLE_LABEL,
    TARGET_LABEL,
    TITLE_LABEL,
    VERSION_LABEL,
    WORKER_LABEL,
    WORKER_PROTOCOL,
)
from edgekit.contracts.oci import (
    LAYOUT_FILE,
    MANIFEST_MEDIA_TYPE,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    Platform,
)
from edgekit.package import evidence, feasible, in_image, licences, rootfs, tar, wheels
from edgekit.package.base import Base, Layer
from edgekit.package.bundle import tag_of
from edgekit.package.layout import LayoutTransaction, transaction
from edgekit.package.reader import VerifiedBundle
from edgekit.package.rootfs import BaseFacts
from edgekit.package.tar import LayerFacts

CONFIG_MEDIA_TYPE = "application/vnd.oci.image.config.v1+json"
HOME = "opt/edgekit"
USER = "65532:65532"  # "nonroot" of the distroless images; no name is needed
_LAYER_VERSION = 2  # of how layers are made: part of cache keys
_AGENT = (
    "edgekit.contracts",
    "edgekit.engine",
    "edgekit.stats",
    "edgekit.preprocess",
    "edgekit_runtime",
)
OnStep = Callable[[str], None]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was written."""

    tag: str
    digest: str
    target: str
    platform: str
    compressed: int  # bytes of all layers
    unpacked: int  # bytes of the files in them
    layers: dict[str, LayerFacts]


@dataclass(frozen=True)
class Plan:
    """What one image is made of, checked: nothing has been written yet."""

    bundle: VerifiedBundle
    arch: str
    base: Base
    pins: Mapping[str, str]


class Builder:
    """Makes images with one cache, one clock value and one listener."""

    def __init__(self, cache: Cache, wheel_folder: Path, *, epoch: int, on_step: OnStep) -> None:
        self._cache, self._wheels = cache, wheel_folder
        self._epoch, self._say = epoch, on_step

    def rootfs(self, path: Path) -> Base:
        """A base from a root file system in a tar, as one normalised layer.

        Raises:
            BadInputError: something in it is refused.
            ResourceError: a bomb, or no space.
        """
        self._say(f"base {path}")
        step = self._step("image-base", {"root": digest.of_file(path)[0]})

        def make(folder: Path) -> dict[str, Any]:
            with rootfs.opened(path) as root:
                layer = tar.write(root.entries, folder / "layer", mtime=self._epoch)
                return {"layer": _plain(layer), "base": _plain(root.facts)}

        made = self._cache.run(step, make)
        facts = msgspec.convert(made.facts["base"], BaseFacts)
        return Base(step.inputs["root"], facts, (_cached(made, "base"),))

    def plan(self, bundle: VerifiedBundle, arch: str, base: Base) -> Plan:
        """Check that the bundle can run on the base.

        Raises:
            BadInputError: the base is of another kind; a package cannot be pinned.
        """
        feasible.check_base(base.facts, arch, bundle.manifest.target)
        pins = wheels.pins("edgekit-ml", "runtime", wheels.environment(base.facts))
        return Plan(bundle, arch, base, pins)

    def write(self, plans: Sequence[Plan], out: Path) -> list[Written]:
        """Write an image for each plan, and an index over them when there are several.

        Raises:
            EdgekitError: nothing is left in ``out``.
        """
        made = [(plan, self._layers(plan, i, len(plans))) for i, plan in enumerate(plans, start=1)]
        with self._cache.scratch() as work, transaction(out) as change:
            written, entries = [], []
            for number, (plan, below) in enumerate(made):
                top = _model_layer(plan, below, work / f"model-{number}", self._epoch)
                entry, image = _put(change, plan, [*below, top], self._epoch)
                entries.append(entry)
                written.append(image)
            if len(plans) > 1:
                manifest = plans[0].bundle.manifest
                _index(change, entries, f"{manifest.model}-{manifest.version}")
        return written

    def _step(self, name: str, inputs: Mapping[str, str]) -> Step:
        tools = {"zlib": zlib.ZLIB_RUNTIME_VERSION}
        parameters = {"epoch": self._epoch, "gzip": tar.GZIP_LEVEL}
        return Step(name, _LAYER_VERSION, tools, inputs, parameters)

    def _layers(self, plan: Plan, number: int, total: int) -> list[Layer]:
        """Base, wheels and agent."""
        target = plan.bundle.manifest.target
        self._say(f"[{number}/{total}] {target}: {len(plan.pins)} wheels")
        folder = wheels.place(self._wheels, plan.base.facts)
        files = wheels.fetch(plan.pins, plan.base.facts, folder, plan.bundle.manifest.engine)
        inputs = {path.name: digest.of_file(path)[0] for path in files}

        def pack(folder: Path) -> dict[str, Any]:
            layer = tar.write(wheels.unpack(files), folder / "layer", mtime=self._epoch)
            return {"layer": _plain(layer), "licences": licences.of_wheels(files)}

        def agent(folder: Path) -> dict[str, Any]:
            return {"layer": _plain(tar.write(code, folder / "layer", mtime=self._epoch))}

        code = agent_files()
        sources = {entry.path: _content_digest(entry) for entry in code}
        self._say(f"[{number}/{total}] {target}: layers")
        cached = {
            "wheels": self._cache.run(self._step("image-wheels", inputs), pack),
            "agent": self._cache.run(self._step("image-agent", sources), agent),
        }
        return [*plan.base.layers, *(_cached(entry, purpose) for purpose, entry in cached.items())]


def _cached(entry: Cached, purpose: str) -> Layer:
    facts = msgspec.convert(entry.facts["layer"], LayerFacts)
    return Layer(entry.file("layer"), facts, purpose, licences=entry.facts.get("licences", {}))


def _plain(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


def agent_files() -> list[tar.Entry]:
    """The device's part of edgekit, as source, and the image's entry point."""
    found = [tar.file(f"{HOME}/entry.py", Path(in_image.__file__))]
    found.append(tar.file(f"{HOME}/agent/edgekit/__init__.py", _place("edgekit") / "__init__.py"))
    for package in _AGENT:
        folder = _place(package)
        for path in sorted(folder.rglob("*.py")):
            inside = f"{package.replace('.', '/')}/{path.relative_to(folder)}"
            found.append(tar.file(f"{HOME}/agent/{inside}", path))
    return found


def _place(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInputError(
            f"{package} is not installed here", hint="pip install 'edgekit-ml[build,runtime]'"
        )
    return Path(spec.submodule_search_locations[0])


def _content_digest(entry: tar.Entry) -> str:
    assert entry.content is not None
    with entry.content() as stream:
        return digest.of_bytes(stream.read())


def _selftest_data(bundle: VerifiedBundle) -> bytes:
    """The golden inputs under the inputs' own names, as the evaluation reads them.

    Raises:
        BadInputError: the bundle has no golden set, so an image could not prove itself.
    """
    golden = bundle.manifest.file(Role.GOLDEN)
    if golden is None:
        raise BadInputError(
            f"bundle {bundle.tag}: has no golden set, so an image of it could not test itself",
            hint="build the bundle with a golden split",
        )
    path = bundle.reader.blob_path(golden.sha256)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {
                name.removeprefix(INPUT_PREFIX): arrays[name]
                for name in sorted(arrays.files)
                if name.startswith(INPUT_PREFIX)
            }
    except (ValueError, OSError) as exc:
        raise BadInputError(f"bundle {bundle.tag}: {golden.path}: {exc}") from exc
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **inputs)
    return stream.getvalue()


def _model_layer(plan: Plan, below: Sequence[Layer], path: Path, epoch: int) -> Layer:
    """The bundle as a layout of its own, the selftest's data, and what the image is made of."""
    bundle, top = plan.bundle, plan.bundle.descriptors[0]
    blobs = [
        tar.file(
            f"{HOME}/bundle/blobs/sha256/{digest.hex_of(blob.digest)}",
            bundle.reader.blob_path(blob.digest),
        )
        for blob in bundle.descriptors
    ]
    index = codec.encode(Index(manifests=(top,)))
    contents = {"layers": {layer.purpose: layer.facts.digest for layer in below},
                "wheels": dict(plan.pins), "edgekit": __version__}  # fmt: skip
    small = {
        f"bundle/{LAYOUT_FILE}": b'{"imageLayoutVersion":"1.0.0"}',
        "bundle/index.json": index,
        "selftest.npz": _selftest_data(bundle),
        "contents.json": codec.encode_pretty(contents),
        "sbom.cdx.json": evidence.image_sbom(
            plan.pins,
            plan.base.digest,
            bundle.manifest.model,
            bundle.manifest.version,
            {name: told for layer in below for name, told in layer.licences.items()},
        ),
    }
    entries = [*blobs, *(tar.file(f"{HOME}/{name}", data) for name, data in small.items())]
    return Layer(path, tar.write(entries, path, mtime=epoch), "model")


def _environment(base: Base) -> list[str]:
    """What the base sets (a Jetson's asks the NVIDIA runtime for the GPU so), and what we need."""
    own = {
        "PYTHONPATH": f"/{HOME}/agent:/{wheels.SITE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    inherited = dict(entry.partition("=")[::2] for entry in base.env)
    return [f"{name}={value}" for name, value in (path | inherited | own).items()]


def _config(plan: Plan, layers: Sequence[Layer], epoch: int) -> dict[str, Any]:
    """Image configuration (image-spec config.md; Healthcheck is Docker's addition to it)."""
    created = datetime.fromtimestamp(epoch, timezone.utc)
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    python = plan.base.facts.python_path
    program = [python, f"/{HOME}/entry.py"]
    return {
        "architecture": plan.arch,
        "os": "linux",
        "created": stamp,
        "config": {
            "User": USER,
            "Env": _environment(plan.base),
            "Entrypoint": program,
            "Cmd": ["selftest"],
            "WorkingDir": "/",
            "Healthcheck": {
                "Test": ["CMD", *program, "healthy"],
                "Interval": 30_000_000_000,
                "Timeout": 5_000_000_000,
                "StartPeriod": 30_000_000_000,
                "Retries": 3,
            },
            "Labels": labels(plan, stamp),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.facts.diff_id for layer in layers]},
        "history": [
            {"created": stamp, "created_by": f"edgekit image build: {layer.purpose}"}
            for layer in layers
        ],
    }


def labels(plan: Plan, created: str) -> dict[str, str]:
    """Labels of the image, also annotations of its manifest (image-spec annotations.md)."""
    manifest = plan.bundle.manifest
    return {
        TITLE_LABEL: manifest.model,
        VERSION_LABEL: manifest.version,
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.base.digest": plan.base.digest,
        TARGET_LABEL: manifest.target,
        BUNDLE_LABEL: plan.bundle.digest,
        WORKER_LABEL: WORKER_PROTOCOL,
        "edgekit.engine": f"{manifest.engine} {plan.pins.get(manifest.engine, '')}".strip(),
    }


def _put(
    change: LayoutTransaction, plan: Plan, layers: Sequence[Layer], epoch: int
) -> tuple[Descriptor, Written]:
    manifest = plan.bundle.manifest
    stored = [change.put(layer.path, layer.media_type) for layer in layers]
    document = _config(plan, layers, epoch)
    config = change.put(codec.encode(document), CONFIG_MEDIA_TYPE)
    annotations = document["config"]["Labels"]
    image = Manifest(config=config, layers=tuple(stored), annotations=annotations)
    # No artifactType: it is for artifacts, and older engines refuse a null one.
    body = {k: v for k, v in _plain(image).items() if v is not None}
    top = change.put(codec.encode(body), MANIFEST_MEDIA_TYPE)
    variant = "v8" if plan.arch == "arm64" else None
    platform = Platform(architecture=plan.arch, os="linux", variant=variant)
    entry = msgspec.structs.replace(top, platform=platform)
    tag = tag_of(manifest.model, manifest.version, manifest.target)
    change.point(tag, msgspec.structs.replace(entry, annotations={REF_NAME: tag}))
    written = Written(
        tag=tag,
        digest=top.digest,
        target=manifest.target,
        platform=f"linux/{plan.arch}",
        compressed=sum(layer.facts.size for layer in layers),
        unpacked=sum(layer.facts.unpacked for layer in layers),
        layers={layer.purpose: layer.facts for layer in layers},
    )
    return entry, written


def _index(change: LayoutTransaction, entries: Sequence[Descriptor], tag: str) -> None:
    """One name for several platforms; the engine picks its own."""
    index = Index(manifests=tuple(sorted(entries, key=lambda e: e.digest)))
    stored = change.put(codec.encode(index), index.media_type)
    change.point(tag, msgspec.structs.replace(stored, annotations={REF_NAME: tag}))
