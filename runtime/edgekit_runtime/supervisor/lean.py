"""Parts of the standard library without what comes with them.

`json`, `signal` and `socket` import `re`, `enum` and `selectors`, `ctypes` imports `struct`: more
than half of the 20 ms that a start would take, in which a device answers nothing. What those
modules wrap takes next to nothing. It is CPython's own affair, so wherever a Python has it no
longer, or not like this, the public module is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
    from typing import Any
else:
    try:
        import _signal as signal
        import _socket as socket
    except ImportError:
        import signal
        import socket

__all__ = ["end_with_parent", "parsed", "signal", "socket"]

_PDEATHSIG = 1  # prctl(2): PR_SET_PDEATHSIG


class _Plain:
    """What `json.JSONDecoder` tells its scanner."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def parsed(raw: bytes) -> Any:
    """The value of a JSON document. Raises `ValueError`."""
    text = raw.decode().strip()
    try:
        from _json import make_scanner  # noqa: PLC0415

        value, end = make_scanner(_Plain)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except Exception:  # noqa: BLE001, S110 - malformed, or another Python: `json` says which
        pass
    import json  # noqa: PLC0415

    return json.loads(text)


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however that ends."""
    try:
        import _ctypes  # noqa: PLC0415

        here = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # what is loaded already
        prctl = _ctypes.dlsym(here, "prctl")
        _ctypes.call_function(prctl, (_PDEATHSIG, int(signal.SIGKILL)))
    except (ImportError, AttributeError, TypeError):
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
