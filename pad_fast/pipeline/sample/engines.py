"""What a run asks of a model, whichever engine runs it: responses, scores, next tokens.

All three questions take token ids and give token ids and log-probabilities in nats, so that no text
is tokenized twice. :class:`~pad_fast.pipeline.sample.transformers_engine.TransformersEngine` is the
engine within this process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pad_fast.pipeline.checkpoint import Checkpoint

Ids = Sequence[int]
Progress = Callable[[int], object]


def unseen(count: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Args:
        max_new_tokens: the longest response.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_p: probability mass of nucleus sampling; 1 turns it off.
        top_k: number of tokens of top-k sampling; 0 turns it off.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0


@dataclass(frozen=True)
class Sample:
    """One response.

    Args:
        ids: its tokens, with the one that ended it.
        finish_reason: "stop" if the model ended it, "length" if it was cut.
        logp: the sum of the log-probabilities of its tokens at temperature 1, before any top-p or
            top-k, in nats. None where the engine would have to read the response once more, which
            :meth:`Engine.logps` does.
    """

    ids: list[int]
    finish_reason: str
    logp: float | None = None


class Engine(ABC):
    """One model that can be asked.

    Args:
        checkpoint: the model's configuration, tokenizer and chat template.
        normalize: what :meth:`rewards` returns, "mean" for nats per token or "sum" for nats.
    """

    def __init__(self, checkpoint: Checkpoint, normalize: str = "mean") -> None:
        self.checkpoint, self.normalize = checkpoint, normalize

    @property
    @abstractmethod
    def identity(self) -> str:
        """What computes, in a line: numbers of two engines with one identity may be mixed.

        It stands in the manifest, in every shard and in the keys of the teacher's cache.
        """

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Ids],
        n: int,
        how: Sampling,
        seed: int,
        progress: Progress = unseen,
        tokens: Progress = unseen,
    ) -> list[list[Sample]]:
        """``n`` responses to each prompt.

        Args:
            prompts: token ids of P prompts, none of them empty.
            n: number of responses to each; 1 if ``how`` is greedy.
            how: temperature, limits.
            seed: of this call. Equal calls with equal seeds give equal responses where the engine
                computes equal logits.
            progress: called with the number of new responses, as they end.
            tokens: called with the number of new tokens, every second or so.
        """

    @abstractmethod
    def logps(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        """The log-probability of each response to its prompt, in nats; 0.0 for an empty one.

        Args:
            prompts: token ids of P prompts, none of them empty.
            responses: ``responses[p][i]``, token ids of response i to prompt p.
            progress: called with the number of scored responses, batch by batch.
        """

    @abstractmethod
    def choices(
        self, prompts: Sequence[Ids], token_ids: Ids, progress: Progress = unseen
    ) -> list[list[float]]:
        """The log-probability of each of K ``token_ids`` as the next token of each prompt, (P, K).

        Args:
            prompts: token ids of P prompts, none of them empty.
            token_ids: the tokens that are asked about.
            progress: called with the number of answered prompts, batch by batch.
        """

    def rewards(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Sequence[Ids]],
        progress: Progress = unseen,
    ) -> list[list[float]]:
        """Rewards of responses, ``normalize`` as it was given: see :meth:`logps`."""
        return self.rewards_of(self.logps(prompts, responses, progress), responses)

    def rewards_of(
        self, logps: Sequence[Sequence[float]], responses: Sequence[Sequence[Ids]]
    ) -> list[list[float]]:
        """The rewards of responses whose log-probabilities are known, see :meth:`logps`."""
        return [
            [self.reward(logp, len(ids)) for logp, ids in zip(*pair, strict=True)]
            for pair in zip(logps, responses, strict=True)
        ]

    def reward(self, logp: float, length: int) -> float:
        """The reward of a response of ``length`` tokens with the log-probability ``logp``."""
        return logp / length if self.normalize == "mean" and length else logp

    def close(self) -> None:  # noqa: B027  an engine that holds nothing has nothing to do
        """Release what the engine holds, such as the memory of the weights."""
