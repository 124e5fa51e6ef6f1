"""Checks of the pipelines: what each one reads, what it needs, and where its answers go."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.doctor.check import Check, fail, ok, warn
from edgekit_runtime.doctor.held import Held
from edgekit_runtime.pipelines import counts, parts
from edgekit_runtime.pipelines.counts import Figures
from edgekit_runtime.pipelines.spec import (
    CameraSource,
    FileSink,
    FolderSource,
    MqttSink,
    MqttSource,
    PipelineSpec,
    WebhookSink,
)

NAME = "pipeline"
REACH_S_MAX = 5.0
LOST_SHARE_MAX = 0.01


def pipelines(config: AgentConfig, held: Held) -> Iterator[Check]:
    """Each pipeline's own line, and one for everything that is wrong with it."""
    for spec in config.pipeline:
        problems = [*_model(spec, held), *_library(spec), *_source(spec), *_sinks(spec)]
        figures = counts.read(PosixDisk(), config.device.state_dir, spec)
        yield from problems
        if figures is not None:
            yield from _losses(spec, figures)
        if not problems:
            state = figures.state if figures is not None else "never started"
            yield ok(NAME, f"{spec.name}: {state}, its model, source and sinks are there")


def _model(spec: PipelineSpec, held: Held) -> Iterator[Check]:
    if spec.model in held.record.models:
        return
    known = ", ".join(sorted(held.record.models)) or "none"
    mend = f"deploy it, or correct the pipeline's model; deployed here: {known}"
    yield warn(NAME, f"{spec.name}: waits for model {spec.model!r}, unknown to this device", mend)


def _library(spec: PipelineSpec) -> Iterator[Check]:
    module, extra = parts.needs(spec)
    package = module.partition(".")[0]
    if package and importlib.util.find_spec(package) is None:
        mend = f"pip install 'edgekit-ml[{extra}]'"
        yield fail(NAME, f"{spec.name}: {package} is not installed", mend)


def _source(spec: PipelineSpec) -> Iterator[Check]:
    source = spec.source
    if isinstance(source, FolderSource):
        mend = f"create it and give it to the agent's user; under systemd: {_WRITE} {source.path}"
        yield from _writable(spec, Path(source.path), mend)
    elif isinstance(source, MqttSource):
        yield from _reachable(spec, "source", source.host, source.port)
        yield from _readable(spec, source.password_file)
    elif isinstance(source, CameraSource):
        yield from _camera(spec, source)


_WRITE = "ReadWritePaths="


def _camera(spec: PipelineSpec, source: CameraSource) -> Iterator[Check]:
    device = source.device
    path = Path(f"/dev/video{device}" if isinstance(device, int) else device)
    if isinstance(device, str) and "://" in device:
        parts_of = urlsplit(device)
        port = parts_of.port or {"rtsp": 554, "https": 443}.get(parts_of.scheme, 80)
        yield from _reachable(spec, "camera", parts_of.hostname or "", port)
    elif not path.exists():
        yield fail(NAME, f"{spec.name}: {path} is not there", "plug it in, or correct the device")
    elif not os.access(path, os.R_OK):
        mend = "add the agent's user to the group that owns it, usually video"
        yield fail(NAME, f"{spec.name}: {path} may not be read", mend)


def _sinks(spec: PipelineSpec) -> Iterator[Check]:
    for sink in spec.sinks:
        if isinstance(sink, FileSink):
            folder = Path(sink.path).absolute().parent
            found = next(each for each in (folder, *folder.parents) if each.exists())
            mend = f"give it to the agent's user; under systemd: {_WRITE} {folder}"
            yield from _writable(spec, found, mend)
        elif isinstance(sink, MqttSink):
            yield from _reachable(spec, "sink", sink.host, sink.port)
            yield from _readable(spec, sink.password_file)
        elif isinstance(sink, WebhookSink):
            found_url = urlsplit(sink.url)
            port = found_url.port or (443 if found_url.scheme == "https" else 80)
            yield from _reachable(spec, "webhook", found_url.hostname or "", port)


def _writable(spec: PipelineSpec, folder: Path, mend: str) -> Iterator[Check]:
    if not folder.is_dir():
        yield fail(NAME, f"{spec.name}: {folder} is not a folder", mend)
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield fail(NAME, f"{spec.name}: {folder} may not be written", mend)


def _readable(spec: PipelineSpec, path: str) -> Iterator[Check]:
    if path and not os.access(path, os.R_OK):
        mend = "let the agent's user read it"
        yield fail(NAME, f"{spec.name}: password_file {path} cannot be read", mend)


def _reachable(spec: PipelineSpec, what: str, host: str, port: int) -> Iterator[Check]:
    """A warning: it may be away, and the pipeline goes on when it is back."""
    try:
        socket.create_connection((host, port), REACH_S_MAX).close()
    except (OSError, UnicodeError) as exc:
        mend = f"check that {host}:{port} listens and may be reached from here"
        yield warn(NAME, f"{spec.name}: {what} {host}:{port}: {exc}", mend)


def _losses(spec: PipelineSpec, figures: Figures) -> Iterator[Check]:
    """What was given up though nobody asked for that: all but sampling and rate."""
    lost = sum(figures.refused.values()) + figures.dropped["queue_full"] + figures.dropped["stale"]
    failed = sum(sink.failed + sum(sink.dropped.values()) for sink in figures.sinks)
    newest_wins = isinstance(spec.source, CameraSource)
    if lost > LOST_SHARE_MAX * figures.received and not newest_wins:
        mend = "see `edgekit-agent status` for the reasons, and `edgekit-agent logs`"
        yield warn(NAME, f"{spec.name}: {lost} of {figures.received} items were lost", mend)
    if failed > LOST_SHARE_MAX * figures.inferred * len(figures.sinks):
        mend = "see `edgekit-agent status` for the sink, and `edgekit-agent logs`"
        yield warn(NAME, f"{spec.name}: {failed} answers did not reach a sink", mend)
