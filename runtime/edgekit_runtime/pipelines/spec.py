"""What a ``[[pipeline]]`` table of the agent's configuration may say. Pure.

Every table is checked alone, so that a refusal names the pipeline and the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.ids import check_name

PIPELINES_MAX = 8  # each is a process of some 30 MB
SINKS_MAX = 4
QUEUE_MAX = 4096
QUEUE_BYTES_MIN = 1024
HEADERS_MAX = 16
_TOPIC_BYTES_MAX = 1024
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Drop(str, Enum):
    """Who gives way when the queue is full."""

    OLDEST = "oldest"
    NEWEST = "newest"
    BLOCK = "block"  # nobody: the source waits


class Payload(str, Enum):
    """How a source's bytes become arrays."""

    JSON = "json"
    RAW = "raw"  # little-endian values of the input's dtype
    NPY = "npy"
    IMAGE = "image"  # JPEG, PNG, BMP, WebP; needs edgekit-ml[images]


class Fit(str, Enum):
    """How an image gets the size the contract asks for."""

    STRETCH = "stretch"
    CROP = "crop"  # the middle of it
    PAD = "pad"  # whole, with bars
    EXACT = "exact"  # another size is refused


class Colour(str, Enum):
    """Order of an image's channels."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


class Fsync(str, Enum):
    """When a file sink's lines are made durable."""

    ALWAYS = "always"  # before the source is told
    SECOND = "second"
    NEVER = "never"  # the kernel decides


class After(str, Enum):
    """What becomes of a file that was answered."""

    MOVE = "move"
    DELETE = "delete"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Source(_Table, frozen=True, kw_only=True, tag_field="kind"):
    payload: Payload = Payload.JSON
    fields: tuple[str, ...] = ()  # json: numbers of an object, in the model's order
    fit: Fit = Fit.STRETCH
    colour: Colour = Colour.RGB
    bytes_max: int = 4 * 1024 * 1024  # of one item


class MqttSource(_Source, frozen=True, kw_only=True, tag="mqtt"):
    """Messages of a topic filter, acknowledged after they are answered."""

    topic: str
    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password_file: str = ""
    id_key: str = ""  # json: where an object says its own id


class FolderSource(_Source, frozen=True, kw_only=True, tag="folder"):
    """Files that appear in a folder; they end up in ``done`` or ``failed`` below it."""

    path: str
    pattern: str = "*"
    payload: Payload = Payload.IMAGE
    after: After = After.MOVE
    settle_s: float = 1.0  # size and time of a file must not change for so long
    poll_s: float = 0.5


class HttpSource(_Source, frozen=True, kw_only=True, tag="http"):
    """``POST /push/NAME`` on the loopback address."""

    port: int


class CameraSource(_Source, frozen=True, kw_only=True, tag="camera"):
    """V4L2 device, RTSP or HTTP stream, or video file; needs edgekit-ml[camera]."""

    device: str | int
    payload: Payload = Payload.IMAGE
    at_end: str = "stop"  # of a file: stop | loop
    reopen_s: float = 2.0  # after it was lost


Source = MqttSource | FolderSource | HttpSource | CameraSource


class _Sink(_Table, frozen=True, kw_only=True, tag_field="kind"):
    pass


class FileSink(_Sink, frozen=True, kw_only=True, tag="file"):
    """JSON lines; older files are ``path.1``, ``path.2`` and so on."""

    path: str
    bytes_max: int = 10 * 1024 * 1024  # of one file
    files_max: int = 5
    fsync: Fsync = Fsync.SECOND


class MqttSink(_Sink, frozen=True, kw_only=True, tag="mqtt"):
    """Answers as messages with QoS 1."""

    topic: str
    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password_file: str = ""
    queue_max: int = 256


class WebhookSink(_Sink, frozen=True, kw_only=True, tag="webhook"):
    """Answers as HTTP POST."""

    url: str
    headers: dict[str, str] = {}
    timeout_s: float = 10.0
    attempts_max: int = 8
    queue_max: int = 256


Sink = FileSink | MqttSink | WebhookSink


class PipelineSpec(_Table, frozen=True, kw_only=True):
    """One table. What is None depends on the kind of source: see `queue_size` and `policy`."""

    name: str
    model: str
    source: Source
    sinks: tuple[Sink, ...]
    queue_max: int | None = None
    queue_bytes_max: int = 64 * 1024 * 1024
    drop: Drop | None = None
    rate_max: float = 0.0  # items a second; 0: no limit
    share: float = 1.0  # of what arrives
    age_s_max: float = 0.0  # an item that is older when its turn comes is dropped; 0: no limit

    @property
    def policy(self) -> Drop:
        """Who gives way: a camera's newest frame wins, a folder's files can wait."""
        return self.drop or _POLICIES[type(self.source)]

    @property
    def queue_size(self) -> int:
        """Items that wait at most."""
        return self.queue_max or (1 if isinstance(self.source, CameraSource) else 64)


_POLICIES: dict[type, Drop] = {
    MqttSource: Drop.OLDEST,
    FolderSource: Drop.BLOCK,
    HttpSource: Drop.NEWEST,
    CameraSource: Drop.OLDEST,
}


def read(tables: Any, what: str) -> tuple[PipelineSpec, ...]:
    """The checked ``[[pipeline]]`` tables of a configuration file called ``what``.

    Raises:
        UsageError: names the pipeline and the key.
    """
    if not isinstance(tables, list):
        raise UsageError(f"{what}: pipeline: write each as [[pipeline]]", hint=_HINT)
    if len(tables) > PIPELINES_MAX:
        raise UsageError(f"{what}: {len(tables)} pipelines, allowed are {PIPELINES_MAX}")
    found: list[PipelineSpec] = []
    for index, table in enumerate(tables):
        name = table.get("name") if isinstance(table, Mapping) else None
        where = f"{what}: pipeline {str(name)[:80]!r}" if name else f"{what}: pipeline {index + 1}"
        try:
            spec = msgspec.convert(table, PipelineSpec)
        except msgspec.ValidationError as exc:
            raise UsageError(f"{where}: {exc}", hint=_HINT) from exc
        _check(spec, where)
        if spec.name in {each.name for each in found}:
            raise UsageError(f"{where}: name: another pipeline has it", hint=_HINT)
        found.append(spec)
    _check_together(found, what)
    return tuple(found)


_HINT = "docs/pipelines.md lists the keys"


def http_ports(specs: Sequence[PipelineSpec]) -> dict[int, str]:
    """Who listens on which port."""
    return {s.source.port: s.name for s in specs if isinstance(s.source, HttpSource)}


def _check(spec: PipelineSpec, where: str) -> None:
    problems = [*_own(spec), *_of_source(spec.source)]
    for index, sink in enumerate(spec.sinks):
        problems += [f"sinks[{index}].{each}" for each in _of_sink(sink)]
    if problems:
        raise UsageError(f"{where}: {problems[0]}", hint=_HINT)


def _own(spec: PipelineSpec) -> Iterator[str]:
    yield from _unless(_is_name(spec.name), f"name: {spec.name[:80]!r} is not a name: {_NAMES}")
    yield from _unless(_is_name(spec.model), f"model: {spec.model[:80]!r} is not a name: {_NAMES}")
    count = len(spec.sinks)
    yield from _unless(1 <= count <= SINKS_MAX, f"sinks: {count}, allowed are 1-{SINKS_MAX}")
    size = spec.queue_max
    yield from _unless(size is None or 1 <= size <= QUEUE_MAX, f"queue_max: {size} (1-{QUEUE_MAX})")
    yield from _unless(
        spec.queue_bytes_max >= QUEUE_BYTES_MIN, f"queue_bytes_max: below {QUEUE_BYTES_MIN}"
    )
    yield from _unless(_within(spec.share, 0, 1) and spec.share > 0, f"share: {spec.share} (0-1]")
    for key in ("rate_max", "age_s_max"):
        value = getattr(spec, key)
        yield from _unless(math.isfinite(value) and value >= 0, f"{key}: {value} is negative")
    if isinstance(spec.source, HttpSource) and spec.drop is Drop.BLOCK:
        yield "drop: block: a client is not kept waiting; newest refuses it with 429"
    if spec.source.bytes_max > spec.queue_bytes_max:
        yield f"queue_bytes_max: {spec.queue_bytes_max} holds no item of source.bytes_max"


_NAMES = "1-64 of a-z 0-9 . _ -"


def _of_source(source: Source) -> Iterator[str]:
    yield from _unless(source.bytes_max >= 1, f"source.bytes_max: {source.bytes_max}")
    if source.fields and source.payload is not Payload.JSON:
        yield "source.fields: only of payload json"
    if isinstance(source, MqttSource):
        yield from _unless(_is_filter(source.topic), f"source.topic: {source.topic!r} is no filter")
        yield from (f"source.{each}" for each in _of_broker(source))
        if source.id_key and source.payload is not Payload.JSON:
            yield "source.id_key: only of payload json"
    elif isinstance(source, FolderSource):
        yield from _unless(source.path, "source.path: is empty")
        good = source.pattern and "/" not in source.pattern
        yield from _unless(good, f"source.pattern: {source.pattern!r}")
        yield from _unless(_within(source.settle_s, 0, 3600), f"source.settle_s: {source.settle_s}")
        yield from _unless(_within(source.poll_s, 0.05, 3600), f"source.poll_s: {source.poll_s}")
    elif isinstance(source, HttpSource):
        yield from _unless(1 <= source.port <= 65535, f"source.port: {source.port}")
    elif isinstance(source, CameraSource):
        yield from _unless(
            source.payload is Payload.IMAGE, "source.payload: a camera has images only"
        )
        yield from _unless(
            source.at_end in ("stop", "loop"), f"source.at_end: {source.at_end!r}: stop or loop"
        )
        yield from _unless(
            _within(source.reopen_s, 0.05, 3600), f"source.reopen_s: {source.reopen_s}"
        )
        yield from _unless(source.device != "", "source.device: is empty")


def _of_sink(sink: Sink) -> Iterator[str]:
    if isinstance(sink, FileSink):
        yield from _unless(sink.path, "path: is empty")
        yield from _unless(sink.bytes_max >= 1024, f"bytes_max: {sink.bytes_max} is below 1024")
        yield from _unless(_within(sink.files_max, 1, 1000), f"files_max: {sink.files_max}")
        return
    yield from _unless(1 <= sink.queue_max <= QUEUE_MAX, f"queue_max: {sink.queue_max}")
    if isinstance(sink, MqttSink):
        good = _is_filter(sink.topic) and not set(sink.topic) & set("+#")
        yield from _unless(good, f"topic: {sink.topic!r} is no topic to publish on")
        yield from _of_broker(sink)
    else:
        yield from _unless(_is_url(sink.url), f"url: {sink.url!r} is neither http:// nor https://")
        yield from _unless(_within(sink.timeout_s, 0.1, 600), f"timeout_s: {sink.timeout_s}")
        yield from _unless(
            _within(sink.attempts_max, 1, 1000), f"attempts_max: {sink.attempts_max}"
        )
        yield from _unless(len(sink.headers) <= HEADERS_MAX, f"headers: more than {HEADERS_MAX}")
        for name, value in sink.headers.items():
            good = bool(_HEADER.fullmatch(name)) and value.isprintable() and value.isascii()
            yield from _unless(good, f"headers: {name[:80]!r} cannot be sent")


def _of_broker(broker: MqttSource | MqttSink) -> Iterator[str]:
    yield from _unless(broker.host, "host: is empty")
    yield from _unless(1 <= broker.port <= 65535, f"port: {broker.port}")
    if broker.password_file and not broker.username:
        yield "password_file: without a username"


def _check_together(specs: Sequence[PipelineSpec], what: str) -> None:
    """What two pipelines cannot share."""

    def once(key: str, of: Callable[[PipelineSpec], Iterator[object]]) -> None:
        owners: dict[object, str] = {}
        for spec in specs:
            for value in of(spec):
                if value in owners:
                    raise UsageError(
                        f"{what}: pipeline {spec.name!r}: {key}: {value} is taken"
                        f" by pipeline {owners[value]!r}",
                        hint="give each its own",
                    )
                owners[value] = spec.name

    once("source.port", lambda s: iter([s.source.port] if isinstance(s.source, HttpSource) else []))
    once(
        "source.path", lambda s: iter([s.source.path] if isinstance(s.source, FolderSource) else [])
    )
    once("sinks.path", lambda s: (sink.path for sink in s.sinks if isinstance(sink, FileSink)))


def _unless(ok: object, problem: str) -> Iterator[str]:
    if not ok:
        yield problem


def _within(value: float, low: float, high: float) -> bool:
    return low <= value <= high  # false for NaN


def _is_name(text: str) -> bool:
    try:
        check_name(text, "name")
    except BadInputError:
        return False
    return True


def _is_filter(topic: str) -> bool:
    """Whether MQTT 3.1.1 (4.7) allows ``topic`` as a filter."""
    levels = topic.split("/")
    sound = 0 < len(topic.encode()) <= _TOPIC_BYTES_MAX and "\0" not in topic
    wild = all(level in ("+", "#") or not set(level) & set("+#") for level in levels)
    return sound and wild and "#" not in levels[:-1]


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
