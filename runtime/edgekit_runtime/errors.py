"""Failures only the device side knows, as branches of `edgekit.contracts.errors`.

::

    BadInputError
    ├── GuardError          an inference input breaks the contract (HTTP 400, counted as violation)
    └── UnsuitableError     a bundle that cannot run on this device
    UnavailableError
    ├── DeadlineError       there was no answer in the time that was left for it
    ├── DeltaAwaitedError   only whole files are to be had, and the policy says to wait
    ├── EngineError         the engine failed on a valid input (HTTP 500, counted as error)
    ├── RuntimeUnfitError   on trial, and what was proven before does not work: ends the agent
    ├── NotServingError     no model is loaded (HTTP 503)
    ├── WorkerEndedError    a worker ended while it loaded a bundle
    └── RetiredError        asked a bundle that was just replaced (never leaves the agent)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.contracts.errors import BadInputError, EdgekitError, UnavailableError
from edgekit_runtime.supervision import Ending

if TYPE_CHECKING:
    from edgekit_runtime.session import Result


class GuardError(BadInputError):
    """An inference input breaks the model's contract; ``tensor`` names it where it is known."""

    def __init__(self, message: str, *, hint: str | None = None, tensor: str = "") -> None:
        super().__init__(message, hint=hint)
        self.tensor = tensor


class UnsuitableError(BadInputError):
    """A bundle is intact and still cannot run here (target, engine or engine version)."""


class DeadlineError(UnavailableError):
    """There is no answer within the deadline.

    ``late`` is the answer that came too late, counted like any other; None when the model was not
    asked at all, and nothing was counted.
    """

    def __init__(self, message: str, late: Result | None = None) -> None:
        super().__init__(message, hint="allow more time, or send less at once")
        self.late = late


class DeltaAwaitedError(UnavailableError):
    """There is no usable delta yet, and whole files are not wanted."""


class EngineError(UnavailableError):
    """The inference engine failed although the input kept the contract."""


class RuntimeUnfitError(UnavailableError):
    """This runtime, on trial, cannot serve what the one before it served."""


class NotServingError(UnavailableError):
    """No model is loaded."""


class WorkerEndedError(UnavailableError):
    """A worker ended, or had to be ended, while it loaded a bundle; ``ending`` says how."""

    def __init__(self, message: str, ending: Ending) -> None:
        super().__init__(message)
        self.ending = ending


class RetiredError(UnavailableError):
    """This bundle takes no more requests: ask the one that serves now."""


def is_memory(exc: EdgekitError) -> bool:
    """Whether an allocation failed; engines tell it only in words (onnxruntime: bfc_arena.cc)."""
    text = exc.message.lower()
    return "bad_alloc" in text or "failed to allocate memory" in text
