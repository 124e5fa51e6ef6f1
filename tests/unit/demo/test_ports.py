"""Ports of the demo's servers are not those that outgoing connections get."""

from __future__ import annotations

import socket

import pytest

from edgekit.cli.demo import processes
from edgekit.contracts.errors import UnavailableError


def test_a_port_is_free_and_no_clients():
    port = processes.free_port()
    assert port < 32768  # where ip_local_port_range of Linux begins
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_that_there_is_none_is_said(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(processes, "_PORTS", range(port, port + 1))
        monkeypatch.setattr(processes, "_PORTS_TRIED", 1)
        with pytest.raises(UnavailableError, match=f"no free port between {port} and {port}"):
            processes.free_port()
