"""Images as models take them: decoded, in the contract's size and layout."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from edgekit.contracts.contract import InputSpec
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.preprocess.resize import resize
from edgekit_runtime.pipelines.spec import Colour, Fit
from edgekit_runtime.ports import Array

PIXELS_MAX = 40_000_000  # of a compressed image: 120 MB once it is decoded
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG has it


class _Frame(NamedTuple):
    """What a contract's shape says of an image; None: any."""

    height: int | None
    width: int | None
    channels: int | None  # None: two dimensions, no axis of channels
    first: bool  # channels before rows


def decode(payload: bytes) -> Array:
    """The image in ``payload`` as rows, columns, RGB.

    Raises:
        BadInputError: not an image of `FORMATS`, damaged, or too large.
        UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise UsageError(
            "images need Pillow, which is not installed",
            hint="pip install 'edgekit-ml[images]'",
        ) from exc
    try:
        with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
            if image.width * image.height > PIXELS_MAX:
                raise BadInputError(
                    f"payload: image of {image.width} x {image.height}, allowed are"
                    f" {PIXELS_MAX} pixels"
                )
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as exc:
        known = ", ".join(FORMATS)
        raise BadInputError(f"payload: not an image ({known})") from exc
    except (
        OSError, ValueError, SyntaxError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as exc:  # fmt: skip
        raise BadInputError(f"payload: a damaged image: {exc}") from exc


def fitted(spec: InputSpec, image: Array, fit: Fit, colour: Colour) -> Array:
    """``image`` (rows, columns, RGB) as one sample of ``spec``; values stay 0 to 255.

    Raises:
        BadInputError: the input is no image, or the size is another and `Fit.EXACT` is asked for.
    """
    frame = _frame(spec)
    rows, columns = image.shape[:2]
    image = _sized(image, frame.height or rows, frame.width or columns, fit)
    if frame.channels in (None, 1) or colour is Colour.GRAY:
        if frame.channels == 3:
            raise BadInputError(f"input {spec.name!r} has 3 channels, source.colour is gray")
        gray = np.rint(image.astype(np.float32) @ _GRAY).astype(np.uint8)
        image = gray if frame.channels is None else gray[..., None]
    elif colour is Colour.BGR:
        image = image[..., ::-1]
    if frame.first:
        image = np.moveaxis(image, -1, 0)
    return np.ascontiguousarray(_typed(spec, image))


def _typed(spec: InputSpec, image: Array) -> Array:
    wanted = np.dtype(spec.dtype)
    if wanted.kind == "f" or (wanted.kind in "iu" and np.iinfo(wanted).max >= 255):
        return image.astype(wanted)
    raise BadInputError(f"input {spec.name!r} is {spec.dtype}, which does not hold 0 to 255")


def _sized(image: Array, height: int, width: int, fit: Fit) -> Array:
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    if fit is Fit.EXACT:
        raise BadInputError(
            f"payload: image of {columns} x {rows}, the model takes {width} x {height}",
            hint="source.fit: stretch, crop or pad",
        )
    if fit is Fit.STRETCH:
        return resize(image, height, width)
    choose = max if fit is Fit.CROP else min
    scale = choose(height / rows, width / columns)
    inner = max(1, round(rows * scale)), max(1, round(columns * scale))
    scaled = resize(image, *inner)
    if fit is Fit.CROP:
        top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
        return scaled[top : top + height, left : left + width]
    padded = np.zeros((height, width, *image.shape[2:]), image.dtype)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded[top : top + inner[0], left : left + inner[1]] = scaled
    return padded


def _frame(spec: InputSpec) -> _Frame:
    dims = [dim if isinstance(dim, int) else None for dim in spec.shape[1:]]
    layout = (spec.layout or "").upper().removeprefix("N")
    if len(dims) == 2 and layout in ("", "HW"):
        return _Frame(dims[0], dims[1], None, first=False)
    if len(dims) == 3:
        last = layout == "HWC" or (not layout and dims[2] in (1, 3))
        if last and dims[2] in (1, 3):
            return _Frame(dims[0], dims[1], dims[2], first=False)
        if layout in ("", "CHW") and dims[0] in (1, 3):
            return _Frame(dims[1], dims[2], dims[0], first=True)
    shape = ", ".join(str(dim) for dim in spec.shape)
    raise BadInputError(
        f"input {spec.name!r} of shape [{shape}] is not an image",
        hint="rows, columns and 1 or 3 channels; the contract's layout says in which order",
    )
