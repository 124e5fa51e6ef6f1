"""On-device runtime: offline inference, deployment machine, store-and-forward telemetry.

For applications: `Session` and `AsyncSession` run a deployed model inside the application. They are
imported when they are first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would cost the supervisor, which imports us, a third of its memory
if TYPE_CHECKING:
    from edgekit_runtime.embedded import Session
    from edgekit_runtime.embedded_async import AsyncSession
    from edgekit_runtime.errors import DeadlineError, EngineError, GuardError, NotServingError
    from edgekit_runtime.guard import Flags
    from edgekit_runtime.session import Result

__all__ = [
    "AsyncSession",
    "DeadlineError",
    "EngineError",
    "Flags",
    "GuardError",
    "NotServingError",
    "Result",
    "Session",
]

_WHERE = {
    "AsyncSession": "embedded_async",
    "DeadlineError": "errors",
    "EngineError": "errors",
    "Flags": "guard",
    "GuardError": "errors",
    "NotServingError": "errors",
    "Result": "session",
    "Session": "embedded",
}


def __getattr__(name: str) -> object:
    """The public name ``name``. Raises `AttributeError`."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - not needed by most who import us

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
