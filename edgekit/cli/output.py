"""Output rules of every command: results on stdout, everything else on stderr, stable exit codes.

Exit codes: 0 ok, 2 usage, 3 bad input, 4 gate failed, 5 unavailable, 6 resource, 70 bug, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from edgekit.contracts import codec
from edgekit.contracts.errors import EdgekitError, ResourceError, UsageError

# Typer carries its own copy of click from 0.29 on and used the installed one before: the base class
# of all usage errors is therefore found through a class that Typer exports.
_ClickError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_HINT_BUG = "this is a bug in edgekit; run again with EDGEKIT_TRACEBACK=1 and report the output"


def emit_json(value: Any) -> None:
    """Write ``value`` to stdout as indented JSON."""
    sys.stdout.write(codec.encode_pretty(value).decode())


def emit(text: str) -> None:
    """Write a line of result to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write a line of progress or explanation to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned plain-text table that survives pipes and narrow terminals."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )
    return "\n".join(lines)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import the packages of ``extra`` in this block; says what to install when one is missing.

    Raises:
        UsageError: a package of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.partition(".")[0].startswith("edgekit"):
            raise
        raise UsageError(
            f"this command needs {exc.name}, which is not installed",
            hint=f"pip install 'edgekit-ml[{extra}]'",
        ) from exc


def fail(error: EdgekitError) -> NoReturn:
    """Print ``error`` as ``error:`` and ``hint:`` lines and leave with its exit code."""
    note(f"error: {error.message}")
    if error.hint:
        note(f"hint: {error.hint}")
    raise SystemExit(error.exit_code)


def run(app: typer.Typer) -> None:
    """Run ``app``; expected failures become one line, anything else is reported as a bug."""
    try:
        # The name people type, also when started as `python -m edgekit`.
        app(standalone_mode=False, prog_name=app.info.name)
    except EdgekitError as exc:
        fail(exc)
    except typer.Exit as exc:
        raise SystemExit(exc.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our stdout went away (`edgekit … | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except MemoryError:
        fail(ResourceError("out of memory", hint="use a smaller data set or a larger machine"))
    except Exception as exc:  # noqa: BLE001 - the last resort, reported as a bug
        if isinstance(exc, _ClickError):
            if not _usage_message(exc):  # no command at all: the help was printed instead
                raise SystemExit(UsageError.exit_code) from None
            fail(UsageError(_usage_message(exc), hint=_usage_hint(exc)))
        if os.environ.get("EDGEKIT_TRACEBACK"):
            traceback.print_exc()
        fail(EdgekitError(f"unexpected {type(exc).__name__}: {exc}", hint=_HINT_BUG))


def _usage_message(exc: Exception) -> str:
    message: str = getattr(exc, "format_message", exc.__str__)()
    return " ".join(message.split())


def _usage_hint(exc: Exception) -> str:
    context = getattr(exc, "ctx", None)
    command = context.command_path if context is not None else "edgekit"
    return f"see '{command} --help'"
