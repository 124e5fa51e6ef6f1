"""zstd, where there is one: the standard library's from Python 3.14 on, else its backport.

A device may do without: it then fetches whole files. A patch is the frames of
`edgekit.contracts.delta.spans` one after the other, each made with its part of the old file as
prefix. With a single frame that is exactly what ``zstd --patch-from=OLD`` writes and reads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from edgekit.contracts.delta import Span
from edgekit.contracts.errors import BadInputError, UsageError

CHUNK_BYTES = 1024 * 1024  # yielded at most at once
PREFIX_BYTES_MIN = 8  # zstd takes nothing shorter for a dictionary
WINDOW_LOG_MAX = 27  # twice the largest block: a frame that asks for more memory is refused
LEVEL = 9  # higher levels took 20 times as long for the same size, weights being what they are

ReadAt = Callable[[int, int], bytes]  # (offset, length) of the old file


def _library() -> ModuleType | None:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def available() -> bool:
    """Whether this machine can apply patches."""
    return _library() is not None


def _need() -> ModuleType:
    library = _library()
    if library is None:
        raise UsageError("zstd is not installed", hint="pip install 'edgekit-ml[delta]'")
    return library


def compress(new: bytes, prefix: bytes) -> bytes:
    """One frame of a patch.

    Raises:
        UsageError: there is no zstd here.
    """
    zstd = _need()
    kinds = zstd.CompressionParameter
    options = {
        kinds.compression_level: LEVEL,
        # Matches may lie anywhere in the prefix: the window must span both.
        kinds.window_log: min(30, max(10, (len(new) + len(prefix)).bit_length())),
        kinds.enable_long_distance_matching: 1,
        kinds.checksum_flag: 0,  # the result is checked by SHA-256
    }
    known = _prefix(zstd, prefix)
    return bytes(zstd.compress(new, options=options, zstd_dict=known))


def _prefix(zstd: ModuleType, data: bytes) -> Any:
    return zstd.ZstdDict(data, is_raw=True).as_prefix if len(data) >= PREFIX_BYTES_MIN else None


def apply(read_old: ReadAt, spans: Sequence[Span], patch: Iterable[bytes]) -> Iterator[bytes]:
    """What ``patch`` makes of the old file, in chunks; never more than ``spans`` announce.

    Raises:
        BadInputError: damaged, cut off, or it yields another number of bytes than announced.
        UsageError: there is no zstd here.
    """
    zstd = _need()
    source, left = iter(patch), b""
    for span in spans:
        known = _prefix(zstd, read_old(span.start, span.end - span.start))
        options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
        frame, made = zstd.ZstdDecompressor(zstd_dict=known, options=options), 0
        del known  # the decompressor has its own copy
        while not frame.eof:
            if frame.needs_input and not left:
                left = next(source, b"")
                if not left:
                    raise BadInputError("patch: ends before its file does")
            try:
                chunk = frame.decompress(left, max_length=CHUNK_BYTES)
            except zstd.ZstdError as exc:
                raise BadInputError(f"patch: {exc}") from exc
            left = b""
            made += len(chunk)
            if made > span.size:
                raise BadInputError(f"patch: yields more than the {span.size} bytes announced")
            if chunk:
                yield chunk
        if made != span.size:
            raise BadInputError(f"patch: yields {made} bytes of the {span.size} announced")
        left = frame.unused_data
    if left or next(source, b""):
        raise BadInputError("patch: goes on after its last frame")
