"""Entry point inside an image: selftest, health check, a worker, or the agent's own commands.

Copied into images as it is; needs only the standard library to start and finds the agent beside
it. ``selftest`` prints one JSON document and exits with 0 when the golden outputs are reproduced,
4 when they are not.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import runpy
import socket
import subprocess
import sys

HOME = "/opt/edgekit"
SOCKET = os.environ.get("EDGEKIT_SERVE_SOCKET", "/var/lib/edgekit/agent.sock")
LATENCY_RUNS = "20"


def selftest() -> int:
    """Load the bundle, check every byte, replay its golden set, time it."""
    command = [sys.executable, "-m", "edgekit_runtime.evaluate", f"{HOME}/bundle", "--json"]
    command += ["--data", f"{HOME}/selftest.npz", "--latency-runs", LATENCY_RUNS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        return done.returncode
    found = json.loads(done.stdout)
    golden = found.get("golden") or {"outcome": "inconclusive", "reason": "no golden set"}
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    passed = golden["outcome"] == "pass"
    print(json.dumps({"passed": passed, **facts, **found}, indent=2))
    if not passed:
        sys.stderr.write(f"error: self-test failed: {golden['reason']}\n")
    return 0 if passed else 4


def healthy() -> int:
    """Ask the agent whether it is ready, over its Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=3)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(3)
        connection.sock.connect(SOCKET)
        connection.request("GET", "/v2/health/ready")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError as exc:
        sys.stderr.write(f"error: {SOCKET}: {exc}\n")
        return 1
    finally:
        connection.close()


def main() -> int:
    """Dispatch on the first argument; everything else is the agent's."""
    match sys.argv[1:]:
        case ["selftest"]:
            return selftest()
        case ["healthy"]:
            return healthy()
        case ["worker", path]:  # for an agent outside, on the socket it mounted
            sys.argv[1:] = [path]
            runpy.run_module("edgekit_runtime.worker", run_name="__main__", alter_sys=True)
            return 0
    runpy.run_module("edgekit_runtime", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
