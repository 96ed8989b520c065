"""The work of a run, piece by piece: what is loaded, sampled, read, asked and trained, how often.

A piece has the title of its progress bar, which is also its name in the run's costs.jsonl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pad_fast.evaluation import model_names
from pad_fast.pipeline.compared import phase_of
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.score.asked_questions import configured_questions

LOAD, SAMPLE, SCORE, ASK, TRAIN, ANSWERS = "load", "sample", "score", "ask", "train", "answers"
STUDENT, TEACHER, REWARD_MODEL = "student", "teacher", "reward_model"


@dataclass(frozen=True)
class Counts:
    """How many prompts a run has, and what comes with them.

    Attributes:
        train: prompts that rounds draw from.
        validation: prompts that choose among the rounds.
        heldout: held-out prompts.
        validation_answers: whether a prompt of the validation has an answer to compare with.
        heldout_answers: whether a held-out prompt has one.
        given: whether responses to the training prompts are given for the first round.
        scored: whether these have scores.
        heldout_given: whether responses to the held-out prompts are given.
        anchored: whether a training compares its student with the one that it starts from.
    """

    train: int
    validation: int = 0
    heldout: int = 0
    validation_answers: bool = False
    heldout_answers: bool = False
    given: bool = False
    scored: bool = False
    heldout_given: bool = False
    anchored: bool = False


@dataclass(frozen=True)
class Piece:
    """A piece of work, or several that are equal but for the round.

    Attributes:
        titles: of each of them.
        kind: one of the words at the top of this module.
        role: of the model.
        prompts: of each.
        n: responses to each prompt; 0 asks for a greedy one.
        questions: about each prompt.
        rewards: whether the sampled responses are read once more, for the student's own rewards.
        times: how often a model is loaded.
        trained: how often it is a student of the run, whose files are compared with their checksums
            first.
        tries: in how many of the rounds its first scores check the model's output head and try
            which layout it takes, as the first ones after each loading do.
    """

    titles: tuple[str, ...]
    kind: str
    role: str
    prompts: int = 0
    n: int = 0
    questions: int = 0
    rewards: bool = False
    times: int = 1
    trained: int = 0
    tries: int = 0

    @property
    def per_prompt(self) -> int:
        """Responses to each prompt."""
        return max(1, self.n)

    @property
    def title(self) -> str:
        """One title for all, with the first and the last round where a round's number stands."""
        first, last = (re.split(r"(\d+)", title) for title in (self.titles[0], self.titles[-1]))
        pairs = zip(first, last, strict=True)
        return "".join(a if a == b else f"{a}–{b}" for a, b in pairs)


class Work:
    """Lists the pieces of a run.

    Args:
        config: the run's settings.
        counts: of its prompts.
    """

    def __init__(self, config: RunConfig, counts: Counts) -> None:
        self.config, self.counts = config, counts
        self.rounds = range(1, config.rounds + 1)
        self.in_round = config.prompts_per_round or counts.train
        self.distinct = min(counts.train, config.rounds * self.in_round)
        self.judge = TEACHER if config.teacher else REWARD_MODEL
        self.has_baseline = config.baseline == "seqkd"

    def pieces(self) -> list[Piece]:
        """All pieces in the order in which the first of each begins, the loading first."""
        own = [
            *self._given(),
            *self._sampling(),
            *self._scoring(),
            *self._training(),
            *self._evaluation(),
        ]
        own = [piece for piece in own if piece.titles and (piece.prompts or piece.kind == LOAD)]
        return [*self._loading(own), *own]

    def _titles(self, phase: str, first: int = 1) -> tuple[str, ...]:
        rounds = self.config.rounds
        return tuple(f"round {r}/{rounds} · {phase}" for r in self.rounds if r >= first)

    def _given(self) -> Iterator[Piece]:
        """The base student's rewards of given responses: of all, or of the first shard."""
        config, counts = self.config, self.counts
        if counts.heldout_given:
            n = config.heldout_num_generations or 0
            yield Piece(
                ("held-out responses · student",), SCORE, STUDENT, counts.heldout, n, tries=1
            )
        if counts.given:
            read = self.in_round if counts.anchored else min(self.in_round, config.shard_size)
            n = config.num_generations
            yield Piece(("given responses · student",), SCORE, STUDENT, read, n, tries=1)

    def _sampling(self) -> Iterator[Piece]:
        config, counts = self.config, self.counts
        if not counts.heldout_given:
            n = config.heldout_num_generations or 0
            yield _sampled(("held-out · sample",), counts.heldout, n, rewards=True)
        if config.teacher_response != "none":
            n = 0 if config.teacher_response == "greedy" else 1
            yield _sampled(("teacher's answers",), self.distinct, n, role=TEACHER)
        titles = self._titles("sample", 2 if counts.given else 1)
        yield _sampled(titles, self.in_round, config.num_generations, rewards=True)

    def _scoring(self) -> Iterator[Piece]:
        config, counts = self.config, self.counts
        if not config.has_judge:
            return
        if not (counts.heldout_given and counts.scored):
            n = config.heldout_num_generations or 0
            yield from self._judged(("held-out · teacher",), counts.heldout, n)
        titles = self._titles("teacher", 2 if counts.given and counts.scored else 1)
        together = counts.heldout > 0  # with the held-out groups, in the first round
        n, tries = config.responses_per_prompt, max(0, len(titles) - together)
        yield from self._judged(titles, self.in_round, n, tries)

    def _judged(
        self, titles: tuple[str, ...], prompts: int, n: int, tries: int | None = None
    ) -> Iterator[Piece]:
        """The log-probabilities of responses under the judge, and the questions about them."""
        score = tuple(f"{title}: score" for title in titles)
        tries = len(titles) if tries is None else tries
        yield Piece(score, SCORE, self.judge, prompts, n, tries=tries)
        if questions := len(configured_questions(self.config, n)):
            ask = tuple(f"{title}: calibrate" for title in titles)
            yield Piece(ask, ASK, self.judge, prompts, n, questions)

    def _training(self) -> Iterator[Piece]:
        config = self.config
        n = config.responses_per_prompt
        yield Piece(self._titles("train"), TRAIN, STUDENT, self.in_round, n)
        for name, options in config.methods.items():
            n = self._trained_on(options.get("train_on", "all"))
            yield Piece(self._titles(phase_of(name)), TRAIN, STUDENT, self.in_round, n)
        if self.has_baseline:
            titles = ("SeqKD · teacher's answers",)
            yield _sampled(titles, self.distinct, 0, role=TEACHER)
            last = self._titles("seqkd")[-1:]
            yield Piece(last, ANSWERS, STUDENT, self.in_round * config.rounds, 1)

    def _trained_on(self, origin: str) -> int:
        """The responses to a prompt that a training reads."""
        own = self.config.num_generations
        counts = {"own": own, "teacher": 1, "best": 1, "pair": min(2, own)}
        return counts.get(origin, self.config.responses_per_prompt)

    def _evaluation(self) -> Iterator[Piece]:
        counts, config = self.counts, self.config
        students = tuple(model_names.student(round) for round in (0, *self.rounds))
        names = tuple(f"validate {name}" for name in students)
        yield _sampled(names, counts.validation, 0)
        if not counts.validation_answers:
            yield from self._judged(names, counts.validation, 1)
        # Where there are answers to compare with, they say what the teacher can do.
        judged = bool(config.teacher) and not counts.heldout_answers and counts.heldout > 0
        if config.teacher:
            yield from self._evaluated((model_names.TEACHER,), role=TEACHER, judged=judged)
        base = (model_names.BASE,)
        if counts.heldout_given:
            yield from self._evaluated(base, fixed=False)
        else:
            yield _sampled(("evaluate student-00: greedy",), counts.heldout, 0)
        tries = len(self.rounds) - judged  # the teacher's samples come first
        yield from self._evaluated(students[1:], tries=tries)
        if config.methods:
            yield from self._evaluated(tuple(config.methods), tries=0)
        if self.has_baseline:
            yield from self._evaluated((model_names.SEQKD,), tries=0)

    def _evaluated(
        self,
        names: tuple[str, ...],
        role: str = STUDENT,
        *,
        fixed: bool = True,
        judged: bool = True,
        tries: int | None = None,
    ) -> Iterator[Piece]:
        """The evaluation of models on the held-out prompts."""
        prompts, n = self.counts.heldout, self.config.heldout_num_generations or 0

        def titles(part: str) -> tuple[str, ...]:
            return tuple(f"evaluate {name}{part}" for name in names)

        yield _sampled(titles(": greedy"), prompts, 0, role=role)
        own = role == STUDENT
        yield _sampled(titles(": sample"), prompts, n, role=role, rewards=own)
        if own and fixed:
            yield Piece(titles(": fixed groups"), SCORE, STUDENT, prompts, n)
        if judged and self.config.has_judge:
            yield from self._judged(titles(""), prompts, n, tries)

    def _loading(self, pieces: list[Piece]) -> Iterator[Piece]:
        """How often the weights of each model are loaded."""
        rounds, counts = self.config.rounds, self.counts
        kinds = {(piece.kind, piece.role, title) for piece in pieces for title in piece.titles}
        heldout = counts.heldout > 0
        begun = [
            title
            for kind, role, title in kinds
            if kind in (SAMPLE, TRAIN, ANSWERS) and role == STUDENT
            if not title.endswith(": sample")
        ]
        student = len(begun) + sum(piece.prompts > 0 for piece in self._given())
        judged = [title for kind, role, title in kinds if kind == SCORE and role == self.judge]
        first = [title for title in judged if title.startswith(("round", "held-out"))]
        together = len(first) - ("held-out · teacher: score" in first and len(first) > 1)
        scored = together + sum(title.startswith("validate") for title in judged)
        scored += rounds * (heldout and any(title.startswith("evaluate") for title in judged))
        answers = sum(
            kind == SAMPLE and role == TEACHER and not title.endswith(": sample")
            for kind, role, title in kinds
        )
        loads = {STUDENT: student, self.judge: scored}
        loads[TEACHER] = loads.get(TEACHER, 0) + answers
        for role, times in loads.items():
            if times:
                trained = sum(map(_is_of_trained, begun)) if role == STUDENT else 0
                yield Piece((f"load {role}",), LOAD, role, times=times, trained=trained)


def _is_of_trained(title: str) -> bool:
    """Whether the student that a piece loads came out of an earlier training of the run."""
    if title.startswith(("validate ", "evaluate ")):
        return model_names.BASE not in title
    return title.startswith("round ") and not title.startswith("round 1/") and "seqkd" not in title


def _sampled(
    titles: tuple[str, ...], prompts: int, n: int, *, role: str = STUDENT, rewards: bool = False
) -> Piece:
    tries = len(titles) if rewards else 0
    return Piece(titles, SAMPLE, role, prompts, n, rewards=rewards, tries=tries)
