"""A small OpenAI-compatible server for tests: chat completions with log-probabilities."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


def letters(first: float, mass: float = 0.8, forms: tuple[str, str] = ("A", " B")) -> Any:
    """A completion whose first token is one of two letters, the first with a share of ``mass``."""
    pairs = [(forms[0], first * mass), (forms[1], (1 - first) * mass), ("The", 1 - mass)]
    top = [{"token": t, "logprob": math.log(p) if p else -999.0} for t, p in pairs]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}


@contextlib.contextmanager
def serving(reply: Callable[[dict[str, Any]], Reply], port: int = 0) -> Iterator[str]:
    """The URL of a server that answers each request's body with a status and a JSON value."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = reply(
                {**body, "path": self.path, "auth": self.headers["Authorization"]}
            )
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
