"""What vLLM and SGLang are sent over HTTP, and how their answers are read.

Token ids go in and come out, so that no text is tokenized twice. A dialect makes requests; a
request reads its own answer and raises :class:`Garbled` for one that makes no sense.

Sources: vLLM's entrypoints/openai/completion/protocol.py (0.32), SGLang's managers/io_struct.py and
docs/basic_usage/sampling_params. SGLang is asked through its own ``/generate``: its OpenAI endpoint
returns no token ids and takes no list of tokens to be judged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pad_fast.pipeline.sample.engines import Ids, Sampling

EXCLUDED = -9999.0  # what vLLM writes in place of -inf, which JSON does not have


class ServerError(ValueError):
    """A server that cannot be used, with what mends it."""


class Unreachable(ServerError):
    """A server that does not answer."""


class Garbled(Exception):
    """An answer that makes no sense; it is asked for again."""


@dataclass(frozen=True)
class Drawn:
    """One sampled response: its tokens, their log-probabilities, why it ended, its text."""

    ids: list[int]
    logps: list[float]
    finish_reason: str
    text: str


@dataclass(frozen=True)
class Request:
    """One question to a server.

    Args:
        path: below the server's URL.
        body: sent as JSON.
        read: makes the answer of the decoded JSON; raises :class:`Garbled` or
            :class:`ServerError`.
        count: how much it adds to the progress.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]
    count: int = 1


class Dialect(ABC):
    """How one kind of server is asked.

    Args:
        model: the name that it serves the model under.
    """

    name: str
    raw: str  # how the server is started so that it returns log-probabilities at temperature 1
    ids: str  # what a server lacks that returns no token ids
    start: str  # the command that serves a checkpoint, with {model} and {port}
    window: str  # the flag of the longest sequence
    seeds: str  # how the server is started so that it follows the seeds of requests
    memory: str  # how the server is started so that scoring takes less memory

    def __init__(self, model: str) -> None:
        self.model = model

    @abstractmethod
    def sampling(self, prompt: Ids, n: int, how: Sampling, seed: int, ends: Ids) -> Request:
        """``n`` responses to a prompt, each a :class:`Drawn`; ``ends`` are tokens that end one."""

    @abstractmethod
    def scoring(self, prompt: Ids, responses: Sequence[Ids]) -> Request:
        """The log-probabilities of the tokens of responses, none of them empty."""

    @abstractmethod
    def choosing(self, prompt: Ids, token_ids: Ids) -> Request:
        """The log-probability of each of ``token_ids`` as the next token."""

    def number(self, value: Any) -> float:
        """A log-probability, if it is one: finite, and at most 0 but for rounding."""
        if isinstance(value, bool) or not isinstance(value, float | int) or math.isnan(value):
            raise Garbled(f"{value!r} as a log-probability")
        if value > 1e-3:
            raise ServerError(f"a log-probability of {value:.4g}, above 0; it takes {self.raw}")
        if value <= EXCLUDED:
            raise ServerError(
                "a log-probability of minus infinity, and nothing of it is kept: the model "
                "excludes a token that it was asked about; check that the server serves the "
                "checkpoint's weights"
            )
        return float(value)

    def checked(self, drawn: Sequence[Drawn], n: int, how: Sampling, ends: Ids) -> list[Drawn]:
        """The responses, unless they are not what was asked for."""
        if len(drawn) != n:
            raise Garbled(f"{len(drawn)} responses in place of {n}")
        for one in drawn:
            if not one.ids or len(one.ids) != len(one.logps):
                raise Garbled(f"{len(one.ids)} tokens with {len(one.logps)} log-probabilities")
            for value in one.logps:
                self.number(value)
            if one.finish_reason not in ("stop", "length"):
                raise Garbled(f"a response that ended with {one.finish_reason!r}")
            if one.finish_reason == "length" and len(one.ids) != how.max_new_tokens:
                raise ServerError(
                    f"the server cut a response at {len(one.ids)} tokens, and max_new_tokens is "
                    f"{how.max_new_tokens}; start it with --generation-config vllm, so that the "
                    f"model's generation_config.json sets no limit, or with a larger {self.window}"
                )
            if one.finish_reason == "stop" and one.ids[-1] not in ends:
                raise ServerError(
                    f"the server ended a response with the token {one.ids[-1]}, which ends none of "
                    f"the checkpoint's ({', '.join(map(str, ends))}); serve the same checkpoint"
                )
        return list(drawn)


class VLLM(Dialect):
    """vLLM's ``/v1/completions``, with its additional fields."""

    name = "vllm"
    raw = "--logprobs-mode raw_logprobs (`trl vllm-serve` sets another one)"
    ids = "vLLM 0.10.2 or newer, which has return_token_ids"
    start = "vllm serve {model} --port {port}"
    window = "--max-model-len"
    seeds = "VLLM_BATCH_INVARIANT=1"
    memory = "--max-num-batched-tokens 2048 and a lower --gpu-memory-utilization, such as 0.8"

    def _body(self, prompt: Any, **changes: Any) -> dict[str, Any]:
        """Every field that the model's generation_config.json would else fill in."""
        return {
            "model": self.model,
            "prompt": prompt,
            "n": 1,
            "max_tokens": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "skip_special_tokens": False,
            "return_token_ids": True,
            **changes,
        }

    def sampling(self, prompt: Ids, n: int, how: Sampling, seed: int, ends: Ids) -> Request:
        """Sample k is drawn with ``seed`` + k, which vLLM derives itself."""
        body = self._body(
            list(prompt),
            n=n,
            max_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k or -1,
            seed=seed,
            stop_token_ids=list(ends),
            logprobs=0,
        )

        def read(answer: Any) -> list[Drawn]:
            drawn = []
            for choice in _choices(answer, n):
                if choice.get("token_ids") is None:
                    raise ServerError(f"the server returns no token ids; it takes {self.ids}")
                if choice.get("logprobs") is None:
                    raise ServerError(
                        f"the server returns no log-probabilities; it takes {self.raw}"
                    )
                _same_prompt(choice, prompt)
                logps = choice["logprobs"]["token_logprobs"]
                drawn.append(
                    Drawn(choice["token_ids"], logps, choice["finish_reason"], choice["text"])
                )
            return self.checked(drawn, n, how, ends)

        return Request("/v1/completions", body, read, n)

    def scoring(self, prompt: Ids, responses: Sequence[Ids]) -> Request:
        """One prompt of several sequences; vLLM makes a token more, which nobody reads."""
        texts = [[*prompt, *response] for response in responses]
        body = self._body(texts, prompt_logprobs=0)

        def read(answer: Any) -> list[list[float]]:
            found = []
            for choice, ids in zip(_choices(answer, len(texts)), texts, strict=True):
                rows = choice.get("prompt_logprobs")
                if rows is None:
                    raise ServerError("the server returns no prompt_logprobs, as vLLM does")
                if len(rows) != len(ids):
                    raise Garbled(f"{len(rows)} prompt log-probabilities of {len(ids)} tokens")
                places = range(len(prompt), len(ids))
                found.append([self.number(rows[t][str(ids[t])]["logprob"]) for t in places])
            return found

        return Request("/v1/completions", body, read, len(responses))

    def choosing(self, prompt: Ids, token_ids: Ids) -> Request:
        """The answer names tokens by their ids, since two tokens may have one text."""
        body = self._body(
            list(prompt),
            logprobs=0,
            logprob_token_ids=list(token_ids),
            return_tokens_as_token_ids=True,
        )

        def read(answer: Any) -> list[float]:
            [choice] = _choices(answer, 1)
            [known] = choice["logprobs"]["top_logprobs"]
            missing = [token for token in token_ids if f"token_id:{token}" not in known]
            if missing:
                raise ServerError(
                    "the server returns no log-probabilities of given tokens; it takes a vLLM that "
                    "has logprob_token_ids, or mcq_style: none"
                )
            return [self.number(known[f"token_id:{token}"]) for token in token_ids]

        return Request("/v1/completions", body, read)


class SGLang(Dialect):
    """SGLang's own ``/generate``."""

    name = "sglang"
    raw = "SGLANG_RETURN_ORIGINAL_LOGPROB=1 in the environment of the server"
    ids = "a SGLang that returns output_token_logprobs"
    start = (
        "SGLANG_RETURN_ORIGINAL_LOGPROB=1 python -m sglang.launch_server "
        "--model-path {model} --port {port}"
    )
    window = "--context-length"
    seeds = "--enable-deterministic-inference"
    memory = (
        "SGLANG_ENABLE_LOGITS_PROCESSER_CHUNK=1 in its environment, --chunked-prefill-size 2048 "
        "and a lower --mem-fraction-static"
    )

    def _body(self, ids: list[list[int]], **changes: Any) -> dict[str, Any]:
        return {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "return_text_in_logprobs": False,
            **changes,
        }

    def sampling(self, prompt: Ids, n: int, how: Sampling, seed: int, ends: Ids) -> Request:
        """The prompt n times, since SGLang would draw all n samples of one with one seed."""
        params = {
            "max_new_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(ends),
            "skip_special_tokens": False,
        }
        body = self._body(
            [list(prompt)] * n,
            sampling_params=[{**params, "sampling_seed": seed + k} for k in range(n)],
            logprob_start_len=-1,
        )

        def read(answer: Any) -> list[Drawn]:
            drawn = []
            for one in _list(answer, n):
                rows = one["meta_info"].get("output_token_logprobs")
                if rows is None:
                    raise ServerError(f"the server returns no token ids; it takes {self.ids}")
                reason = one["meta_info"]["finish_reason"]["type"]
                ids, logps = [row[1] for row in rows], [row[0] for row in rows]
                drawn.append(Drawn(ids, logps, reason, one["text"]))
            return self.checked(drawn, n, how, ends)

        return Request("/generate", body, read, n)

    def scoring(self, prompt: Ids, responses: Sequence[Ids]) -> Request:
        """From the prompt's last token on; the first of these has no log-probability."""
        texts = [[*prompt, *response] for response in responses]
        body = self._body(texts, logprob_start_len=len(prompt) - 1)

        def read(answer: Any) -> list[list[float]]:
            found = []
            for one, response in zip(_list(answer, len(texts)), responses, strict=True):
                rows = one["meta_info"]["input_token_logprobs"][-len(response) :]
                if [row[1] for row in rows] != list(response):
                    raise Garbled("log-probabilities of other tokens than were sent")
                found.append([self.number(row[0]) for row in rows])
            return found

        return Request("/generate", body, read, len(responses))

    def choosing(self, prompt: Ids, token_ids: Ids) -> Request:
        """The next token's row of ``output_token_ids_logprobs``."""
        body = self._body([list(prompt)], logprob_start_len=-1, token_ids_logprob=[list(token_ids)])

        def read(answer: Any) -> list[float]:
            [one] = _list(answer, 1)
            [row] = one["meta_info"]["output_token_ids_logprobs"]
            known = {token: logp for logp, token, *_ in row}
            return [self.number(known[token]) for token in token_ids]

        return Request("/generate", body, read)


DIALECTS: dict[str, type[Dialect]] = {kind.name: kind for kind in (VLLM, SGLang)}


def _choices(answer: Any, count: int) -> list[dict[str, Any]]:
    """The choices of an OpenAI answer, in the order of their indices."""
    found = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in found] != list(range(count)):
        raise Garbled(f"{len(found)} choices in place of {count}")
    return found


def _list(answer: Any, count: int) -> list[Any]:
    """The answers of SGLang to a list of sequences."""
    found = answer if isinstance(answer, list) else [answer]
    if len(found) != count:
        raise Garbled(f"{len(found)} answers in place of {count}")
    return found


def _same_prompt(choice: dict[str, Any], prompt: Ids) -> None:
    read = choice.get("prompt_token_ids")
    if read is not None and list(read) != list(prompt):
        raise ServerError(
            f"the server read {len(read)} other tokens than the {len(prompt)} that were sent: it "
            "cuts prompts or adds tokens; start it without such options"
        )
