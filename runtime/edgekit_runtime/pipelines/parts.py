"""Builds the source and the sinks of one pipeline: imports only what its table names."""

from __future__ import annotations

import importlib

from typing_extensions import assert_never

from edgekit.contracts.errors import UsageError
from edgekit_runtime.pipelines.counts import Counts, sink_name
from edgekit_runtime.pipelines.intake import Fate, Outcome
from edgekit_runtime.pipelines.orders import Order
from edgekit_runtime.pipelines.spec import (
    CameraSource,
    Drop,
    FileSink,
    FolderSource,
    HttpSource,
    MqttSink,
    MqttSource,
    Payload,
    PipelineSpec,
    WebhookSink,
)
from edgekit_runtime.ports import Disk
from edgekit_runtime.sinks.outlet import Outlet, Sink
from edgekit_runtime.sources.admission import Admission, Source

RETURNED = Fate(Outcome.RETURNED)
FILE_QUEUE_MAX = 256
FILE_ATTEMPTS_MAX = 3  # a full disk may be full for long


def needs(spec: PipelineSpec) -> tuple[str, str]:
    """The optional module a pipeline cannot do without, and the extra that brings it; or empty."""
    if isinstance(spec.source, CameraSource):
        return "cv2", "camera"
    return ("PIL.Image", "images") if spec.source.payload is Payload.IMAGE else ("", "")


def check_libraries(spec: PipelineSpec) -> None:
    """Raises `UsageError` when an optional module is not installed."""
    module, extra = needs(spec)
    if not module:
        return
    try:
        importlib.import_module(module)
    except ImportError as exc:
        raise UsageError(
            f"pipeline {spec.name!r} needs {module.partition('.')[0]}: {exc}",
            hint=f"pip install 'edgekit-ml[{extra}]'",
        ) from exc


def source(order: Order, door: Admission) -> Source:
    """The source of ``order``. Raises `EdgekitError` when it cannot work here."""
    found = order.spec.source
    if isinstance(found, MqttSource):
        from edgekit_runtime.sources.mqtt import MqttReader  # noqa: PLC0415 - see above

        return MqttReader(found, door, f"{order.device}:{order.spec.name}:source")
    if isinstance(found, FolderSource):
        from edgekit_runtime.sources.folder import FolderReader  # noqa: PLC0415

        return FolderReader(found, door)
    if isinstance(found, HttpSource):
        from edgekit_runtime.sources.push import PushServer  # noqa: PLC0415

        return PushServer(found, door)
    if isinstance(found, CameraSource):
        from edgekit_runtime.sources.camera import CameraReader  # noqa: PLC0415

        return CameraReader(found, door)
    assert_never(found)


def outlet(order: Order, index: int, disk: Disk, counts: Counts) -> Outlet:
    """Sink ``index`` of ``order`` and its queue. Raises `EdgekitError`."""
    spec = order.spec
    table = spec.sinks[index]
    attempts_max, queue_max = 0, FILE_QUEUE_MAX
    made: Sink
    if isinstance(table, FileSink):
        from edgekit_runtime.sinks.file import FileWriter  # noqa: PLC0415

        made, attempts_max = FileWriter(disk, table), FILE_ATTEMPTS_MAX
    elif isinstance(table, MqttSink):
        from edgekit_runtime.sinks.mqtt import MqttPublisher  # noqa: PLC0415

        made, queue_max = (
            MqttPublisher(table, f"{order.device}:{spec.name}:{index}"),
            table.queue_max,
        )
    elif isinstance(table, WebhookSink):
        from edgekit_runtime.sinks.webhook import WebhookCaller  # noqa: PLC0415

        made = WebhookCaller(table)
        attempts_max, queue_max = table.attempts_max, table.queue_max
    else:
        assert_never(table)
    return Outlet(
        f"sink {sink_name(spec, index)}",
        made,
        counts,
        index,
        queue_max=queue_max,
        attempts_max=attempts_max,
        blocks=spec.policy is Drop.BLOCK,
    )
