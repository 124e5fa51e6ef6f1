"""One error tree for every edgekit package, with the exit code each branch ends in.

::

    EdgekitError
    ├── UsageError         2   the command line or configuration is wrong
    ├── BadInputError      3   data the user gave us is wrong (terminal: never retried)
    ├── GateFailedError    4   a declared gate failed or could not be measured
    ├── UnavailableError   5   broker, manager, engine not reachable (transient: retry)
    ├── ResourceError      6   disk, memory or a limit exhausted
    └── BugError          70   edgekit's own fault (sysexits EX_SOFTWARE)

Retry policy reads the type: only `UnavailableError` is transient. Adapters translate foreign
exceptions at their boundary with ``raise … from exc``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS
from pathlib import Path


class EdgekitError(Exception):
    """Base of all expected failures: one line that names the input, plus a way to mend it."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgekitError):
    """The command line, environment or configuration file is wrong."""

    exit_code = 2


class BadInputError(EdgekitError):
    """Data given to us is wrong; trying again with the same data cannot help."""

    exit_code = 3


class GateFailedError(EdgekitError):
    """A declared gate failed, or could not be measured (which counts as failed)."""

    exit_code = 4


class UnavailableError(EdgekitError):
    """Something outside this process is not there right now; trying again may help."""

    exit_code = 5

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ResourceError(EdgekitError):
    """Disk, memory or a configured limit is exhausted."""

    exit_code = 6


class BugError(EdgekitError):
    """An invariant of edgekit itself does not hold."""

    exit_code = 70


_RESOURCE_ERRNOS = frozenset({ENOSPC, EDQUOT, EFBIG, ENOMEM, EMFILE, ENFILE, EROFS})


@contextmanager
def translate_os_errors(what: str, path: Path | str) -> Iterator[None]:
    """Turn `OSError` raised while doing ``what`` to ``path`` into the tree above.

    Raises:
        ResourceError: disk full, quota, read-only or out of handles.
        BadInputError: missing path, no permission, wrong kind of file.
    """
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in _RESOURCE_ERRNOS:
            raise ResourceError(
                f"cannot {what} {path}: {reason}",
                hint="free space (or choose another folder) and run the same command again",
            ) from exc
        raise BadInputError(
            f"cannot {what} {path}: {reason}", hint="check the path and its permissions"
        ) from exc
