"""What a record in a counter region says. Apart from `region`, which needs numpy, for the start."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a record says. Zero is what an unwritten page holds."""

    PREDICTION = 1
    ERROR = 2  # the engine failed; counted as an inference
    REJECTED = 3  # the guard refused the input; not an inference
    FEEDBACK = 4  # the true label of an earlier prediction
    SHADOW = 8  # a candidate was given what had been answered; never an inference
    SHADOW_ERROR = 9  # likewise, and it refused or failed


INFERENCE_KINDS = (Kind.PREDICTION, Kind.ERROR)
SHADOW_KINDS = (Kind.SHADOW, Kind.SHADOW_ERROR)
