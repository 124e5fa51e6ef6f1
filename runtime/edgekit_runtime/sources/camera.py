"""Camera source: frames of a V4L2 device, a stream or a video file, through OpenCV.

A stream that ends was lost, and is opened again; a file that ends is at its end. Where frames may
be dropped a file is played at its own speed, else each of its frames waits for its turn.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from edgekit_runtime.pipelines.intake import Item
from edgekit_runtime.pipelines.spec import CameraSource, Drop
from edgekit_runtime.ports import Array
from edgekit_runtime.sources.admission import Admission

if TYPE_CHECKING:
    import cv2  # optional: imported where a camera is opened

OPEN_MS_MAX, READ_MS_MAX = 10_000, 10_000  # OpenCV waits three times as long by default
ROOM_S = 0.02
FPS_MAX = 1000.0
log = logging.getLogger(__name__)


class CameraReader:
    """`edgekit_runtime.sources.admission.Source` over `cv2.VideoCapture`."""

    def __init__(self, source: CameraSource, door: Admission) -> None:
        self._source, self._door = source, door
        self._device = source.device
        self._waits = door.spec.policy is Drop.BLOCK
        self._run_id, self._frame = secrets.token_hex(4), 0
        self._told = False

    def run(self) -> None:
        """See `Source.run`."""
        stopping = self._door.stopping
        while not stopping.is_set():
            is_file = isinstance(self._device, str) and Path(self._device).is_file()
            count = self._play(is_file=is_file)
            if is_file and count and self._source.at_end == "stop":
                log.info("%s: at its end after %d frames", self._device, count)
                self._door.end()
                stopping.wait()
                return
            if not is_file or not count:
                self._lost(count)
                stopping.wait(self._source.reopen_s)

    def close(self) -> None:
        """See `Source.close`."""

    def _play(self, *, is_file: bool) -> int:
        """Offer frames until there are no more; how many there were."""
        capture = _opened(self._device)
        count, begun = 0, monotonic()
        try:
            if not capture.isOpened():
                return 0
            pace_s = 0.0 if self._waits or not is_file else 1 / _fps(capture)
            while not self._door.stopping.is_set():
                if not self._door.has_room():
                    self._door.stopping.wait(ROOM_S)
                    continue
                if pace_s and self._door.stopping.wait(
                    max(0.0, begun + count * pace_s - monotonic())
                ):
                    break
                there, frame = capture.read()
                if not there or frame is None or not frame.size:
                    break
                if not count:
                    self._door.be(away=False)
                    self._told = False
                count += 1
                self._offer(np.asarray(frame))
        finally:
            capture.release()
        return count

    def _offer(self, frame: Array) -> None:
        self._frame += 1
        if frame.ndim == 2:
            frame = np.repeat(frame[..., None], 3, axis=2)
        image = frame[..., 2::-1]  # OpenCV has blue first
        self._door.admit(
            Item(
                id=f"{self._door.spec.name}-{self._run_id}-{self._frame}",
                payload=image,
                size=frame.nbytes,
                at=time.time(),
                about={"frame": self._frame},
            )
        )

    def _lost(self, count: int) -> None:
        self._door.be(away=True)
        if not self._told:
            how = f"lost after {count} frames" if count else "cannot be opened"
            log.warning("camera %s: %s (trying again)", _shown(self._device), how)
        self._told = True


def _opened(device: str | int) -> cv2.VideoCapture:
    # Read when it is imported: its own lines would stand on the agent's standard error.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    import cv2  # noqa: PLC0415 - optional

    if isinstance(device, int) or device.startswith("/dev/"):
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the one of a second ago
        return capture
    if "://" in device:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS_MAX]
        limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS_MAX]
        return cv2.VideoCapture(device, cv2.CAP_FFMPEG, limits)
    return cv2.VideoCapture(device)


def _fps(capture: cv2.VideoCapture) -> float:
    import cv2  # noqa: PLC0415 - optional

    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0 < fps <= FPS_MAX else 25.0


def _shown(device: str | int) -> str:
    """Without the password that may stand in a URL."""
    text = str(device)
    scheme, found, rest = text.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else text
