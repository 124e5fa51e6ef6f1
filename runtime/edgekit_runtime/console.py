"""Output rules of the device's commands: results on stdout, the rest on stderr, stable exit codes.

The same rules as the builder's command line, which the device does not import.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from edgekit.contracts import codec
from edgekit.contracts.errors import BugError, EdgekitError, ResourceError, UsageError

# Typer carries its own copy of click from 0.29 on and used the installed one before; a device has
# that only by chance. The base class of usage errors is found through a class Typer exports.
_ClickError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

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
    raise SystemExit(_run(app))


def _run(app: typer.Typer) -> int:
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if isinstance(code, int):  # of a `typer.Exit`: click returns it instead of raising it
            return code
    except typer.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        # Point stdout elsewhere, or its flush at exit fails once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as exc:  # noqa: BLE001 - the last resort: every failure becomes one line
        if os.environ.get("EDGEKIT_TRACEBACK"):
            traceback.print_exc()
        return fail(_translate(exc))
    return 0


def _translate(exc: Exception) -> EdgekitError:
    if isinstance(exc, EdgekitError):
        return exc
    if isinstance(exc, _ClickError):
        return UsageError(_usage(exc), hint="see --help")
    if isinstance(exc, MemoryError):
        return ResourceError("out of memory", hint="use a smaller model or data set")
    return BugError(f"unexpected {type(exc).__name__}: {exc}", hint=_HINT_BUG)


def _usage(exc: Exception) -> str:
    message: str = getattr(exc, "format_message", exc.__str__)()
    return " ".join(message.split())
