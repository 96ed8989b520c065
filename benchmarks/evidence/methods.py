"""The methods that are compared: which responses each reads, and the loss that it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pad_fast.files.stored_rows import Row

BASE, REFERENCE = "base", "seqkd"
OWN, BEST, PAIR, TEACHER, MIXED = "own", "best", "pair", "teacher", "mixed"
NEEDS_ANSWERS = (TEACHER, MIXED)
WHOLE_GROUP = (OWN, MIXED)
TOKEN_KD = "token_kd"
TEACHER_BETA = 3.0  # one factor of the teacher's rewards for all losses that have one

_WEIGHTED = {"likelihood_on": "weighted", "likelihood_beta": 10.0}


@dataclass(frozen=True)
class Method:
    """A way to train a student on a scored group of responses.

    Args:
        name: its name in records.
        title: its name in tables.
        reads: which members of a group it reads. ``own``: the student's samples. ``best``: the one
            that the teacher rewards most. ``pair``: the best and the worst. ``teacher``: the
            teacher's answer. ``mixed``: all samples but the last, and the teacher's answer.
        options: fields of PADConfig.
        has_beta: whether ``beta`` is tuned.
        trainer: "pad" for PADTrainer, or ``token_kd`` for KL at each token.
    """

    name: str
    title: str
    reads: str
    options: dict[str, Any] = field(default_factory=dict)
    has_beta: bool = False
    trainer: str = "pad"

    @property
    def needs_answers(self) -> bool:
        """Whether the teacher's own answers are read, and not only its scores."""
        return self.reads in NEEDS_ANSWERS

    @property
    def is_bound(self) -> bool:
        """Whether more is read than answers and scores: the teacher's probabilities of each token.

        That needs its weights and one tokenizer for both, so it competes with no other method.
        """
        return self.trainer == TOKEN_KD


def _ppd(divergence: str, **more: Any) -> dict[str, Any]:
    return {"loss": "ppd", "divergence": divergence, "teacher_beta": TEACHER_BETA, **more}


def _composed(weight: float, on: str) -> dict[str, Any]:
    more = _WEIGHTED if on == "weighted" else {"likelihood_on": on}
    return _ppd("kl", likelihood_weight=weight, **more)


# In the order of worth: what is left when time ends is the end of this list.
_ALL = (
    Method("seqkd", "SeqKD", TEACHER, {"loss": "rft"}),
    Method("rft", "RFT (SFT on the best of n)", BEST, {"loss": "rft"}),
    Method("ppd_kl", "PPD-KL", OWN, _ppd("kl"), has_beta=True),
    Method(
        "weighted",
        "composed: weighted likelihood, teacher's answer",
        MIXED,
        {"preference_weight": 0.0, "likelihood_weight": 1.0, **_WEIGHTED},
    ),
    Method("dpo", "DPO, per token", PAIR, {"loss": "dpo", "anchor": "start"}, has_beta=True),
    Method(
        "weighted_own",
        "composed: weighted likelihood, own samples",
        OWN,
        {"preference_weight": 0.0, "likelihood_weight": 1.0, **_WEIGHTED},
    ),
    Method(
        "weighted_kl",
        "composed: PPD-KL + weighted likelihood, teacher's answer",
        MIXED,
        _composed(100.0, "weighted"),
        has_beta=True,
    ),
    Method("best_kl", "composed: PPD-KL + best, own samples", OWN, _composed(10.0, "best"), True),
    Method("simpo", "SimPO", PAIR, {"loss": "simpo", "gamma": 1.0}, has_beta=True),
    Method(
        "paper",
        "PPD-JSD, factors of the paper",
        OWN,
        {"loss": "ppd", "divergence": "jsd", "beta": 10.0, "teacher_beta": 10.0},
    ),
    Method(
        "listnet",
        "ListNet",
        OWN,
        {"loss": "listnet", "teacher_beta": TEACHER_BETA},
        has_beta=True,
    ),
    Method(
        "plackett_luce_dpo",
        "Plackett-Luce DPO, per token",
        OWN,
        {"loss": "plackett_luce_dpo", "anchor": "start"},
        has_beta=True,
    ),
    Method("pro", "PRO", OWN, {"loss": "pro", "teacher_beta": TEACHER_BETA}, has_beta=True),
    Method("vpd", "VPD", OWN, {"loss": "vpd"}, has_beta=True),
    Method("ppd_jsd", "PPD-JSD", OWN, _ppd("jsd"), has_beta=True),
    Method("reverse_kl", "PPD, reverse KL", OWN, _ppd("reverse_kl"), has_beta=True),
    Method(
        "teacher_kl",
        "composed: PPD-KL + teacher's answer",
        MIXED,
        _composed(100.0, "teacher"),
        has_beta=True,
    ),
    Method(TOKEN_KD, "KL at each token of own samples (bound)", OWN, trainer=TOKEN_KD),
)
METHODS = {method.name: method for method in _ALL}


def members(reads: str, row: Row) -> list[int]:
    """The indices of a scored row's responses that a method reads.

    Args:
        reads: see :class:`Method`.
        row: with ``teacher_rewards`` and, where the teacher's answer is a member,
            ``from_teacher``.

    Raises:
        ValueError: the teacher's answer is to be read, and is not there.
    """
    rewards = row["teacher_rewards"]
    theirs = row.get("from_teacher") or [False] * len(rewards)
    own = [i for i, other in enumerate(theirs) if not other]
    answers = [i for i, other in enumerate(theirs) if other]
    if reads in NEEDS_ANSWERS and not answers:
        raise ValueError(
            f"a method that reads {reads!r} needs the teacher's answer in every group, and prompt "
            f"{row.get('prompt_id')} has none; make the pool with teacher_response: greedy"
        )
    best = max(own, key=lambda i: rewards[i])
    return {
        OWN: own,
        BEST: [best],
        PAIR: [best, min(own, key=lambda i: rewards[i])],
        TEACHER: answers,
        MIXED: own[:-1] + answers,
    }[reads]


def training_rows(
    method: Method, rows: Sequence[Row], noise: float = 0.0, seed: int = 0
) -> list[Row]:
    """The rows that the method trains on.

    Args:
        method: chooses the responses.
        rows: scored.
        noise: standard deviation of normal noise on the teacher's rewards, in multiples of the
            median standard deviation within a group.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    groups = [[row["teacher_rewards"][i] for i in members(OWN, row)] for row in rows]
    spread = float(np.median([np.std(group) for group in groups]))
    found = []
    for row in rows:
        # The same noise for each method: it is drawn for the whole group before a choice is made,
        # and once for a text, else the luckiest of its copies would be the best response.
        drawn = rng.normal(0.0, 1.0, len(row["teacher_rewards"])) * noise * spread
        texts = [tuple(ids) for ids in row["completion_ids"]]
        rewards = [
            float(reward + drawn[texts.index(text)])
            for reward, text in zip(row["teacher_rewards"], texts, strict=True)
        ]
        noisy = {**row, "teacher_rewards": rewards}
        theirs = row.get("from_teacher") or [False] * len(rewards)
        kept = members(method.reads, noisy)
        found.append(
            {
                "prompt_ids": row["prompt_ids"],
                "completion_ids": [row["completion_ids"][i] for i in kept],
                "finish_reasons": [row["finish_reasons"][i] for i in kept],
                "teacher_rewards": [rewards[i] for i in kept],
                "anchor_rewards": [row["student_rewards"][i] for i in kept],
                "from_teacher": [theirs[i] for i in kept],
            }
        )
    return found
