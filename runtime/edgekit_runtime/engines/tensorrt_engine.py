"""TensorRT on a Jetson: the engine is built on the device, once, and kept.

Engines bind to the TensorRT version, the GPU and the system they were built on, so none is shipped:
the bundle holds ONNX with Q/DQ, and the first load builds. The cache key is the model's digest,
the TensorRT version, the GPU's compute capability and the JetPack release. What a build learnt
about timing is kept beside, for the next model.

Whether an engine may serve is not decided here: it has to reproduce the bundle's golden set
(`edgekit_runtime.engines.ladder`).

Unverified: nothing of this has run on a Jetson. The types are those of TensorRT 10.13, and parser
and builder of TensorRT for RTX take the same calls in the tests.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit_runtime.engines import tensorrt_build
from edgekit_runtime.engines.cudart import Cuda
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.ports import Array, LoadedModel

if TYPE_CHECKING:
    import tensorrt as trt

_RELEASE = Path("/etc/nv_tegra_release")


def cache_key(model: bytes, version: str, capability: int, release: str) -> str:
    """Name of an engine: everything that it binds to."""
    parts = (hashlib.sha256(model).hexdigest(), version, str(capability), release.strip())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class TensorRtEngine:
    """`edgekit_runtime.ports.Engine` over ``tensorrt``; ``cache`` keeps engines, None builds anew.

    Raises:
        ImportError: TensorRT is not installed.
        UnsuitableError: its version is not supported, or there is no CUDA.
        EngineError: there is no usable GPU.
    """

    name = "tensorrt"

    def __init__(self, cache: Path | None = None) -> None:
        import tensorrt as trt  # noqa: PLC0415 - comes with JetPack, not with this package

        if not hasattr(trt, "Builder"):
            raise ImportError("tensorrt is installed as types only")
        self.version: str = trt.__version__
        self._trt = trt
        self._adapter = tensorrt_build.adapter_for(self.version)
        self._cuda = Cuda()
        self._capability = self._cuda.compute_capability()
        self._cache = cache

    def load(self, path: Path, *, weights: Path | None = None, threads: int = 1) -> LoadedModel:
        """Load the kept engine of the ONNX file ``path``, or build it.

        Raises:
            BadInputError: TensorRT refuses the model.
            ResourceError: not enough memory to build, or disk to keep.
        """
        del threads  # the host's part is one call
        if weights is not None:
            raise BadInputError(f"{path}: tensorrt takes models of one file")
        kept = self._kept(path)
        plan = _read(kept) if kept else b""
        found = "kept" if plan else "built"
        if not plan:
            plan = self._build(path, kept)
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None and found == "kept":
            # Damaged, or of another system in spite of its key: built again it is right.
            plan, found = self._build(path, kept), "built"
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UnsuitableError(f"{path}: TensorRT cannot load the engine it built")
        facts = {"tensorrt": self.version, "sm": str(self._capability), "engine": found}
        return _TensorRtModel(self._trt, engine, self._cuda, facts)

    def forget(self, path: Path) -> None:
        """Drop the kept engine of ``path``: it did not compute what it should."""
        kept = self._kept(path)
        if kept is not None:
            kept.unlink(missing_ok=True)

    def _kept(self, path: Path) -> Path | None:
        if self._cache is None:
            return None
        release = _read(_RELEASE).decode(errors="replace")
        with translate_os_errors("read", path):
            model = path.read_bytes()
        return self._cache / f"{cache_key(model, self.version, self._capability, release)}.plan"

    def _build(self, path: Path, kept: Path | None) -> bytes:
        timing = self._cache / f"timing-{self.version}-{self._capability}" if self._cache else None
        known = _read(timing) if timing else b""
        built = tensorrt_build.build(self._trt, self._adapter, path, timing=known)
        if kept is not None and timing is not None:
            _write(kept, built.plan)
            _write(timing, built.timing)
        return built.plan


class _TensorRtModel:
    def __init__(
        self, module: Any, engine: trt.ICudaEngine, cuda: Cuda, facts: Mapping[str, str]
    ) -> None:
        self.facts = facts
        self._engine, self._cuda = engine, cuda
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = module.TensorIOMode.INPUT
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.input_names = tuple(name for name in names if modes[name] == given)
        self.output_names = tuple(name for name in names if modes[name] != given)
        self._types = {
            name: np.dtype(module.nptype(engine.get_tensor_dtype(name))) for name in names
        }
        self._context: trt.IExecutionContext = engine.create_execution_context()
        self._stream = cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._lock = threading.Lock()  # a context runs one inference at a time

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises:
            EngineError: the engine refused or failed.
        """
        with self._lock:
            for name in self.input_names:
                array = np.ascontiguousarray(inputs[name], dtype=self._types[name])
                if not self._context.set_input_shape(name, array.shape):
                    raise EngineError(f"tensorrt: {name}: shape {array.shape} is out of its range")
                self._cuda.to_device(self._buffer(name, array.nbytes), array, self._stream)
                self._cuda.wait(self._stream)  # the array may be gone after this turn
            outputs = {}
            for name in self.output_names:
                shape = tensorrt_build.sizes(self._context.get_tensor_shape(name))
                if any(size < 0 for size in shape):
                    raise EngineError(f"tensorrt: {name}: its shape depends on values")
                outputs[name] = np.empty(shape, self._types[name])
                self._buffer(name, outputs[name].nbytes)
            for name, (address, _) in self._buffers.items():
                self._context.set_tensor_address(name, address)
            if not self._context.execute_async_v3(self._stream):
                raise EngineError("tensorrt: the inference could not be started")
            for name, array in outputs.items():
                self._cuda.to_host(array, self._buffers[name][0], self._stream)
            self._cuda.wait(self._stream)
            return outputs

    def _buffer(self, name: str, size: int) -> int:
        """Address of at least ``size`` bytes for ``name``; grows, and stays for the next run."""
        address, held = self._buffers.get(name, (0, -1))
        if held < size:
            if held >= 0:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address


def _read(path: Path) -> bytes:
    """Content; nothing where there is no file."""
    with translate_os_errors("read", path):
        return path.read_bytes() if path.exists() else b""


def _write(path: Path, content: bytes) -> None:
    """Atomically: an engine that is half there would be loaded."""
    partial = path.with_name(f".{path.name}.partial")
    with translate_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
