"""Output rules of the device's commands: results on stdout, the rest on stderr, stable exit codes.

The same rules as the builder's command line, which the device does not import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit.contracts import codec
from edgekit.contracts.errors import BugError, EdgekitError, ResourceError, UsageError

if TYPE_CHECKING:
    import typer

_HINT_BUG = "this is a bug in edgekit; run again with EDGEKIT_TRACEBACK=1 and report the output"


def emit(text: str) -> None:
    """Write a line of result to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write a line about the work to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def emit_json(value: Any) -> None:
    """Write ``value`` to stdout as indented JSON."""
    sys.stdout.write(codec.encode_pretty(value).decode())


def fail(error: EdgekitError) -> int:
    """Print ``error`` as ``error:`` and ``hint:`` lines; returns its exit code."""
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    sys.stderr.flush()
    return error.exit_code


def run(app: typer.Typer) -> None:
    """Run ``app`` and leave with its exit code; a user's mistake never shows a traceback."""
    raise SystemExit(guarded(lambda: _typed(app)))


def guarded(work: Callable[[], int]) -> int:
    """The exit code of ``work``; whatever it raises becomes one line and a code."""
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        # Point stdout elsewhere, or its flush at exit fails once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as exc:  # noqa: BLE001 - the last resort: every failure becomes one line
        if os.environ.get("EDGEKIT_TRACEBACK"):
            import traceback  # noqa: PLC0415 - not needed otherwise

            traceback.print_exc()
        return fail(_translate(exc))
    return code


def _typed(app: typer.Typer) -> int:
    import typer  # noqa: PLC0415 - the agent that serves does without

    # Typer carries its own copy of click from 0.29 on and used the installed one before; a device
    # has that only by chance. The base class of usage errors is found through one Typer exports.
    bases = typer.BadParameter.__mro__
    click_error: type[Exception] = next(k for k in bases if k.__name__ == "ClickException")
    try:
        code = app(standalone_mode=False)
    except typer.Exit as exc:
        return exc.exit_code
    except typer.Abort as exc:
        raise KeyboardInterrupt from exc
    except click_error as exc:
        raise UsageError(_usage(exc), hint="see --help") from exc
    return code if isinstance(code, int) else 0  # click returns the code of a `typer.Exit`


def _translate(exc: Exception) -> EdgekitError:
    if isinstance(exc, EdgekitError):
        return exc
    if isinstance(exc, MemoryError):
        return ResourceError("out of memory", hint="use a smaller model or data set")
    return BugError(f"unexpected {type(exc).__name__}: {exc}", hint=_HINT_BUG)


def _usage(exc: Exception) -> str:
    message: str = getattr(exc, "format_message", exc.__str__)()
    return " ".join(message.split())
