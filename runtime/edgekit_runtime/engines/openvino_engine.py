"""OpenVINO on the CPU: ONNX files, and IR in two files.

OpenVINO chooses the precision of its arithmetic by itself: bf16 where the processor has it, fp16 on
ARM. A golden set recorded in f32 is not reproduced that way, and a quality gate passed in f32 says
nothing about it. So f32 is asked for, and *read back*: what would run otherwise does not load.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.contracts.errors import BadInputError
from edgekit.contracts.evaluation import NodeTime
from edgekit_runtime.engines import times
from edgekit_runtime.engines.text import first_line
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.ports import Array, LoadedModel

_DEVICE = "CPU"
_PRECISION = "f32"


class OpenVinoEngine:
    """`edgekit_runtime.ports.Engine` over ``openvino``.

    ``cache`` is a folder for compiled models (OpenVINO keys them by model, version and processor);
    None compiles at each load.
    """

    name = "openvino"

    def __init__(self, cache: Path | None = None, *, profiled: bool = False) -> None:
        """Models of a ``profiled`` one tell the time of their operators."""
        import openvino as ov  # noqa: PLC0415 - optional: this module must import without it

        # "2026.4.1-22982-e213a147257-releases/2026/4": what stands before the build is PEP 440.
        self.version: str = ov.get_version().partition("-")[0]
        self._cache = cache
        self._profiled = profiled
        self._core = ov.Core()

    def load(self, path: Path, *, weights: Path | None = None, threads: int = 1) -> LoadedModel:
        """Load ONNX, or IR whose weights are the file ``weights``.

        Raises:
            BadInputError: not a model this engine can run.
            UnsuitableError: it would not compute in f32.
        """
        try:
            read = self._core.read_model(str(path), str(weights) if weights else "")
            compiled = self._core.compile_model(read, _DEVICE, self._options(threads))
            facts = {
                "inference_precision": compiled.get_property(
                    "INFERENCE_PRECISION_HINT"
                ).to_string(),
                "from_cache": str(bool(compiled.get_property("LOADED_FROM_CACHE"))).lower(),
            }
        except Exception as exc:  # openvino raises RuntimeError for everything
            raise BadInputError(
                f"{path}: openvino {self.version} cannot load this model: {first_line(exc)}",
                hint="build the bundle again with `edgekit build`",
            ) from exc
        if facts["inference_precision"] != _PRECISION:
            raise UnsuitableError(
                f"{path}: openvino would compute in {facts['inference_precision']}, and the model "
                f"was measured in {_PRECISION}"
            )
        return (_ProfiledModel if self._profiled else _OpenVinoModel)(compiled, facts)

    def _options(self, threads: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISION,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            # Pinned threads of two models share one core while the next one idles.
            "ENABLE_CPU_PINNING": False,
        }
        if self._profiled:
            options["PERF_COUNT"] = True
        if self._cache is not None:
            options["CACHE_DIR"] = str(self._cache)
        return options


class _OpenVinoModel:
    def __init__(self, compiled: Any, facts: Mapping[str, str]) -> None:
        self.facts = facts
        self.input_names = tuple(entry.any_name for entry in compiled.inputs)
        self.output_names = tuple(entry.any_name for entry in compiled.outputs)
        self._compiled = compiled
        self._own = threading.local()  # a request runs one inference at a time

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            EngineError: the engine refused or failed.
        """
        request = self._request()
        try:
            # Outputs are copied: what the request holds is overwritten by its next inference.
            found = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        except Exception as exc:  # see load: no class of its own
            raise EngineError(f"openvino: {first_line(exc)}") from exc
        return dict(zip(self.output_names, found.values(), strict=True))

    def _request(self) -> Any:
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        return request


class _ProfiledModel(_OpenVinoModel):
    """Runs one inference at a time and keeps what the engine counted in each."""

    def __init__(self, compiled: Any, facts: Mapping[str, str]) -> None:
        super().__init__(compiled, facts)
        self._runs: list[dict[tuple[str, str], float]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `_OpenVinoModel.run`."""
        outputs = super().run(inputs)
        self._runs.append(
            {
                (entry.node_name, entry.node_type): entry.real_time.total_seconds() * 1e6
                for entry in self._request().get_profiling_info()
            }
        )
        return outputs

    def node_times(self, skip: int) -> tuple[NodeTime, ...]:
        """See `edgekit_runtime.ports.Profiled`."""
        runs = self._runs[skip:]
        if not runs:
            raise EngineError(f"openvino: no run beyond the first {skip}")
        return times.means(runs)
