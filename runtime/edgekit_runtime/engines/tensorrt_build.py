"""From ONNX with Q/DQ to a TensorRT engine, by the ways of each TensorRT version.

What differs is how precisions are said (NVIDIA's release and migration notes):

========== =======================================================================
8.5 - 8.x  networks need EXPLICIT_BATCH; Q/DQ is obeyed only with the INT8 flag, halves need FP16
10.0-10.11 batch is always explicit; the INT8 and FP16 flags as before
10.12-10.x weak typing is deprecated: STRONGLY_TYPED, and no precision flags
11         strong typing is all there is; the flags are gone
========== =======================================================================

The module that speaks TensorRT is a parameter: ``tensorrt`` on a device, ``tensorrt_rtx`` where
there is no GPU and the parser and builder alone are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.contracts.errors import BadInputError, ResourceError
from edgekit_runtime.engines import WORKSPACE_BYTES_MAX
from edgekit_runtime.errors import UnsuitableError

if TYPE_CHECKING:
    import tensorrt as trt

BATCH_MAX = 64  # what `edgekit_runtime.predictor` feeds at once
_OLDEST = (8, 5)  # before it engines are run by bindings, and only JetPack 4 has that


class Adapter(msgspec.Struct, frozen=True):
    """How one range of versions is asked for the precisions that the graph states."""

    name: str
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]


WEAK_8 = Adapter("8.x", ("EXPLICIT_BATCH",), ("INT8", "FP16"))
WEAK_10 = Adapter("10.0-10.11", (), ("INT8", "FP16"))
STRONG_10 = Adapter("10.12+", ("STRONGLY_TYPED",), ())
STRONG_11 = Adapter("11", (), ())


def adapter_for(version: str) -> Adapter:
    """The adapter of a TensorRT version, e.g. ``10.3.0``.

    Raises:
        UnsuitableError: no version, or one that is not known to work.
    """
    numbers = version.split(".")
    try:
        major, minor = int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError) as exc:
        raise UnsuitableError(f"TensorRT version {version!r} is not a version") from exc
    if (major, minor) < _OLDEST or major == 9:
        raise UnsuitableError(
            f"TensorRT {version} is not supported", hint="8.5 to 8.x, 10 and 11 are"
        )
    if major == 8:
        return WEAK_8
    if major == 10:
        return WEAK_10 if minor < 12 else STRONG_10
    if major == 11:
        return STRONG_11
    raise UnsuitableError(f"TensorRT {version} is newer than this agent", hint="update the agent")


class Built(msgspec.Struct, frozen=True):
    """A serialized engine, and what the builder learnt about timing."""

    plan: bytes
    timing: bytes


def build(
    module: Any,
    adapter: Adapter,
    model: Path,
    *,
    timing: bytes = b"",
    configure: Callable[[trt.IBuilderConfig], None] | None = None,
) -> Built:
    """Build an engine of the ONNX file ``model``.

    Args:
        module: ``tensorrt`` or one that speaks like it.
        adapter: of the module's version.
        model: ONNX file.
        timing: a timing cache of an earlier build on this device; one that does not fit is ignored.
        configure: further settings, e.g. the compute capability where there is no GPU.

    Raises:
        BadInputError: the parser or the builder refuses the graph; says why.
        ResourceError: not enough memory to build.
    """
    logger = _Log(module)
    builder: trt.Builder = module.Builder(logger.native)
    flags = 0
    for name in adapter.network_flags:
        flags |= 1 << int(getattr(module.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser: trt.OnnxParser = module.OnnxParser(network, logger.native)
    if not parser.parse(model.read_bytes()):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BadInputError(
            f"{model}: TensorRT cannot parse this model: {' '.join(said.split())[:300]}",
            hint="build the bundle for a Jetson target",
        )
    config = builder.create_builder_config()
    for name in adapter.builder_flags:
        config.set_flag(getattr(module.BuilderFlag, name))
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES_MAX)
    _add_profile(module, builder, network, config, model)
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, ignore_mismatch=True)
    if configure is not None:
        configure(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(model, logger.errors)
    return Built(bytes(plan), bytes(config.get_timing_cache().serialize()))


def sizes(dims: trt.Dims) -> tuple[int, ...]:
    """A shape as Python knows it; -1 where a size is not fixed."""
    return tuple(int(dims[index]) for index in range(len(dims)))


def _add_profile(
    module: Any,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    model: Path,
) -> None:
    """Batches from 1 to `BATCH_MAX`; other dimensions must be fixed."""
    dynamic: dict[str, tuple[int, ...]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = sizes(tensor.shape)
        if any(size < 0 for size in shape[1:]):
            raise BadInputError(
                f"{model}: input {tensor.name!r}: shape {list(shape)} is dynamic besides its batch",
                hint="fix the sizes that the device uses before building",
            )
        if shape and shape[0] < 0:
            dynamic[tensor.name] = shape[1:]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name, rest in dynamic.items():
        one, most = module.Dims((1, *rest)), module.Dims((BATCH_MAX, *rest))
        profile.set_shape(name, one, one, most)
    config.add_optimization_profile(profile)


def _refused(model: Path, errors: list[str]) -> BadInputError | ResourceError:
    said = errors[-1] if errors else "no reason given"
    if any("out of memory" in each.lower() for each in errors):
        return ResourceError(
            f"{model}: not enough memory to build a TensorRT engine: {said}",
            hint="stop other programs while the engine is built",
        )
    return BadInputError(f"{model}: TensorRT cannot build this model: {said}")


class _Log:
    """Collects what TensorRT says went wrong; its own log would go to stderr."""

    def __init__(self, module: Any) -> None:
        self.errors: list[str] = []
        collected = self.errors
        grave = (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR)

        class Native(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in grave:
                    collected.append(" ".join(message.split())[:300])

        self.native = Native()
