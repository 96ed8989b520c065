"""The engine that asks servers, with token ids in and out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Engine, Ids, Progress, Sample, Sampling, unseen
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.serving.dialects import (
    DIALECTS,
    Dialect,
    Drawn,
    Request,
    ServerError,
    Unreachable,
)
from pad_fast.pipeline.serving.pool import Pool

TRIED_FOR = 60.0  # seconds for a request to one server while others work


class ServerEngine(Engine):
    """Servers of one model.

    All responses to a prompt, all scores of a prompt's responses and every question are one request
    each, and so come from one server. A server that does not answer now is taken up later, when
    it answers and passes the trial of the others.

    Args:
        checkpoint: the model that is served.
        normalize: see :class:`Engine`.
        pool: the servers.

    Raises:
        ServerError: none of them answers, or they are of different kinds.
    """

    def __init__(self, checkpoint: Checkpoint, normalize: str, pool: Pool) -> None:
        super().__init__(checkpoint, normalize)
        self.pool = pool
        found = {}
        for url in pool.urls:
            try:
                found[url] = served(pool, url)
            except Unreachable as error:
                pool.down[url] = str(error)
                if len(pool.down) == len(pool.urls):
                    raise
        # The one that takes the fewest tokens speaks for all.
        self.first, self.served = min(found.items(), key=lambda one: one[1].most)
        for url, other in found.items():
            self._check_like_first(url, other)
        self.dialect = self.served.dialect
        if self.served.window is not None:
            # One token has to be left for the server to make after what it reads.
            checkpoint.most_tokens = self.served.window - 1

    @property
    def identity(self) -> str:
        """The server's name and version, and what it serves if that is not called as the teacher.

        What a student's server serves is known from its log-probabilities.
        """
        names = (self.served.model, self.served.root)
        same = self.checkpoint.role == "student" or any(map(self.checkpoint.is_called, names))
        return self.served.identity + ("" if same else f" serving {self.served.root}")

    def alone(self, url: str, patience: float = 0.0) -> ServerEngine:
        """One of the servers by itself.

        Args:
            url: of the server.
            patience: see :class:`Limits`.

        Raises:
            ServerError: it does not answer, or is not like the others.
        """
        single = copy.copy(self)
        single.first, single.served = url, served(self.pool, url)
        self._check_like_first(url, single.served)
        limits = replace(self.pool.limits, patience=patience)
        if not patience:
            limits = replace(limits, timeout=min(limits.timeout, TRIED_FOR))
        single.pool = Pool([url], limits, self.pool.restart)
        return single

    def _check_like_first(self, url: str, other: Served) -> None:
        first = self.served
        if other.identity != first.identity or other.model != first.model:
            raise ServerError(
                f"{self.first} serves {first.model} by {first.identity}, and {url} serves "
                f"{other.model} by {other.identity}; give servers that are alike, since their "
                "numbers are compared"
            )
        if other.most < first.most:
            raise ServerError(
                f"{url} takes {other.window} tokens, and {self.first} takes {first.window}; start "
                f"it with the same {first.dialect.window}"
            )

    def sample(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
        tokens: Progress = unseen,
    ) -> list[list[Sample]]:
        """See :meth:`Engine.sample`. A prompt's seed depends on ``seed`` and its place alone."""
        self._check_window(prompts, how.max_new_tokens, "max_new_tokens")
        drawn = self.drawn(prompts, n, how, seed, progress, tokens)
        return [
            [Sample(one.ids, one.finish_reason, math.fsum(one.logps)) for one in group]
            for group in drawn
        ]

    def drawn(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
        tokens: Progress = unseen,
    ) -> list[list[Drawn]]:
        """The responses with the log-probability of each token, and as the server's text."""
        ends = self.checkpoint.eos_token_ids
        requests = [
            self.dialect.sampling(prompt, n, how, derive_seed(seed, place), ends)
            for place, prompt in enumerate(prompts)
        ]
        return self.pool.run([_counted(request, tokens) for request in requests], progress)

    def logps(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        """See :meth:`Engine.logps`."""
        found = self.token_logps(prompts, responses, progress)
        return [[math.fsum(logps) for logps in group] for group in found]

    def token_logps(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[list[float]]]:
        """The log-probability of each token of each response."""
        for prompt, group in zip(prompts, responses, strict=True):
            self._check_window([prompt], max(map(len, group), default=0) + 1, "a response")
        full = [[list(ids) for ids in group if len(ids)] for group in responses]
        requests = [
            self.dialect.scoring(prompt, group)
            for prompt, group in zip(prompts, full, strict=True)
            if group
        ]
        answers = iter(self.pool.run(requests, progress))
        progress(sum(map(len, responses)) - sum(map(len, full)))
        found = []
        for group, asked in zip(responses, full, strict=True):
            scores = iter(next(answers) if asked else [])
            found.append([next(scores) if len(ids) else [] for ids in group])
        return found

    def choices(
        self, prompts: Sequence[Ids], token_ids: Ids, progress: Progress = unseen
    ) -> list[list[float]]:
        """See :meth:`Engine.choices`."""
        self._check_window(prompts, 1, "a letter")
        return self.pool.run(
            [self.dialect.choosing(prompt, token_ids) for prompt in prompts], progress
        )

    def check_room(self, longest: int, max_new_tokens: int) -> None:
        """Raise ServerError unless the longest prompt fits with its longest response.

        Args:
            longest: its tokens for this model.
            max_new_tokens: those of the response.
        """
        needed, most = longest + max_new_tokens + 1, self.served.window
        if most is not None and needed > most:
            raise ServerError(
                f"{self.first} takes {most} tokens, and the longest prompt has {longest} for the "
                f"{self.checkpoint.role}, which with max_new_tokens ({max_new_tokens}) and one "
                f"more are {needed}; start the server with {self.dialect.window} {needed} or more, "
                f"lower max_new_tokens by {needed - most}, or set max_prompt_length, with "
                "long_prompts: drop"
            )

    def _check_window(self, prompts: Sequence[Ids], more: int, what: str) -> None:
        longest, most = max(map(len, prompts), default=0), self.served.window
        if most is not None and longest + more > most:
            raise ServerError(
                f"{self.first} takes {most} tokens, and a prompt of {longest} with {what} "
                f"needs {longest + more}; start the server with a larger {self.dialect.window}"
            )


def _counted(request: Request, tokens: Progress) -> Request:
    """A request for responses which reports their tokens when they are there."""

    def read(answer: Any) -> Any:
        found = request.read(answer)
        tokens(sum(len(one.ids) for one in found))
        return found

    return replace(request, read=read)


class Served:
    """What one server says of itself.

    Args:
        identity: its kind and version, such as "vllm 0.32.0".
        model: the name that it serves the model under.
        root: the folder or the hub name of the model; the same as ``model`` where it says nothing.
        window: the most tokens of a sequence, None if unknown.
    """

    def __init__(self, identity: str, model: str, root: str, window: int | None) -> None:
        self.identity, self.model, self.root, self.window = identity, model, root, window

    @property
    def most(self) -> float:
        """The most tokens that it is known to take."""
        return math.inf if self.window is None else self.window

    @property
    def dialect(self) -> Dialect:
        """How it is asked."""
        return DIALECTS[self.identity.split()[0]](self.model)


def served(pool: Pool, url: str) -> Served:
    """What the server at ``url`` says of itself.

    Raises:
        ServerError: it does not answer, or is neither vLLM nor SGLang.
    """
    listed = pool.ask(url, "/v1/models")
    try:
        first = listed["data"][0]
        model, kind = str(first["id"]), str(first.get("owned_by"))
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ServerError(
            f"{url} has no list of models at /v1/models; give the URL of a vLLM or SGLang server"
        ) from None
    if kind not in DIALECTS:
        raise ServerError(
            f"{url} serves {model} for {kind!r}, which is neither vllm nor sglang; no other server "
            "takes and returns token ids with their log-probabilities"
        )
    about = pool.ask(url, "/version" if kind == "vllm" else "/get_server_info")
    version = about.get("version", "") if isinstance(about, dict) else ""
    window = first.get("max_model_len")
    # SGLang's root is the name again, and what it has loaded stands among its arguments.
    root = (about.get("model_path") if isinstance(about, dict) else None) or first.get("root")
    root = str(root or model)
    return Served(f"{kind} {version}".strip(), model, root, window and int(window))
