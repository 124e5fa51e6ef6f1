"""Inference engines behind `edgekit_runtime.ports.Engine`, by the name bundles call them.

Compiled models are kept in the folder that ``$EDGEKIT_ENGINE_CACHE`` names, where an engine has
such a thing; without it they are compiled at each load.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit_runtime.engines.ladder import Rung
from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.ports import Engine, LoadedModel

CACHE_ENV = "EDGEKIT_ENGINE_CACHE"
WORKSPACE_BYTES_MAX = 512 << 20  # scratch memory of a TensorRT build: a board's GPU has no own
# Distributions that bring an engine's library, in the order they are looked for.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
_HINTS = {
    "onnxruntime": "install it, e.g. pip install 'edgekit-ml[runtime]'",
    "openvino": "install it, e.g. pip install 'edgekit-ml[openvino]'",
    "tensorrt": "it comes with JetPack: apt-get install nvidia-jetpack",
}
_OPTIONS = {("onnxruntime", "graph_optimization"): ("extended", "all")}
ENGINES = tuple(_DISTRIBUTIONS)


def create(
    name: str, options: Mapping[str, str] | None = None, *, profile: Path | None = None
) -> Engine:
    """The engine called ``name``; its library is imported only now.

    Args:
        name: as bundles call it.
        options: how it is to run models, beside its defaults (`BundleManifest.engine_options`).
        profile: folder for what it writes about the time of operators; its models are `Profiled`.

    Raises:
        UnsuitableError: this agent has no such engine, its library does not load, an option is
            not known to it, or it does not tell the time of operators.
    """
    if name not in _DISTRIBUTIONS:
        raise UnsuitableError(
            f"engine {name!r} is not known to this agent",
            hint="build the bundle for one of: " + ", ".join(ENGINES),
        )
    for key, value in (options or {}).items():
        if value not in _OPTIONS.get((name, key), ()):
            raise UnsuitableError(
                f"engine {name}: option {key}={value[:40]!r} is not known to this agent",
                hint="update the agent's runtime, or build the bundle with this edgekit",
            )
    try:
        return _create(name, options or {}, profile)
    except ImportError as exc:
        raise UnsuitableError(
            f"engine {name}: its library cannot be loaded: {exc}",
            hint=_HINTS[name],
        ) from exc


def _create(name: str, options: Mapping[str, str], profile: Path | None) -> Engine:
    # Imported here, because each is heavy and most devices have one of them.
    if name == "openvino":
        from edgekit_runtime.engines.openvino_engine import OpenVinoEngine  # noqa: PLC0415

        return OpenVinoEngine(_cache(name), profiled=profile is not None)
    if name == "tensorrt":
        if profile is not None:
            raise UnsuitableError(f"engine {name} is not asked for the time of operators")
        from edgekit_runtime.engines.tensorrt_engine import TensorRtEngine  # noqa: PLC0415

        return TensorRtEngine(_cache(name))
    from edgekit_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415

    level = options.get("graph_optimization", "extended")
    return OnnxRuntimeEngine(level=level, profile=profile)


def _cache(name: str) -> Path | None:
    root = os.environ.get(CACHE_ENV)
    return Path(root) / name if root else None


def accelerated(name: str, model: Path, *, threads: int) -> list[Rung]:
    """Ways to run ``model`` faster than the engine it was measured with, best first.

    ``name`` is what the bundle was made for; of an accelerator that is not known there is none.
    """
    if name != "tensorrt":
        return []

    def by_tensorrt() -> LoadedModel:
        return create("tensorrt").load(model, threads=threads)

    def forget() -> None:
        from edgekit_runtime.engines.tensorrt_engine import TensorRtEngine  # noqa: PLC0415

        TensorRtEngine(_cache("tensorrt")).forget(model)

    def by_provider(name: str) -> Callable[[], LoadedModel]:
        def load() -> LoadedModel:
            from edgekit_runtime.engines import onnxruntime_engine as engine  # noqa: PLC0415

            cache = _cache("onnxruntime")
            return engine.OnnxRuntimeEngine(name, cache=cache).load(model, threads=threads)

        return load

    return [
        Rung("tensorrt", by_tensorrt, forget),
        Rung("onnxruntime-tensorrt", by_provider("TensorrtExecutionProvider")),
        Rung("onnxruntime-cuda", by_provider("CUDAExecutionProvider")),
    ]


def is_installed(name: str) -> bool:
    """Whether the library of the engine called ``name`` is here; it is not loaded."""
    from importlib import util  # noqa: PLC0415 - a worker does without

    return util.find_spec(name) is not None


def versions() -> dict[str, str]:
    """Installed engines and their versions; no library is loaded."""
    from importlib import metadata  # noqa: PLC0415 - slow to import, a worker does without

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
