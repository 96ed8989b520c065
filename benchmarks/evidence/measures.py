"""What is measured of a student: a number for each prompt, from which tables are computed.

A record keeps the number of every prompt, so that intervals and paired comparisons need no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.evidence.pools import Pool
from pad_fast.evaluation.agreement import ranking_agreement
from pad_fast.files.stored_rows import Row
from pad_fast.models.scoring import score_responses
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Sample, Sampling
from pad_fast.pipeline.sample.generate import columns

Values = list[float | None]
Ids = list[int]
Groups = list[list[Ids]]

# The heading of each measure in tables. All are means over the prompts.
MEASURES = {
    "greedy_right": "right, greedy",
    "sampled_right": "right, sampled",
    "pass": "pass@n",
    "distinct_right": "distinct right",
    "distinct": "distinct of n",
    "greedy_teacher": "teacher logp, greedy",
    "sampled_teacher": "teacher logp, sampled",
    "tau_fixed": "tau fixed",
    "top1_fixed": "top-1 fixed",
    "tau_fresh": "tau fresh",
    "top1_fresh": "top-1 fresh",
    "best_logp": "logp of best",
    "answer_logp": "logp of teacher's answer",
    "entropy": "entropy",
    "repetition": "repetition",
    "unfinished": "unfinished",
}


@dataclass(frozen=True)
class Examination:
    """The prompts on which students are measured, with what is asked of the teacher once.

    Args:
        pool: its run has the engines, its held-out groups are the fixed ones.
        split: "heldout" or "validation"; there are no fixed groups of the latter.
    """

    pool: Pool
    split: str

    @cached_property
    def rows(self) -> list[Row]:
        """The prompts, with token ids."""
        size = self.pool.size
        count = size.heldout if self.split == "heldout" else size.validation
        found = self.pool.world.prompts(self.pool.models, self.split, count)
        student = Checkpoint("student", str(self.pool.student))
        return [{**row, "prompt_ids": student.prompt_ids(row["prompt"])} for row in found]

    @cached_property
    def prompts(self) -> list[Ids]:
        """The token ids of the prompts."""
        return [row["prompt_ids"] for row in self.rows]

    @cached_property
    def teacher_prompts(self) -> list[Ids]:
        """The prompts as the teacher is shown them."""
        return [self.pool.teacher.prompt_ids(row["prompt"]) for row in self.rows]

    @cached_property
    def fixed(self) -> list[Row]:
        """The fixed groups in the order of the prompts; none of the validation prompts."""
        if self.split != "heldout":
            return []
        groups = {tuple(row["prompt_ids"]): row for row in self.pool.fixed}
        return [groups[tuple(ids)] for ids in self.prompts]

    @cached_property
    def answers(self) -> list[Ids]:
        """The teacher's greedy answers."""
        return self.pool.teacher_answers(self.teacher_prompts)

    def examples(self, student: Path, count: int) -> list[Row]:
        """The first prompts with the student's greedy answers."""
        model, how = self.pool.trained(student), Sampling(self.pool.world.longest, 0.0)
        with self.pool.run.engine(model) as engine:
            groups = engine.sample(self.prompts[:count], 1, how, seed=0)
        return [
            {"prompt": row["prompt"][-1]["content"], "answer": _texts(model, group)[0]}
            for row, group in zip(self.rows, groups, strict=False)
        ]

    def measure(self, student: Path, seed: int, temperature: float = 1.0) -> dict[str, Values]:
        """The measures of a student, a number for each prompt; None where it does not apply.

        Args:
            student: folder.
            seed: of its samples.
            temperature: of its samples.
        """
        model, n = self.pool.trained(student), self.pool.size.generations
        longest = self.pool.world.longest
        with self.pool.run.engine(model) as engine:
            sample = engine.sample
            greedy = sample(self.prompts, 1, Sampling(longest, temperature=0.0), seed)
            fresh = sample(self.prompts, n, Sampling(longest, temperature), seed)
            ids = [[one.ids for one in group] for group in fresh]
            ends = [[one.finish_reason != "stop" for one in group] for group in fresh]
            own = engine.logps(self.prompts, ids)
            # At a temperature of 1 the samples were drawn from what has just been computed.
            drawn = own if temperature == 1 else _logps(model, self.prompts, ids, temperature)
            answered = engine.rewards(self.prompts, [[ids] for ids in self.answers])
            found: dict[str, Values] = {
                "answer_logp": _first(answered),
                "entropy": [-_mean(group) for group in drawn],
                "unfinished": [_mean(group) for group in ends],
                "repetition": [_mean([repetition(one) for one in group]) for group in ids],
            }
            if self.fixed:
                found |= self._on_fixed(engine.rewards(self.prompts, self._fixed_ids))
        first = [[group[0].ids] for group in greedy]
        texts = [[_texts(model, group) for group in part] for part in (greedy, fresh)]
        with self.pool.run.engine(self.pool.teacher) as teacher:
            scores = teacher.rewards(self.teacher_prompts, ids)
            found |= {
                "greedy_teacher": _first(teacher.rewards(self.teacher_prompts, first)),
                "sampled_teacher": [_mean(group) for group in scores],
                **_agreement(engine.rewards_of(own, ids), scores, "fresh"),
            }
        return found | self._right(*texts)

    @property
    def _fixed_ids(self) -> Groups:
        return [row["completion_ids"] for row in self.fixed]

    def _on_fixed(self, own: list[list[float]]) -> dict[str, Values]:
        """The student's ranking of the fixed groups, and its likelihood of their best responses."""
        scores = [row["teacher_rewards"] for row in self.fixed]
        best = [max(range(len(group)), key=group.__getitem__) for group in scores]
        found = _agreement(own, scores, "fixed")
        return {**found, "best_logp": [group[i] for group, i in zip(own, best, strict=True)]}

    def _right(self, greedy: list[list[str]], fresh: list[list[str]]) -> dict[str, Values]:
        """How good responses are: in the tiny world 1 for a right answer, else 0."""
        world = self.pool.world
        if world.grade is None:
            return {"distinct": [float(len(set(texts))) for texts in fresh]}
        names = ("greedy_right", "sampled_right", "pass", "distinct_right", "distinct")
        found: dict[str, Values] = {name: [] for name in names}
        for row, (first,), texts in zip(self.rows, greedy, fresh, strict=True):
            grades = [world.grade(row, text) for text in texts]
            right = [text for text in texts if world.is_right(row, text)]
            values = (
                world.grade(row, first),
                _mean(grades),
                max(grades),
                len(set(right)),
                len(set(texts)),
            )
            for name, value in zip(names, values, strict=True):
                found[name].append(float(value))
        return found


def means(values: dict[str, Values]) -> dict[str, float | None]:
    """The mean of each measure over the prompts that have it."""
    known = {name: [v for v in found if v is not None] for name, found in values.items()}
    return {name: _mean(found) if found else None for name, found in known.items()}


def score(values: dict[str, Values], names: Sequence[str]) -> float:
    """What tuning maximises: the mean of some measures' means."""
    found = means({name: values[name] for name in names})
    return _mean([value for value in found.values() if value is not None])


def repetition(ids: Sequence[int], length: int = 3) -> float:
    """The share of a response's runs of ``length`` tokens that occurred before in it."""
    runs = Counter(tuple(ids[i : i + length]) for i in range(len(ids) - length + 1))
    total = sum(runs.values())
    return 1 - len(runs) / total if total else 0.0


def _logps(
    model: Checkpoint, prompts: list[Ids], groups: Groups, temperature: float
) -> list[list[float]]:
    """log p of each sample, in nats, under what it was drawn from."""
    return score_responses(model.model, prompts, groups, normalize="sum", temperature=temperature)


def _texts(model: Checkpoint, group: Sequence[Sample]) -> list[str]:
    return columns(group, model.eos_token_ids, model.chat.encoder)["completions"]


def _agreement(own: list[list[float]], scores: list[list[float]], name: str) -> dict[str, Values]:
    found = ranking_agreement(torch.tensor(own), torch.tensor(scores), reduction="none")
    return {
        f"{short}_{name}": [None if v != v else v for v in found[long].tolist()]
        for short, long in (("tau", "kendall_tau"), ("top1", "top1"))
    }


def _first(groups: list[list[float]]) -> Values:
    return [group[0] for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
