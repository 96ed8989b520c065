"""A server of a run's own in a test: it loads a model into a stub elsewhere and forwards requests.

    python forwarder.py STUB_URL MODEL PORT

It imports the standard library alone, so that it starts at once. Like a real server it has a child
process, which leaves its process group. ``pids`` beside the model lists both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes | None) -> None:
        asked = urllib.request.Request(self.server.stub + self.path, body)
        try:
            with urllib.request.urlopen(asked) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main(stub: str, model: str, port: str) -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(f"pids {os.getpid()} {child.pid}", flush=True)
    urllib.request.urlopen(f"{stub}/load?{model}").read()
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Forward)
    server.stub = stub
    server.serve_forever(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
