"""The few CUDA runtime calls an engine needs, through the library that comes with JetPack.

A binding from an index would add a hundred megabytes to a device that has the library already.
"""

from __future__ import annotations

import contextlib
import ctypes
from ctypes.util import find_library
from typing import Any

from edgekit_runtime.errors import EngineError, UnsuitableError

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor and -Minor
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


class Cuda:
    """Device 0."""

    def __init__(self) -> None:
        self._library = _load()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def compute_capability(self) -> int:
        """87 for 8.7.

        Raises:
            EngineError: there is no usable device.
        """
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            parts.append(value.value)
        return parts[0] * 10 + parts[1]

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        return handle.value or 0

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value or 0

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def to_device(self, target: int, array: Any, stream: int) -> None:
        """Copy a contiguous array to ``target``, in order with ``stream``."""
        self._copy(target, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def to_host(self, array: Any, source: int, stream: int) -> None:
        """Fill a contiguous array from ``source``, in order with ``stream``."""
        self._copy(array.ctypes.data, source, array.nbytes, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Until everything in ``stream`` has happened."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        addresses = ctypes.c_void_p(target), ctypes.c_void_p(source)
        length = ctypes.c_size_t(size)
        self._call("cudaMemcpyAsync", *addresses, length, kind, ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            said = self._library.cudaGetErrorString(status)
            raise EngineError(f"CUDA: {name}: {(said or b'?').decode(errors='replace')}")


def _load() -> Any:
    found = find_library("cudart")
    for name in (*_NAMES, *([found] if found else [])):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise UnsuitableError(
        "the CUDA runtime (libcudart) is not on this device",
        hint="it comes with JetPack: apt-get install nvidia-jetpack",
    )
