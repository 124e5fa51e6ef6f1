"""The first worker's process: forked when its agent has imported next to nothing of itself.

A device serves again as soon after a power cut as its cores allow, and a Python does one thing at a
time. So the process forks as soon as it knows what was active and has numpy, which both share; the
fork imports the engine and loads the model, while the agent imports the rest of itself. An engine
does not need the interpreter while it loads: the fork imports the rest of a worker then.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from edgekit_runtime import ends
from edgekit_runtime.ends import Ends

_STDIN, _STDERR = 0, 2


class Begun(NamedTuple):
    """The agent's side of it: the process, and descriptors."""

    pid: int
    channel: int
    said: int


def fork(main: Callable[[int], NoReturn]) -> Begun:
    """A fork of this process that does ``main`` with its socket, and nothing else.

    Only for a process that has no other thread: what those held would stay held in the fork.

    Raises:
        OSError: no process or socket can be made.
    """
    made = ends.opened()
    try:
        pid = os.fork()
    except OSError:
        made.keep_ours()
        made.keep_theirs()
        raise
    if not pid:
        _become(main, made)
    made.keep_ours()
    return Begun(pid, made.ours, made.said)


def _become(main: Callable[[int], NoReturn], made: Ends) -> NoReturn:
    try:
        made.keep_theirs()
        os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
        os.dup2(made.says, _STDERR)
        faulthandler.enable()  # what a model crashes with while it is loaded is said
        main(made.theirs)
    except BaseException:  # noqa: BLE001 - nothing may run on into the agent's own code
        import traceback  # noqa: PLC0415 - seldom needed, and not while a device starts

        traceback.print_exc()
    finally:
        os._exit(1)
