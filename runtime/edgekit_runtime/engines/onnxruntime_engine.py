"""ONNX Runtime on the CPU, or on a GPU by one of its providers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.evaluation import NodeTime
from edgekit_runtime.engines import WORKSPACE_BYTES_MAX, times
from edgekit_runtime.engines.text import first_line
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.ports import Array, LoadedModel

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_LEVELS = {
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_RUN, _KERNEL = "model_run", "_kernel_time"  # events of its profiler
_LOG_FATAL = 4  # errors reach the caller as exceptions; the engine's own log would say them twice


class OnnxRuntimeEngine:
    """`edgekit_runtime.ports.Engine` over ``onnxruntime``."""

    name = "onnxruntime"

    def __init__(
        self,
        provider: str = _CPU,
        *,
        level: str = "extended",
        cache: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        """On ``provider``; ``level`` of graph optimization: ``extended`` or ``all``.

        The TensorRT provider keeps its engines in ``cache``; without it, it builds them each time.
        With a folder ``profile`` models tell the time of their operators, and write it there.

        Level "all" adds layout changes that depend on the machine, so that outputs are a little
        off those of another: bundles that were measured with it ask for it.
        """
        if provider not in ort.get_available_providers():
            raise UnsuitableError(f"onnxruntime {ort.__version__} has no {provider}")
        self._provider = provider
        self._level = _LEVELS[level]
        self._cache = cache
        self._profile = profile
        self.version: str = ort.__version__
        ort.disable_telemetry_events()
        ort.set_default_logger_severity(_LOG_FATAL)

    def load(self, path: Path, *, weights: Path | None = None, threads: int = 1) -> LoadedModel:
        """Load the model at ``path``; an ONNX file holds its weights.

        Raises:
            BadInputError: not a model this engine can run.
            UnsuitableError: its provider does not start.
        """
        if weights is not None:
            raise BadInputError(f"{path}: onnxruntime takes models of one file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = self._level
        options.log_severity_level = _LOG_FATAL
        # Spinning threads burn a small device's only cores between two inferences.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile / "onnxruntime")
        providers = self._providers()
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as exc:  # onnxruntime raises a dozen unrelated classes, even RuntimeError
            raise BadInputError(
                f"{path}: onnxruntime {self.version} cannot load this model: {first_line(exc)}",
                hint="build the bundle again with `edgekit build`",
            ) from exc
        if session.get_providers()[0] != self._provider:
            # It falls back to the CPU by itself, silently: who asks for a GPU wants to know.
            raise UnsuitableError(f"onnxruntime: {self._provider} does not start on this device")
        return _OnnxModel(session)

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """Ours first; what it does not take of a graph goes to the next."""
        if self._provider == _CPU:
            return [_CPU]
        if self._provider != _TENSORRT:
            return [self._provider, _CPU]
        options = {"trt_max_workspace_size": str(WORKSPACE_BYTES_MAX)}
        if self._cache is not None:
            with translate_os_errors("write", self._cache):
                self._cache.mkdir(parents=True, exist_ok=True)
            path = str(self._cache)
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": path}
            options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": path}
        return [(_TENSORRT, options), _CUDA, _CPU]


class _Args(msgspec.Struct):
    op_name: str = ""


class _Event(msgspec.Struct):
    """Of a profile, in the trace format of Chromium: microseconds, whole ones."""

    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0
    args: _Args = msgspec.field(default_factory=_Args)


class _OnnxModel:
    def __init__(self, session: Any) -> None:
        self.session = session
        self.facts: Mapping[str, str] = {"providers": ",".join(session.get_providers())}
        self.input_names = tuple(entry.name for entry in session.get_inputs())
        self.output_names = tuple(entry.name for entry in session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            EngineError: the engine refused or failed.
        """
        try:
            # Models of microseconds notice a copy; the engine takes nothing but a real dictionary.
            feed = inputs if type(inputs) is dict else dict(inputs)
            values = self.session.run(self.output_names, feed)
        except Exception as exc:  # see load: no common base class
            raise EngineError(f"onnxruntime: {first_line(exc)}") from exc
        return dict(zip(self.output_names, values, strict=True))

    def node_times(self, skip: int) -> tuple[NodeTime, ...]:
        """See `edgekit_runtime.ports.Profiled`."""
        path = Path(self.session.end_profiling())
        try:
            events = msgspec.json.decode(path.read_bytes(), type=list[_Event])
        except (OSError, ValueError) as exc:  # msgspec's errors are ValueErrors
            raise EngineError(f"onnxruntime: no profile of the model: {first_line(exc)}") from exc
        begins = sorted(event.ts for event in events if event.name == _RUN)
        if len(begins) <= skip:
            raise EngineError(f"onnxruntime: its profile holds no run beyond the first {skip}")
        runs: list[dict[tuple[str, str], float]] = [{} for _ in begins]
        for event in events:
            if event.cat == "Node" and event.name.endswith(_KERNEL):
                run = runs[bisect_right(begins, event.ts) - 1]
                key = (event.name.removesuffix(_KERNEL), event.args.op_name)
                run[key] = run.get(key, 0.0) + event.dur  # what loops repeat counts each time
        return times.means(runs[skip:])
