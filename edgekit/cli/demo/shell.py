"""Says what happens and runs edgekit's own commands, as a user would type them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from edgekit.cli import output
from edgekit.contracts.errors import EdgekitError

ME = [sys.executable, "-m", "edgekit"]


class Shell:
    """One run's voice. ``folder`` holds every trace of the run and is left out of what is shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """A line of the story."""
        output.note(f"[{self.seconds:5.1f}s] {text}")

    def edgekit(self, *arguments: str) -> str:
        """Run ``edgekit ARGUMENTS``; returns its stdout.

        Raises:
            EdgekitError: it failed; carries its message and exit code.
        """
        shown = shlex.join(arguments).replace(f"{self.folder}/", "")
        self.say(f"$ edgekit {shown}")
        done = subprocess.run(
            [*ME, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"EDGEKIT_REGISTRY": str(self.folder / "registry")},
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            reason = (lines or [done.stderr.strip() or "no output"])[-1].removeprefix("error: ")
            problem = EdgekitError(f"edgekit {arguments[0]}: {reason}")
            problem.exit_code = done.returncode
            raise problem
        return done.stdout
