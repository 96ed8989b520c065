"""Whether servers have the weights of a checkpoint, told from log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pad_fast.files.stored_rows import Row
from pad_fast.models.scoring import score_responses
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.serving.server_engine import ServerEngine

ROWS, TOKENS = 16, 64
BEFORE = 128  # tokens of a prompt, its last: a process may have one CPU thread for them
# Nats a token. Two models that were not trained from one another are farther apart; the same
# weights in bfloat16 and in float32 are ten times nearer.
UNLIKE = 0.3


@dataclass(frozen=True)
class Probe:
    """Prompts and a response to each, whose log-probabilities tell one student from another."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Probe:
        """From rows with responses, on which training acts most; else from halves of prompts."""
        prompts, responses = [], []
        for row in rows[:ROWS]:
            ids = next((ids for ids in row.get("completion_ids") or [] if ids), None)
            half = len(row["prompt_ids"]) // 2
            before = row["prompt_ids"] if ids else row["prompt_ids"][:half]
            prompts.append(list(before)[-BEFORE:])
            responses.append([list(ids or row["prompt_ids"][half:])[:TOKENS]])
        return cls(prompts, responses)

    def local(self, checkpoint: Checkpoint) -> list[float]:
        """The log-probabilities in this process, on the CPU: a server may fill the GPU."""
        model = checkpoint.load("cpu")
        found = score_responses(model, self.prompts, self.responses, normalize="sum", impl="torch")
        return [logp for [logp] in found]

    def served(self, engine: ServerEngine) -> list[float]:
        """The same of the servers."""
        return [logp for [logp] in engine.logps(self.prompts, self.responses)]

    def apart(self, one: Sequence[float], other: Sequence[float]) -> float:
        """The mean difference in nats a token."""
        tokens = sum(len(ids) for [ids] in self.responses)
        return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / tokens


def difference(
    probe: Probe, engine: ServerEngine, wanted: Sequence[float], others: Sequence[Sequence[float]]
) -> str | None:
    """Why the servers do not have the wanted weights; None if they do.

    The student of the round before differs little after a small step, and a server's data type
    moves its numbers too. So the nearest one counts.

    Args:
        probe: what they are asked.
        engine: the servers.
        wanted: the log-probabilities of the wanted weights.
        others: those of weights that they may still have.
    """
    found = probe.served(engine)
    apart = probe.apart(found, wanted)
    if apart > UNLIKE:
        return f"it serves other weights: they are {apart:.3g} nats a token from those of the file"
    if any(probe.apart(found, other) < apart for other in others):
        return "it still serves the weights of the round before"
    return None
