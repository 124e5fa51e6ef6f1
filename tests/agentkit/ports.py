"""Ports for servers of tests."""

from __future__ import annotations

import contextlib
import random
import socket

# Not what outgoing connections get: other tests make thousands of those at the same time.
_PORTS = range(10000, 20000)


def free_port() -> int:
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
