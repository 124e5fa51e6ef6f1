"""Inference engines behind `edgekit_runtime.ports.Engine`, by the name bundles call them."""

from __future__ import annotations

from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.ports import Engine

ENGINES = ("onnxruntime",)


def create(name: str) -> Engine:
    """The engine called ``name``; its library is imported only now.

    Raises:
        UnsuitableError: this agent has no such engine.
    """
    if name == "onnxruntime":
        from edgekit_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415 - heavy

        return OnnxRuntimeEngine()
    raise UnsuitableError(
        f"engine {name!r} is not known to this agent",
        hint="build the bundle for one of: " + ", ".join(ENGINES),
    )
