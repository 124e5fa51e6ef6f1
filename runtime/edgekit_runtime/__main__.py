"""Entry point of ``edgekit-agent`` and ``python -m edgekit_runtime``."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line."""
    # numpy's BLAS starts a thread for each core, which spins: agent and worker would keep each
    # other from starting. Neither multiplies matrices outside the engine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.argv[1:3] == ["run", "--config"] and len(sys.argv) == 4:
        gc.disable()  # until all is imported: next to nothing of it is garbage
        _import_msgspec()
        # As service files have it; spared is what parses all the other ways of saying it.
        from pathlib import Path  # noqa: PLC0415

        from edgekit_runtime import console, running  # noqa: PLC0415

        raise SystemExit(console.guarded(lambda: running.run(Path(sys.argv[3]))))
    from edgekit_runtime import cli  # noqa: PLC0415

    cli.main()


def _import_msgspec() -> None:
    """Without `typing_extensions`, 5 ms in which it finds what Python's own `typing` has, too."""
    sys.modules["typing_extensions"] = None  # type: ignore[assignment] # "it is not there"
    try:
        import msgspec  # noqa: F401, PLC0415
    finally:
        del sys.modules["typing_extensions"]


if __name__ == "__main__":
    main()
