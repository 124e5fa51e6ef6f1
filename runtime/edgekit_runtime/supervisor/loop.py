"""Starts agents and looks after the one that runs."""

from __future__ import annotations

import os
import select
import sys
import time

from edgekit_runtime.supervisor import rules
from edgekit_runtime.supervisor.book import Book
from edgekit_runtime.supervisor.child import Child
from edgekit_runtime.supervisor.lean import signal, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

STOP_S = 30.0  # an agent told to stop gets this long to drain
WATCHDOG_S = 60.0  # where no service manager says how long an agent may be silent
TICK_S = 0.5
SOCKET = "supervisor.sock"


class Supervisor:
    """One per state folder; the caller holds its lock."""

    def __init__(
        self, book: Book, arguments: Sequence[str], environ: Mapping[str, str], clock: Any = time
    ) -> None:
        self._book = book
        self._arguments = list(arguments)
        self._environ = dict(environ)
        self._clock = clock
        self._upstream = _address(environ.get("NOTIFY_SOCKET", ""))
        allowed = environ.get("WATCHDOG_USEC", "")
        self._silent_s = int(allowed) / 1e6 if allowed.isdigit() and int(allowed) else WATCHDOG_S
        self._stop_at: float | None = None
        self._ends: list[float] = []  # of a confirmed runtime, lately
        self._last = ""
        self._record: dict[str, Any] = rules.fresh("")
        path = os.path.join(book.state, SOCKET)
        if os.path.lexists(path):
            os.unlink(path)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.bind(path)
        os.chmod(path, 0o600)
        self._notify.setblocking(False)
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._out.setblocking(False)
        self._woken, wake = os.pipe()
        for end in (self._woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> int:
        """Until told to stop; the exit code."""
        found = self._book.load()
        if found is None:
            found = self._begin_anew()
            if found is None:
                sys.stderr.write(
                    f"error: {self._book.state}: no runtime lies in its folder runtimes\n"
                    "hint: install one, e.g. edgekit runtime unpack LAYOUT --out ...\n"
                )
                return 5
        self._record = found
        self._change(rules.installed(self._record, self._book.current()))
        while self._stop_at is None:
            self._take_request()
            self._change(rules.begin(self._record, self._last, time.time()))
            if not self._book.has(self._record["active"]) and self._record["fallback"]:
                self._change(rules.revert(self._record, "its folder is missing", time.time()))
            child = self._start()
            status = self._watch(child)
            self._ended(child, status)
        self._say(b"STOPPING=1")
        os.unlink(os.path.join(self._book.state, SOCKET))
        return 0

    def _begin_anew(self) -> dict[str, Any] | None:
        """No record, or none that can be read: the newest complete runtime is what there is."""
        held = self._book.held()
        if not held:
            return None
        note = "" if len(held) == 1 else "the runtime record was rebuilt from what lies here"
        self._change(rules.fresh(held[0], note))
        return self._record

    def _take_request(self) -> None:
        request = self._book.request()
        if request is not None:
            if not self._change(rules.adopt(self._record, request)):
                return  # asked again at the next start
            self._ends.clear()
            self._last = ""
        try:
            self._book.forget_request()
        except OSError as exc:
            _log(f"error: the request cannot be removed: {exc.strerror}")

    def _change(self, record: dict[str, Any]) -> bool:
        """Persisted before it takes effect; a disk that refuses must not stop what runs."""
        if record == self._record:
            return True
        if record["note"] != self._record["note"] and record["note"]:
            _log(record["note"])
        self._record = record
        try:
            self._book.save(record)
        except OSError as exc:
            _log(f"error: the runtime record cannot be written: {exc.strerror}")
            return False
        return True

    def _start(self) -> Child:
        digest = self._record["active"]
        self._book.point(digest)
        environ = {key: v for key, v in self._environ.items() if key != "WATCHDOG_PID"}
        environ["NOTIFY_SOCKET"] = os.path.join(self._book.state, SOCKET)
        environ["WATCHDOG_USEC"] = str(int(self._silent_s * 1e6))
        # Without another to go back to there is nothing to try it against.
        on_trial = not self._record["confirmed"] and bool(self._record["fallback"])
        environ["EDGEKIT_SUPERVISOR"] = "trial" if on_trial else "alone"
        program = os.path.join(self._book.folder(digest), "agent.py")
        child = Child([sys.executable, program, *self._arguments], environ)
        how = f", on trial, {self._record['tries']} tries left" if on_trial else ""
        _log(f"runtime {digest[:19]} started, pid {child.pid}{how}")
        return child

    # --- while it runs -------------------------------------------------------------------------

    def _watch(self, child: Child) -> int:
        """Until it has ended; its wait status."""
        poll = select.poll()
        for handle in (self._woken, self._notify.fileno(), child.stderr):
            poll.register(handle, select.POLLIN)
        while True:
            for handle, _ in poll.poll(TICK_S * 1000):
                if handle == child.stderr:
                    if not child.listen():
                        poll.unregister(handle)
                elif handle == self._woken:
                    self._drain()
            self._hear(child)
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.listen()
                os.close(child.stderr)
                child.signal_all(signal.SIGKILL)  # workers that did not notice: no orphans
                return status
            self._judge(child, self._clock.monotonic())

    def _judge(self, child: Child, now: float) -> None:
        self._say(b"WATCHDOG=1" if child.ready else b"WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000")
        if self._stop_at is not None:
            if not child.told_to_stop:
                child.told_to_stop = True
                child.signal(signal.SIGTERM)
            elif now > self._stop_at + STOP_S:
                child.kill(f"did not stop within {STOP_S:g} s")
            return
        if child.ready and now - child.pinged > self._silent_s:
            child.kill(f"hung: gave no sign of life for {self._silent_s:g} s")
        if self._record["confirmed"]:
            return
        if child.reported_at is not None:
            if now - child.reported_at >= self._record["confirm_s"]:
                confirmed = {**self._record, "confirmed": True, "tries": 0, "note": ""}
                self._change(confirmed)
                _log(f"runtime {self._record['active'][:19]} is confirmed")
        elif self._record["fallback"] and now - child.started > self._record["report_s"]:
            limit = self._record["report_s"]
            child.never_reported = True
            child.kill(f"started, and did not report within {limit:g} s")

    def _hear(self, child: Child) -> None:
        """What the agent says; all but its signs of life goes on to the service manager."""
        while True:
            try:
                data = self._notify.recv(4096)
            except BlockingIOError:
                return
            lines = data.split(b"\n")
            now = self._clock.monotonic()
            child.pinged = now
            if b"READY=1" in lines:
                child.ready = True
            if b"EDGEKIT=reported" in lines and child.reported_at is None:
                child.reported_at = now
            ours = (b"WATCHDOG=1", b"EDGEKIT=reported", b"STOPPING=1")
            rest = [line for line in lines if line and line not in ours]
            if rest:
                self._say(b"\n".join(rest))

    # --- when it has ended ---------------------------------------------------------------------

    def _ended(self, child: Child, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if self._stop_at is not None:
            if code == 0 and not self._record["confirmed"] and self._record["fallback"]:
                # It was told to: that is no fault of it.
                self._change({**self._record, "tries": self._record["tries"] + 1})
            return
        if code == rules.EXIT_SWITCH and self._book.request() is not None:
            _log("the agent has ended for the runtime it asked for")
            return
        self._last = child.why(status)
        _log(f"runtime {self._record['active'][:19]}: {self._last}")
        now = self._clock.monotonic()
        since = now - rules.CRASH_WINDOW_S
        self._ends = [end for end in self._ends if end >= since] + [now]
        on_trial = not self._record["confirmed"]
        reason = ""
        if on_trial and child.never_reported:
            reason = self._last
        elif not on_trial and len(self._ends) >= rules.CRASHES_MAX:
            reason = f"ended {len(self._ends)} times within ten minutes: {self._last}"
        if reason and self._record["fallback"]:
            self._change(rules.revert(self._record, reason, time.time()))
            self._ends.clear()
        self._pause(rules.backoff_s(len(self._ends)))

    def _pause(self, seconds: float) -> None:
        end = self._clock.monotonic() + seconds
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        while self._stop_at is None and (left := end - self._clock.monotonic()) > 0:
            self._say(b"WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000")
            poll.poll(min(left, TICK_S) * 1000)
            self._drain()

    def _told_to_stop(self, *_: object) -> None:
        if self._stop_at is None:
            self._stop_at = self._clock.monotonic()

    def _drain(self) -> None:
        try:
            os.read(self._woken, 512)
        except BlockingIOError:
            return

    def _say(self, state: bytes) -> None:
        """To the service manager; one that does not listen must not stop anything."""
        if self._upstream:
            try:
                self._out.sendto(state, self._upstream)
            except OSError:
                return


def _address(text: str) -> str:
    if text[:1] not in ("/", "@"):
        return ""
    return "\0" + text[1:] if text.startswith("@") else text


def _log(text: str) -> None:
    sys.stderr.write(f"supervisor: {text}\n")
    sys.stderr.flush()
