"""``edgekit-agent run``: from the configuration to a device that serves.

The order is what makes the start short: the first worker is forked (`ahead`) before the agent
imports the rest of itself, so that both go on at once.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from edgekit_runtime import ahead
from edgekit_runtime import config as configuration
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.lock import StateLock
from edgekit_runtime.supervisor.rules import EXIT_SWITCH


def run(path: Path) -> int:
    """Serve inference and follow the desired state until SIGTERM; the exit code.

    Raises:
        EdgekitError: the configuration, the state folder or a socket cannot be used.
    """
    loaded = configuration.load(path, os.environ)
    hosting = ahead.host(loaded, PosixDisk())
    try:
        # While the worker loads.
        import logging  # noqa: PLC0415

        logging.basicConfig(
            stream=sys.stderr,
            level=logging.INFO,
            format=f"%(asctime)s %(levelname).1s {loaded.device.id} %(name)s: %(message)s",
        )
        from edgekit_runtime import server, wiring  # noqa: PLC0415
        from edgekit_runtime.ringlog import RingLog  # noqa: PLC0415

        wiring.detect_targets(loaded)  # a wrong configuration fails before anything is touched
        state = loaded.device.state_dir
        wiring.prepare_state(state)
        lock = StateLock(state)
    except BaseException:
        hosting.workers.close()
        raise
    try:
        if loaded.log.bytes_max:
            logging.getLogger().addHandler(RingLog(PosixDisk(), state, loaded.log.bytes_max))
        sockets = server.bind(loaded)
        built = wiring.build(loaded, hosting)
        gc.freeze()  # what is there by now stays
        gc.enable()
        server.serve(built, sockets, state)
    finally:
        loaded.socket_path.unlink(missing_ok=True)
        hosting.workers.close()
        lock.release()
    if built.agent.failure is not None:
        raise built.agent.failure
    return EXIT_SWITCH if built.agent.switching else 0
