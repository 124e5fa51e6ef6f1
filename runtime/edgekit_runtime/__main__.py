"""Entry point of ``edgekit-agent`` and ``python -m edgekit_runtime``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; for ``run``, a worker loads its engine while the agent imports."""
    if sys.argv[1:2] == ["run"] and "--help" not in sys.argv:
        from edgekit_runtime import prestart  # noqa: PLC0415 - before anything slow

        prestart.start_ahead()
    if sys.argv[1:3] == ["run", "--config"] and len(sys.argv) == 4:
        # As service files have it; spared is what parses all the other ways of saying it.
        from pathlib import Path  # noqa: PLC0415

        from edgekit_runtime import console, running  # noqa: PLC0415

        raise SystemExit(console.guarded(lambda: running.run(Path(sys.argv[3]))))
    from edgekit_runtime import cli  # noqa: PLC0415

    cli.main()


if __name__ == "__main__":
    main()
