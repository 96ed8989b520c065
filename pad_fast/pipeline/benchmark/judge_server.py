"""A judge behind any OpenAI-compatible server, asked over its chat completions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from pad_fast.pipeline.benchmark.judge import Judge, Progress, Verdict
from pad_fast.pipeline.serving.connection import DIRECT

TOP = 20  # the most log-probabilities of a token that OpenAI's servers and vLLM's give
AT_ONCE = 16  # requests in flight
SECONDS, PATIENCE = 120.0, 180.0  # for one request; for retries of it
LETTERS = ("A", "B")
_LATER = (408, 409, 425, 429, 500, 502, 503, 504)


class ServerJudge(Judge):
    """A model that a server offers by name.

    Args:
        urls: base URLs, with or without the /v1 at their end; questions are spread over them.
        model: the model's name there.
        key: the API key; that in the variable OPENAI_API_KEY if not given.
        patience: seconds for which a server that fails is asked again.
    """

    def __init__(
        self, urls: Sequence[str], model: str, key: str | None = None, patience: float = PATIENCE
    ) -> None:
        shown = ", ".join(urls)
        super().__init__(f"{model} at {shown}", model)
        self.urls = [url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions" for url in urls]
        self.model, self.patience = model, patience
        key = key or os.environ.get("OPENAI_API_KEY") or "EMPTY"
        self.headers = {"Authorization": f"Bearer {key}"}

    def ask(self, questions: Sequence[str], progress: Progress) -> list[Verdict | None]:
        """See :meth:`Judge.ask`.

        Raises:
            ValueError: the server refuses the request, or does not answer with letters.
            ConnectionError: it does not answer at all.
        """
        with (
            httpx.Client(headers=self.headers, timeout=SECONDS, mounts=DIRECT) as client,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):

            def asked(question: str, url: str) -> Verdict | None:
                verdict = self._ask(client, url, question)
                progress(1)
                return verdict

            futures = [
                pool.submit(asked, question, url)
                for question, url in zip(questions, cycle(self.urls))
            ]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, client: httpx.Client, url: str, question: str) -> Verdict | None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 1,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": TOP,
        }
        retrying = Retrying(
            stop=stop_after_delay(self.patience),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            response = retrying(_posted, client, url, body)
        except httpx.HTTPStatusError as error:
            text = " ".join(error.response.text.split())
            if error.response.status_code == 400 and "context length" in text:
                return None
            raise ValueError(
                f"judge_server: {url} refuses the model {self.model} or the request: "
                f"{error.response.status_code} {text:.300}"
            ) from None
        except httpx.HTTPError as error:
            raise ConnectionError(
                f"judge_server: {url} does not answer ({type(error).__name__}: {error}); verdicts "
                "of finished shards are kept: start the server and give the command again"
            ) from None
        except ValueError as error:
            raise ValueError(f"judge_server: {url} answers with no JSON ({error})") from None
        return _verdict(url, response)


def _posted(client: httpx.Client, url: str, body: dict[str, Any]) -> Any:
    response = client.post(url, json=body)
    response.raise_for_status()
    return response.json()


def _may_pass(error: BaseException) -> bool:
    """Whether a later request may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _LATER
    return isinstance(error, (httpx.TransportError, ValueError))


def _verdict(url: str, response: Any) -> Verdict:
    """The probabilities of the letters among the likeliest tokens, alone or behind a space."""
    try:
        likeliest = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(token["token"]).strip(), float(token["logprob"])) for token in likeliest]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"judge_server: {url} gives no log-probabilities of the first token; it must support "
            "logprobs and top_logprobs in chat completions"
        ) from None
    shares = [
        math.fsum(math.exp(logprob) for token, logprob in pairs if token == letter)
        for letter in LETTERS
    ]
    mass = math.fsum(shares)
    if mass == 0:
        shown = ", ".join(repr(token) for token, _ in pairs[:5])
        raise ValueError(
            f"judge_server: {url} does not answer with A or B, its likeliest tokens are {shown}; "
            "take a judge that follows instructions, without thinking"
        )
    return Verdict(shares[0] / mass, mass)
