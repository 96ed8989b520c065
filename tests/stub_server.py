"""A server that speaks vLLM's dialect, or SGLang's, over a tiny model, and can be made to fail.

    python stub_server.py MODEL PORT

It computes with transformers alone, so that it shares nothing with what it is compared with.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["Handler", dict[str, Any]], bool]  # whether it has answered


class TinyModel:
    """Log-probabilities and samples of a model, one sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()

    def logps(self, ids: list[int]) -> torch.Tensor:
        """(T, V): what follows each token."""
        with self.lock, torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def sample(self, body: dict[str, Any], prompt: list[int], seed: int, raw: bool) -> dict:
        """A response with its log-probabilities, which are the processed ones unless ``raw``."""
        generator, ids, logps = torch.Generator().manual_seed(seed), [], []
        for _ in range(body["max_tokens"]):
            plain = self.logps([*prompt, *ids])[-1]
            heat = body.get("temperature", 1.0)
            hot = (plain / heat).log_softmax(-1) if heat else plain
            token = hot.exp().multinomial(1, generator=generator) if heat else plain.argmax()
            ids.append(int(token))
            logps.append(float((plain if raw else hot)[ids[-1]]))
            if ids[-1] in body.get("stop_token_ids", []):
                return {"ids": ids, "logps": logps, "reason": "stop"}
        return {"ids": ids, "logps": logps, "reason": "length"}


class Handler(BaseHTTPRequestHandler):
    """One request; ``self.server.stub`` says how it is answered."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def reply(self, value: Any, status: int = 200) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        stub = self.server.stub
        if stub.silent is not None:
            stub.silent.wait(60)
        if self.path == "/v1/models":
            root = stub.root if stub.kind == "vllm" else stub.served_as
            model = {"id": stub.served_as, "root": root, "owned_by": stub.kind}
            self.reply({"data": [{**model, "max_model_len": stub.window}]})
        elif self.path == "/version":
            self.reply({"version": stub.version})
        elif self.path == "/get_server_info":
            self.reply({"version": stub.version, "model_path": stub.root})
        elif self.path.startswith("/load?"):
            stub.load(Path(self.path.removeprefix("/load?")))
            self.reply({})
        else:
            self.reply({}, 404)

    def do_POST(self) -> None:
        stub = self.server.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub.seen[json.dumps([self.path, body], sort_keys=True)] += 1
        if stub.fault is not None and stub.fault(self, body):
            return
        stub.answered += 1
        if self.path == "/tokenize" and stub.kind == "vllm":
            ids = stub.model.tokenizer(body["prompt"], add_special_tokens=False).input_ids
            self.reply({"tokens": ids})
        elif self.path == "/v1/completions" and stub.kind == "vllm":
            self.reply(stub.completions(body))
        elif self.path == "/generate" and stub.kind == "sglang":
            self.reply(stub.generate(body))
        else:
            self.reply({}, 404)


class _Http(ThreadingHTTPServer):
    """Knows its connections, so that all of them can be cut as if the process were killed."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away

    def cut(self) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Stub:
    """A server in a thread, which :meth:`stop` and :meth:`start` end and begin again.

    Args:
        folder: of the model.
        port: 0 takes a free one.
        changes: attributes that differ, such as ``raw=False``.
    """

    def __init__(self, folder: Path, port: int = 0, **changes: Any) -> None:
        self.kind, self.version, self.window = "vllm", "0.32.0", 256
        self.raw, self.ids, self.letters = True, True, True
        self.fault: Fault | None = None
        self.silent: threading.Event | None = None  # what it says of itself waits for this
        self.seen: Counter[str] = Counter()
        self.answered = 0
        self.loaded: list[Path] = []
        self.served_as = self.root = str(folder)
        self.model = TinyModel(folder)
        self.port = port
        vars(self).update(changes)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def load(self, folder: Path) -> None:
        """Serve other weights under the old name."""
        self.loaded.append(folder)
        self.model = TinyModel(folder)

    def start(self) -> None:
        self.http = _Http(("127.0.0.1", self.port), Handler)
        self.http.stub = self
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.http.cut()

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        choices = []
        for prompt in prompts:
            for k in range(body["n"]):
                drawn = self.model.sample(body, prompt, (body.get("seed") or 0) + k, self.raw)
                choices.append(self._choice(body, prompt, drawn, len(choices)))
        random.Random(len(prompts)).shuffle(choices)  # the order is nobody's promise
        return {"choices": choices, "model": self.served_as}

    def _choice(self, body: dict, prompt: list[int], drawn: dict, index: int) -> dict[str, Any]:
        ended = drawn["reason"] == "stop"
        choice = {
            "index": index,
            "text": self.model.tokenizer.decode(drawn["ids"][: len(drawn["ids"]) - ended]),
            "finish_reason": drawn["reason"],
            "token_ids": drawn["ids"] if self.ids else None,
            "prompt_token_ids": prompt if self.ids else None,
        }
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": drawn["logps"], "top_logprobs": []}
        if body.get("logprob_token_ids") and self.letters:
            row = self.model.logps(prompt)[-1]
            named = {f"token_id:{token}": float(row[token]) for token in body["logprob_token_ids"]}
            choice["logprobs"]["top_logprobs"] = [named]
        elif body.get("logprob_token_ids"):
            choice["logprobs"]["top_logprobs"] = [{f"token_id:{drawn['ids'][0]}": -1.0}]
        if body.get("prompt_logprobs") is not None:
            rows = self.model.logps(prompt)
            choice["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": float(row[token]), "rank": 1}}
                for row, token in zip(rows, prompt[1:], strict=False)
            ]
        return choice

    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """SGLang's own endpoint."""
        answers, params = [], body["sampling_params"]
        for place, ids in enumerate(body["input_ids"]):
            own = params[place] if isinstance(params, list) else params
            asked = {**own, "max_tokens": own["max_new_tokens"]}
            drawn = self.model.sample(asked, ids, own.get("sampling_seed", 0), self.raw)
            rows = self.model.logps(ids)
            start, last = body.get("logprob_start_len", -1), len(ids) - 1
            given = [
                [float(rows[t - 1][ids[t]]) if t > start else None, ids[t], None]
                for t in range(start if start >= 0 else last, len(ids))
            ]
            meta = {
                "finish_reason": {"type": drawn["reason"]},
                "input_token_logprobs": given,
                "output_token_logprobs": [
                    [logp, token, None]
                    for logp, token in zip(drawn["logps"], drawn["ids"], strict=True)
                ],
            }
            if "token_ids_logprob" in body:
                asked_ids = body["token_ids_logprob"][place]
                meta["output_token_ids_logprobs"] = [
                    [[float(rows[-1][token]), token, None] for token in asked_ids]
                ]
            ended = drawn["reason"] == "stop"
            text = self.model.tokenizer.decode(drawn["ids"][: len(drawn["ids"]) - ended])
            answers.append({"text": text, "meta_info": meta})
        return answers


def main(folder: str, port: str) -> None:
    stub = Stub(Path(folder), int(port))
    print(f"serving {folder} at {stub.url}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
