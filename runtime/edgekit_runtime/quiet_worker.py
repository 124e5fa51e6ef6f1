"""``python -m edgekit_runtime.quiet_worker FD``: a worker that gives way while it loads."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from edgekit_runtime import quiet

    quiet.begin()  # before anything slow is imported
    from edgekit_runtime import worker

    worker.main(sys.argv[1])
