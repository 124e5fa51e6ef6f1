"""Inference engines behind `edgekit_runtime.ports.Engine`, by the name bundles call them."""

from __future__ import annotations

import contextlib
from importlib import metadata

from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.ports import Engine

# Distributions that bring an engine's library, in the order they are looked for.
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
ENGINES = tuple(_DISTRIBUTIONS)


def create(name: str) -> Engine:
    """The engine called ``name``; its library is imported only now.

    Raises:
        UnsuitableError: this agent has no such engine, or its library does not load.
    """
    if name != "onnxruntime":
        raise UnsuitableError(
            f"engine {name!r} is not known to this agent",
            hint="build the bundle for one of: " + ", ".join(ENGINES),
        )
    try:
        from edgekit_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415 - heavy
    except ImportError as exc:
        raise UnsuitableError(
            f"engine {name}: its library cannot be loaded: {exc}",
            hint="install it, e.g. pip install 'edgekit-ml[runtime]'",
        ) from exc
    return OnnxRuntimeEngine()


def versions() -> dict[str, str]:
    """Installed engines and their versions; no library is loaded."""
    found: dict[str, str] = {}
    for name, candidates in _DISTRIBUTIONS.items():
        for distribution in candidates:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(distribution))
    return found


def preload() -> None:
    """Load the usual engine's library ahead of its first use; without it loading says so later."""
    with contextlib.suppress(UnsuitableError):
        create(ENGINES[0])
