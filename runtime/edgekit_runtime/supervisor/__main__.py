from __future__ import annotations

import fcntl
import os
import sys

if not __package__:  # run as a file, under -I -S: nothing of the machine's Python is wanted
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from edgekit_runtime.supervisor.book import Book
from edgekit_runtime.supervisor.loop import SOCKET, Supervisor

SOCKET_PATH_BYTES_MAX = 107  # sun_path without its final zero (unix(7))


def main(arguments: list[str]) -> int:
    """Exit codes: 0 told to stop, 2 usage, 5 no runtime or another supervisor, 6 disk."""
    if len(arguments) < 2 or not os.path.isdir(arguments[0]):
        sys.stderr.write(
            "error: usage: supervisor STATE_DIR AGENT_ARGUMENTS...\n"
            "hint: for example: supervisor /var/lib/edgekit run --config /etc/edgekit/agent.toml\n"
        )
        return 2
    state = os.path.abspath(arguments[0])
    length = len(os.fsencode(os.path.join(state, SOCKET)))
    if length > SOCKET_PATH_BYTES_MAX:
        sys.stderr.write(
            f"error: {state}: too long, a socket path there has {length} bytes and the system "
            f"allows {SOCKET_PATH_BYTES_MAX}\nhint: use a state folder with a shorter path\n"
        )
        return 2
    try:
        handle = os.open(os.path.join(state, "supervisor.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(handle, False)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Supervisor(Book(state), arguments[1:], os.environ).run()
    except BlockingIOError:
        sys.stderr.write(
            f"error: {state}: another supervisor uses this state folder\nhint: stop it first\n"
        )
        return 5
    except OSError as exc:
        sys.stderr.write(
            f"error: {state}: {exc.strerror} ({exc.filename or 'state'})\n"
            "hint: free space there, or make it writable\n"
        )
        return 6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
