"""States that several parts name (DESIGN §6)."""

from __future__ import annotations

from enum import Enum


class SlotState(str, Enum):
    """Where one model's deployment stands on a device."""

    EMPTY = "EMPTY"  # nothing assigned
    FETCHING = "FETCHING"  # blobs of the candidate are being downloaded
    STAGED = "STAGED"  # every blob is on disk
    VERIFIED = "VERIFIED"  # digests re-read from disk, manifest and contract agree
    SELF_TEST = "SELF_TEST"  # golden set is being replayed
    SHADOW = "SHADOW"  # candidate sees sampled inputs beside the active slot
    TRIAL = "TRIAL"  # candidate serves; each load spends a try
    CONFIRMED = "CONFIRMED"  # enough traffic and time without a reason to go back
    ROLLED_BACK = "ROLLED_BACK"  # the fallback serves; the candidate's digest is quarantined
    SAFE = "SAFE"  # nothing can serve; telemetry and updates stay alive


class DeviceState(str, Enum):
    """State of the device as a whole."""

    OK = "OK"
    SAFE = "SAFE"
