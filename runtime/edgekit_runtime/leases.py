"""Leases: which counter regions an application writes to, said by a lock the kernel keeps.

A region that is lent to an application travels as a descriptor of its own, exclusively locked. The
lock lives as long as anybody holds that descriptor or a mapping made from it: through the end of
the agent, and not beyond the end of the application, however that comes. It says two things to
whichever agent runs then: somebody counts here, so the file stays; and somebody runs the bundle
that the region is labelled with, so its blobs stay.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgekit.contracts.errors import translate_os_errors


def take(path: Path) -> int:
    """A locked descriptor of ``path``, for one application.

    Raises:
        ResourceError: no descriptors left.
        BadInputError: the file is gone, or lent already.
    """
    with translate_os_errors("lend", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def held(path: Path) -> bool:
    """Whether an application holds a lease on ``path``. Where that cannot be told: yes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # Shared, so that two who look at the same time do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
