"""Whether servers have the weights of a student, told from their numbers and from their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pad_fast.files.stored_rows import Row
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.packing import pack_rows
from pad_fast.models.rewards import packed_logprobs
from pad_fast.pipeline.checkpoint import Checkpoint, same_path
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.server_engine import Served, ServerEngine

FEW, MANY = 16, 64  # responses: more are read where fewer do not tell, and no name does
TOKENS = 64  # the first that are read of a response
BEFORE = 128  # tokens of a prompt, its last: a process may have one CPU thread for them
# Nats a token. Two models that were not trained from one another are farther apart; the same
# weights in bfloat16 and in float32 are ten times nearer.
UNLIKE = 0.3
# On the line from another student (0) to the wanted one (1): the largest standard error with which
# numbers tell, and how near to one end they have to be.
SURE, NEAR = 1 / 8, 1 / 3

Logps = list[NDArray[np.float64]]  # for each response, those of its tokens


class Undecided(ServerError):
    """A server of which neither numbers nor names tell which student it has."""


@dataclass(frozen=True)
class Probe:
    """Prompts and a response to each, whose log-probabilities tell one student from another."""

    prompts: list[list[int]]
    responses: list[list[int]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Probe:
        """From rows with responses, on which training acts most; else from halves of prompts."""
        prompts, responses = [], []
        for row in rows[:MANY]:
            ids = next((ids for ids in row.get("completion_ids") or [] if ids), None)
            half = len(row["prompt_ids"]) // 2
            before = row["prompt_ids"] if ids else row["prompt_ids"][:half]
            prompts.append(list(before)[-BEFORE:])
            responses.append(list(ids or row["prompt_ids"][half:])[:TOKENS])
        return cls(prompts, responses)

    def first(self, count: int) -> Probe:
        """A smaller probe."""
        return Probe(self.prompts[:count], self.responses[:count])

    @torch.no_grad()
    def local(self, checkpoint: Checkpoint) -> Logps:
        """The log-probabilities in this process, on the CPU: a server may fill the GPU.

        The weights are rounded as the run rounds them, and the arithmetic is float32: what rounding
        adds to the difference of two students would look like half of the way between them.
        """
        model = causal_lm(checkpoint.load("cpu"))
        if not getattr(model, "is_quantized", False):  # which transformers refuses to change
            model = model.float()
        pairs = zip(self.prompts, self.responses, strict=True)
        found = [packed_logprobs(model, pack_rows([pair]), impl="torch") for pair in pairs]
        return [logps.double().numpy() for logps in found]

    def served(self, engine: ServerEngine) -> Logps:
        """The same of the servers."""
        found = engine.token_logps(self.prompts, [[ids] for ids in self.responses])
        return [np.array(logps) for [logps] in found]


def apart(one: Logps, other: Logps) -> float:
    """The mean difference of responses in nats a token."""
    tokens = sum(map(len, one))
    return sum(abs(float((a - b).sum())) for a, b in zip(one, other, strict=True)) / tokens


def place(found: Logps, wanted: Logps, other: Logps) -> tuple[float, float]:
    """Where numbers are on the line from another student's (0) to the wanted one's (1).

    Least squares over the tokens; what the line does not explain is the server's rounding. Its
    standard error takes the tokens of a response as independent or as one, whichever is larger.

    Returns:
        The place and its standard error; (1, 0) for students that compute the same.
    """
    moved = [a - b for a, b in zip(wanted, other, strict=True)]
    size = sum(float(d @ d) for d in moved)
    if size == 0:
        return 1.0, 0.0
    seen = [a - b for a, b in zip(found, other, strict=True)]
    at = sum(float(d @ s) for d, s in zip(moved, seen, strict=True)) / size
    rest = [d * (s - at * d) for d, s in zip(moved, seen, strict=True)]
    alone = sum(float(r @ r) for r in rest)
    together = sum(float(r.sum()) ** 2 for r in rest) * len(rest) / max(1, len(rest) - 1)
    return at, math.sqrt(max(alone, together)) / size


class WeightsCheck:
    """The check that a server has the wanted student and none of the others.

    Numbers decide where they tell. A training may move the student less than a server's data type
    rounds: then the path that the server says it serves decides.

    Args:
        rows: give what servers are asked.
        wanted: the student that they should have.
        others: those that they may still have.
    """

    def __init__(
        self, rows: Sequence[Row], wanted: Checkpoint, others: Sequence[Checkpoint]
    ) -> None:
        self.wanted, self.others, probe = wanted, others, Probe.of(rows)
        sizes = {min(size, len(probe.prompts)) for size in (FEW, MANY)}
        self.parts = [probe.first(size) for size in sorted(sizes)]
        self._known: dict[tuple[str, int], Logps] = {}

    def __call__(self, single: ServerEngine) -> None:
        """Return if one server has the wanted weights.

        Raises:
            Undecided: nothing tells whether it has.
            ServerError: it has others.
        """
        name, here = self._named(single.served), single.first
        for part in self.parts:
            found, wanted = part.served(single), self._local(self.wanted, part)
            if (far := apart(found, wanted)) > UNLIKE:
                raise ServerError(
                    f"{here}: it serves other weights: they are {far:.2g} nats a token from those "
                    "of the file"
                )
            near = []  # students that it may have as well as the wanted one
            for other in self.others:
                at, error = place(found, wanted, self._local(other, part))
                if error <= SURE and abs(at) < NEAR:
                    raise ServerError(f"{here}: {self._told_by_numbers(name, other)}")
                if error > SURE or abs(at - 1) >= NEAR:
                    near.append(other.path)
            if not near:
                return
            if name is not None:
                break
        if name is None:
            raise Undecided(f"{here}: {self._not_told(single, near)}")
        if name != self.wanted.path:
            raise ServerError(f"{here}: it still serves {name}")

    def _named(self, served: Served) -> str | None:
        """The path of the student that a server says it serves; None where it says no such path.

        The folder that it has loaded counts first. The name that somebody gave it may have stayed
        the same, so it counts only as that of the wanted student.
        """
        students = [self.wanted.path, *(other.path for other in self.others)]
        known = next((path for path in students if same_path(path, served.root)), None)
        if known is None and same_path(self.wanted.path, served.model):
            return self.wanted.path
        return known

    def _local(self, student: Checkpoint, part: Probe) -> Logps:
        key = student.path, len(part.prompts)
        if key not in self._known:
            self._known[key] = part.local(student)
        return self._known[key]

    def _told_by_numbers(self, name: str | None, other: Checkpoint) -> str:
        if name == self.wanted.path:
            return (
                f"it names {name}, and its log-probabilities are those of {other.path}; start it "
                "again, it may have been started before these weights were there"
            )
        return f"it still serves the weights of {other.path}"

    def _not_told(self, single: ServerEngine, near: Sequence[str]) -> str:
        """Without numbers, which a server may round otherwise each time that it is asked."""
        return (
            f"its log-probabilities do not tell this student from {' or '.join(near)}, since the "
            "training moved them little beside what the server rounds, and it serves "
            f"{single.served.root}, which is the path of none of them; serve {self.wanted.path}, "
            f"or add --served-model-name {self.wanted.path}"
        )
