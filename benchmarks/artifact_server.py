"""Serves the blobs of an OCI layout: ``artifact_server.py LAYOUT PORT``. A manager runs elsewhere.

A process of its own: in that of the clients it would hold the interpreter they wait for.
"""

from __future__ import annotations

import http.server
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device import free_port, running


@contextmanager
def artifacts(layout: Path) -> Iterator[str]:
    """The address at which ``layout`` is served."""
    port = free_port()
    with running([sys.executable, __file__, str(layout), str(port)], port):
        yield f"http://127.0.0.1:{port}"


def _serve(layout: Path, port: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = layout / "blobs" / "sha256" / self.path.rpartition(":")[2]
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__" and len(sys.argv) == 3:
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
