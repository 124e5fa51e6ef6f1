"""Entry point of ``edgekit-agent`` and ``python -m edgekit_runtime``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; for ``run``, a worker loads its engine while the agent imports."""
    if sys.argv[1:2] == ["run"] and "--help" not in sys.argv:
        from edgekit_runtime import prestart  # noqa: PLC0415 - before anything slow

        prestart.start_ahead()
    from edgekit_runtime import cli  # noqa: PLC0415

    cli.main()


if __name__ == "__main__":
    main()
