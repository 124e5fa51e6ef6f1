"""The agent's side of embedded sessions in the test's process, turned by hand or by a thread."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
from agentkit.device import Device, InlineJobs

from edgekit_runtime import deployer
from edgekit_runtime.applications import Applications
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.embedded import Session
from edgekit_runtime.loop import Loop

ROW = {"x": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)}


class Host:
    """A device, and the loop that its applications talk to."""

    def __init__(self, root, layout, *, sessions_max: int = 16) -> None:
        self.root = root
        self.loop = Loop()
        self.applications = Applications(
            self.loop, sessions_max=sessions_max, threads=1, woken=lambda: None
        )
        deployer.JobRunner, kept = InlineJobs, deployer.JobRunner
        self.device = Device(root, layout, PosixDisk(), applications=self.applications)
        deployer.JobRunner = kept
        self.applications.listen(root)

    def turn(self, times: int = 6) -> None:
        """Frames go one way, then the other."""
        for _ in range(times):
            self.loop.turn(0)
            self.device.deployer.advance()

    @contextlib.contextmanager
    def turning(self):
        """Turned by a thread of its own meanwhile."""
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                self.loop.turn(0.005)
                self.device.deployer.advance()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def open(self, **options) -> Session:
        with self.turning():
            return Session.open("meter", state_dir=self.root, **options)

    def regions(self):
        return self.device.counting.shelf("meter").regions()

    def die(self) -> None:
        """Without a word, as by SIGKILL: its descriptors close."""
        for application in list(self.applications._open.values()):
            application.channel.close()
        self.applications._listener.close()
        self.applications._open.clear()
        self.loop.close()


def crash(session: Session) -> None:
    """The application of ``session`` is killed: what it held is let go."""
    session._closer.detach()
    session._tether.abandon()
    session._release()
    session._closed = True
