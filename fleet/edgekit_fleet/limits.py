"""Bounds on what devices may say: a device is not trusted to count sanely, or to be one of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.frames import FrameHeader
from edgekit.contracts.limits import LABELS_MAX
from edgekit.contracts.messages import Presence, Record, Reported, Tombstone, Window

NUMBER_MAX = 2**53  # exact in JSON and in every database we know
TEXT_CHARS_MAX = 2048
NAME_CHARS_MAX = 128
PROBES_MAX = 64
BINS_MAX = 4096
RULES_MAX = 128


def _number(value: int, what: str) -> None:
    if not 0 <= value < NUMBER_MAX:
        raise BadInputError(f"{what}: {value} is out of bounds")


def _time(value: float, what: str) -> None:
    if not (math.isfinite(value) and abs(value) < NUMBER_MAX):
        raise BadInputError(f"{what}: {value} is not a time")


def _text(value: str, what: str, chars_max: int = NAME_CHARS_MAX) -> None:
    if len(value) > chars_max:
        raise BadInputError(f"{what}: {len(value)} characters exceed {chars_max}")


def check_identity(header: FrameHeader) -> None:
    """Refuse frame numbers that no device of ours writes.

    Raises:
        BadInputError: names the number.
    """
    for name in ("epoch", "boot", "seq"):
        _number(getattr(header, name), f"frame {name}")
    if header.lane > 3:
        raise BadInputError(f"frame lane: {header.lane} is not 0-3")


def check_record(record: Record) -> None:
    """Refuse counts that contradict themselves and texts without bound.

    Raises:
        BadInputError: names the field.
    """
    if isinstance(record, Window):
        _check_window(record)
        return
    _time(record.at, "at")
    if isinstance(record, Tombstone):
        for name in ("boot", "lane", "first", "last", "records", "inferences"):
            _number(getattr(record, name), f"tombstone.{name}")
        _text(record.reason, "tombstone.reason", TEXT_CHARS_MAX)
        return
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str):
            _text(value, name, TEXT_CHARS_MAX if name in ("reason", "detail") else NAME_CHARS_MAX)


def _check_window(window: Window) -> None:
    for name in ("model", "digest", "slot", "release", "rollout", "edges_digest", "region"):
        _text(getattr(window, name), f"window.{name}")
    _time(window.start, "window.start")
    _time(window.end, "window.end")
    for name in ("n", "errors", "nan", "violations", "labelled", "correct", "first", "last"):
        _number(getattr(window, name), f"window.{name}")
    if not -1 <= window.wave < 2**31:
        raise BadInputError(f"window.wave: {window.wave} is out of bounds")
    if window.errors > window.n or window.correct > window.labelled or window.first > window.last:
        raise BadInputError("window: counts contradict each other")
    if len(window.probes) > PROBES_MAX or len(window.sums) > PROBES_MAX:
        raise BadInputError(f"window: more than {PROBES_MAX} probes")
    for name in ("violated", "outside"):
        _check_names(getattr(window, name), f"window.{name}")
    for counts in (window.latency, *window.probes.values()):
        _check_bins(counts)
    for name, value in window.sums.items():
        if not math.isfinite(value):
            raise BadInputError(f"window.sums.{name[:40]}: {value} is not finite")


def _check_names(counts: Mapping[str, int], what: str) -> None:
    if len(counts) > RULES_MAX:
        raise BadInputError(f"{what}: more than {RULES_MAX} names")
    for name, count in counts.items():
        _text(name, what)
        _number(count, f"{what}.{name[:40]}")


def _check_bins(counts: Sequence[int]) -> None:
    if len(counts) > BINS_MAX:
        raise BadInputError(f"window: {len(counts)} bins exceed {BINS_MAX}")
    for count in counts:
        _number(count, "window bin")


def check_presence(presence: Presence) -> Presence:
    """Return ``presence`` when its session id is bounded.

    Raises:
        BadInputError: otherwise.
    """
    _text(presence.sid, "presence.sid")
    _time(presence.at, "presence.at")
    return presence


def check_reported(reported: Reported) -> Reported:
    """Return ``reported`` when its labels and generation are bounded.

    Raises:
        BadInputError: otherwise.
    """
    if not 0 <= reported.gen_observed < 2**31 - 1:
        raise BadInputError(f"reported.gen_observed: {reported.gen_observed} is out of bounds")
    if len(reported.profile.labels) > LABELS_MAX:
        raise BadInputError(f"reported.profile.labels: more than {LABELS_MAX}")
    for key, value in reported.profile.labels.items():
        _text(key, "label")
        _text(value, f"label {key}")
    _time(reported.at, "reported.at")
    return reported
