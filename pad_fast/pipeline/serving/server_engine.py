"""The engine that asks servers, with token ids in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Engine, Ids, Progress, Sample, Sampling, unseen
from pad_fast.pipeline.seeds import derive_seed
from pad_fast.pipeline.serving.dialects import DIALECTS, Dialect, Drawn, Request, ServerError
from pad_fast.pipeline.serving.pool import Pool


class ServerEngine(Engine):
    """Servers of one model.

    All responses to a prompt, all scores of a prompt's responses and every question are one request
    each, and so come from one server.

    Args:
        checkpoint: the model that is served.
        normalize: see :class:`Engine`.
        pool: the servers.

    Raises:
        ServerError: one of them does not answer, or they are of different kinds.
    """

    def __init__(self, checkpoint: Checkpoint, normalize: str, pool: Pool) -> None:
        super().__init__(checkpoint, normalize)
        self.pool = pool
        found = {url: served(pool, url) for url in pool.urls}
        first = found[pool.urls[0]]
        for url, other in found.items():
            if other.identity != first.identity or other.model != first.model:
                raise ServerError(
                    f"{pool.urls[0]} serves {first.model} by {first.identity}, and {url} serves "
                    f"{other.model} by {other.identity}; give servers that are alike, since their "
                    "numbers are compared"
                )
        self.served = first
        self.dialect = first.dialect
        if first.window is not None:
            # One token has to be left for the server to make after what it reads.
            checkpoint.most_tokens = first.window - 1

    @property
    def identity(self) -> str:
        """The server's name and version, and what it serves if that is not called as the teacher.

        What a student's server serves is known from its log-probabilities.
        """
        path, names = self.checkpoint.path, (self.served.model, self.served.root)
        same = self.checkpoint.role == "student" or any(_same_path(path, name) for name in names)
        return self.served.identity + ("" if same else f" serving {self.served.root}")

    def sample(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
    ) -> list[list[Sample]]:
        """See :meth:`Engine.sample`. A prompt's seed depends on ``seed`` and its place alone."""
        self._check_window(prompts, how.max_new_tokens, "max_new_tokens")
        drawn = self.drawn(prompts, n, how, seed, progress)
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
    ) -> list[list[Drawn]]:
        """The responses with the log-probability of each token, and as the server's text."""
        ends = self.checkpoint.eos_token_ids
        return self.pool.run(
            [
                self.dialect.sampling(prompt, n, how, derive_seed(seed, place), ends)
                for place, prompt in enumerate(prompts)
            ],
            progress,
        )

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

    def watch(self, request: Request) -> None:
        """Take up a server that was gone only if it answers ``request`` as it should."""
        self.pool.canary = request

    def _check_window(self, prompts: Sequence[Ids], more: int, what: str) -> None:
        longest, most = max(map(len, prompts), default=0), self.served.window
        if most is not None and longest + more > most:
            raise ServerError(
                f"{self.pool.urls[0]} takes {most} tokens, and a prompt of {longest} with {what} "
                f"needs {longest + more}; start the server with a larger {self.dialect.window}"
            )


def _same_path(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


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
    root = str(first.get("root") or model)
    return Served(f"{kind} {version}".strip(), model, root, window and int(window))
