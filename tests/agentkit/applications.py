"""Applications that embed a model: processes of their own, told what to do line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

_BODY = """
import json, os, sys
import numpy as np
from edgekit.contracts.errors import EdgekitError
from edgekit_runtime import Session

def say(**values):
    print(json.dumps(values), flush=True)

options = json.loads(sys.argv[1])
session = Session.open(options.pop("model", "meter"), **options)
say(ready=True)
for line in sys.stdin:
    order = json.loads(line)
    what = order.pop("do")
    if what == "infer":
        ids = order["ids"]
        for number, name in enumerate(ids):
            try:
                result = session.infer(
                    {"x": np.full((1, 4), order.get("value", 0.5), np.float32)}, request_id=name
                )
            except EdgekitError as exc:
                say(id=name, error=type(exc).__name__, message=exc.message)
                continue
            say(
                id=name, version=result.version, slot=result.slot, counted=result.counted,
                flags=int(result.flags), connected=session.connected,
            )
        say(done=len(ids))
    elif what == "flood":
        number = 0
        while True:
            name = f"{order['prefix']}-{number}"
            session.infer({"x": np.zeros((1, 4), np.float32)}, request_id=name)
            say(id=name)
            number += 1
    elif what == "close":
        session.close()
        say(closed=True)
    elif what == "end":
        break
"""


class AppProcess:
    """An application; what it answered was counted before it was said."""

    def __init__(self, **options: Any) -> None:
        body = textwrap.dedent(_BODY)
        self.process = subprocess.Popen(
            [sys.executable, "-c", body, json.dumps({k: str(v) for k, v in options.items()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answered: list[str] = []

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, f"the application ended: {self.process.wait(30)}"
        return json.loads(line)

    def ready(self) -> AppProcess:
        assert self.read() == {"ready": True}
        return self

    def order(self, **values: Any) -> None:
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()

    def infer(self, *ids: str | None, value: float = 0.5) -> list[dict[str, Any]]:
        self.order(do="infer", ids=ids, value=value)
        found: list[dict[str, Any]] = []
        while "done" not in (said := self.read()):
            found.append(said)
        self.answered += [each["id"] for each in found if "error" not in each]
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def end(self) -> int:
        """As an interpreter ends: without `close`, and in order."""
        self.process.stdin.close()
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def _close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
