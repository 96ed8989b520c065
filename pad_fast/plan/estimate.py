"""The estimates of a run's pieces of work: batches, tokens, peak memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pad_fast.pipeline.batch_sizes import SAMPLED, SCORED
from pad_fast.plan.case import Case, group_tokens
from pad_fast.plan.peaks import Peaks
from pad_fast.plan.speeds import Speeds
from pad_fast.plan.work import ANSWERS, ASK, LOAD, SAMPLE, SCORE, STUDENT, TRAIN, Piece, Work


@dataclass(frozen=True)
class Estimate:
    """A piece of work, or one training step with some settings.

    Attributes:
        title: of the piece; "train" for a step.
        batch: the size of a batch, in words.
        peak: bytes; None where a server does the work.
        seconds: of one rank for all rounds, or of a step; None where a server does the work.
        count: responses, questions, steps or models, in all rounds.
        tokens: made or read for them.
        kind: one of the words of :mod:`pad_fast.plan.work`.
        titles: of the piece in each round.
        settings: the run's settings that were changed for this estimate.
    """

    title: str
    batch: str
    peak: int | None
    seconds: float | None
    count: int = 0
    tokens: int = 0
    kind: str = TRAIN
    titles: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


class Estimator:
    """Estimates the pieces of a run.

    Args:
        case: what is planned.
        peaks: of the memory.
        speeds: of the work.
    """

    def __init__(self, case: Case, peaks: Peaks, speeds: Speeds) -> None:
        self.case, self.config, self.peaks, self.speeds = case, case.config, peaks, speeds

    def pieces(self) -> list[Estimate]:
        """All pieces of the run."""
        return [self.piece(piece) for piece in Work(self.config, self.case.counts).pieces()]

    def piece(self, piece: Piece, tokens: int | None = None) -> Estimate:
        """A piece; ``tokens`` replace the most in a batch of it."""
        if self.case.served(piece.role) and piece.kind in (LOAD, SAMPLE, SCORE, ASK):
            return self._served(piece)
        kinds = {
            LOAD: self._load,
            SAMPLE: self._sample,
            SCORE: self._score,
            ASK: self._ask,
            TRAIN: self._train,
            ANSWERS: self._answers,
        }
        return kinds[piece.kind](piece, tokens)

    # Pieces.

    def _served(self, piece: Piece) -> Estimate:
        """Work of a server: what it is asked is counted, and nothing of it is known besides."""
        count, tokens = self._counts(piece)
        batch = "by its server" if piece.kind != LOAD else "its server holds it"
        return self._estimate(piece, batch, None, None, count=count, tokens=tokens)

    def _load(self, piece: Piece, _: int | None) -> Estimate:
        seconds = piece.times * self.speeds.loading(piece.role)
        seconds += piece.trained * self.case.trained_bytes / self.case.machine.hashed
        return self._estimate(piece, "", self.peaks.load(piece.role), seconds, count=piece.times)

    def _sample(self, piece: Piece, tokens: int | None) -> Estimate:
        """Batches of a shard's prompts; a batch goes on until its longest response ends."""
        role, n, most = piece.role, piece.n, tokens or self._limit(SAMPLED)
        in_shard = min(piece.prompts, self.config.shard_size)
        largest, peak = self.peaks.sample(role, n, in_shard, most)
        mean = self.case.lengths[role].mean
        size = min(in_shard, self.peaks.prompts_of_batch(mean, piece.per_prompt, most))
        seconds = 0.0
        for prompts, times in self._batches(piece.prompts, size):
            first, token = self.speeds.sampling(role, n, prompts)
            seconds += times * (first + (self.config.max_new_tokens - 1) * token)
        if piece.rewards:
            shared = max(1, min(in_shard, self._prompts_scored(role, n)))
            seconds += piece.prompts / shared * self.speeds.scoring(role, n, shared)
            seconds += self.speeds.trying(role, n, shared)
            peak = max(peak, self.peaks.score(role, n, in_shard, self._limit(SCORED)))
        batch = f"{largest} x {n} responses" if n else f"{largest} greedy responses"
        return self._estimate(piece, batch, peak, seconds, changed=_changed(SAMPLED, tokens))

    def _batches(self, prompts: int, size: int) -> Iterator[tuple[int, int]]:
        """The sizes of a piece's batches and how many have each: no batch is of two shards."""
        shard = self.config.shard_size
        for part, times in ((shard, prompts // shard), (prompts % shard, 1)):
            if times and part // size:
                yield size, times * (part // size)
            if times and part % size:
                yield part % size, times

    def _score(self, piece: Piece, tokens: int | None) -> Estimate:
        role, n, most = piece.role, piece.n, tokens or self._limit(SCORED)
        in_shard = min(piece.prompts, self.config.shard_size)
        prompts = min(in_shard, self._prompts_scored(role, n))
        seconds = piece.prompts / prompts * self.speeds.scoring(role, n, prompts)
        if piece.tries:
            tried = self.speeds.trying(role, n, prompts)
            seconds += tried * piece.tries / len(piece.titles)
        peak, batch = self.peaks.score(role, n, in_shard, most), f"{most:,} tokens"
        return self._estimate(piece, batch, peak, seconds, changed=_changed(SCORED, tokens))

    def _prompts_scored(self, role: str, n: int) -> int:
        """How many prompts of typical length are scored together."""
        shape = self.case.shape(self.case.lengths[role].mean, self.case.response)
        reading = self.case.reading(role, self.case.shares)
        tokens = group_tokens(shape._replace(responses=max(1, n)), reading)
        return max(1, self._limit(SCORED) // tokens)

    def _ask(self, piece: Piece, tokens: int | None) -> Estimate:
        most, questions = tokens or self._limit(SCORED), piece.prompts * piece.questions
        in_shard = min(piece.prompts, self.config.shard_size)
        largest, peak = self.peaks.ask(piece.n, in_shard, piece.questions, most)
        batch = max(1, min(in_shard * piece.questions, most // self._question(piece)))
        seconds = questions / batch * self.speeds.asking(piece.n, batch)
        changed = _changed(SCORED, tokens)
        return self._estimate(piece, f"{largest} questions", peak, seconds, changed=changed)

    def _question(self, piece: Piece) -> int:
        mean = self.case.lengths[piece.role].mean
        return self.case.question_tokens(piece.n, mean, self.case.response)[0]

    def _train(self, piece: Piece, _: int | None) -> Estimate:
        step, steps = self.step(), self.case.steps(piece.prompts)
        seconds = steps * (step.seconds or 0.0)
        return self._estimate(piece, step.batch, step.peak, seconds, count=steps)

    def _answers(self, piece: Piece, _: int | None) -> Estimate:
        """As many steps on as many prompts, each with one answer."""
        case, settings = self.case, self.case.train_settings
        steps = self.config.rounds * case.steps(piece.prompts // self.config.rounds)
        batch = settings["per_device_train_batch_size"]
        share = batch * settings["gradient_accumulation_steps"]
        alone = {**settings, "share_prefix": False}
        peak = self.peaks.train_answers(alone)
        seconds = steps * self.speeds.answers(share)
        return self._estimate(piece, f"{batch} answers", peak, seconds, count=steps)

    # Training steps.

    def step(self, **changes: Any) -> Estimate:
        """One optimizer step of a rank with its micro-batches; ``changes`` replace settings."""
        settings = self.case.train_settings | changes
        prompts, limit = settings["per_device_train_batch_size"], self.case.max_tokens(settings)
        peak = self.peaks.train(settings)
        micro = settings["gradient_accumulation_steps"] * self.speeds.micro_batch(settings)
        seconds = micro + self.speeds.step(settings)
        slices = "" if limit is None else f", {limit:,} tokens at a time"
        batch = f"{prompts} x {self.config.responses_per_prompt} responses{slices}"
        return Estimate("train", batch, peak, seconds, settings=changes)

    def alternatives(self) -> Iterator[Estimate]:
        """Steps with one setting changed at a time, then with all that save memory."""
        given = self.case.train_settings
        if self.case.can_share:
            yield self.step(share_prefix=not given["share_prefix"])
        yield self.step(gradient_checkpointing=not given["gradient_checkpointing"])
        if given["per_device_train_batch_size"] > 1:
            # one prompt at a time, and as many in a step
            prompts = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
            yield self.step(per_device_train_batch_size=1, gradient_accumulation_steps=prompts)
        yield self._sliced()
        frugal = {} if given["gradient_checkpointing"] else {"gradient_checkpointing": True}
        if self.case.can_share and not given["share_prefix"]:
            frugal["share_prefix"] = True
        if frugal:
            yield self._sliced(**frugal)

    def _sliced(self, **changes: Any) -> Estimate:
        """A step with the largest slices that fit.

        The tokens of the step are halved until they fit; if none do, a slice is one response.
        """
        settings = self.case.train_settings | changes
        shape = self.case.shape(self.case.lengths[STUDENT].longest)
        reading = self.case.reading(STUDENT, settings["share_prefix"])
        step = settings["per_device_train_batch_size"] * group_tokens(shape, reading)
        limit = min(step, self.case.max_tokens(settings) or step) // 2
        while limit > shape.prompt + shape.response:
            peak = self.peaks.train({**settings, "max_tokens_per_step": limit})
            if self.case.machine.fits(peak):
                break
            limit //= 2
        return self.step(**changes, max_tokens_per_step=max(1, limit))

    # Counts.

    def _limit(self, name: str) -> int:
        return self.case.batch_tokens(name)

    def _counts(self, piece: Piece) -> tuple[int, int]:
        """Units and tokens of a piece in one round."""
        response = self.case.response
        if piece.kind in (SAMPLE, SCORE):
            count = piece.prompts * piece.per_prompt
            return count, count * response
        if piece.kind == ASK:
            count = piece.prompts * piece.questions
            return count, count * self._question(piece)
        mean = self.case.lengths[STUDENT].mean
        if piece.kind in (TRAIN, ANSWERS):
            epochs = self.case.training.num_train_epochs
            return 0, round(piece.prompts * (mean + piece.n * response) * epochs)
        return piece.times, 0

    def _estimate(
        self,
        piece: Piece,
        batch: str,
        peak: int | None,
        seconds: float | None,
        *,
        changed: dict[str, Any] | None = None,
        **counts: int,
    ) -> Estimate:
        """All rounds of a piece, of which every rank does its share; each rank loads models."""
        rounds, count, tokens = len(piece.titles), *self._counts(piece)
        count, tokens = counts.get("count", count), counts.get("tokens", tokens)
        # A rank does its share of the work; each loads models, and each takes part in each step.
        own = piece.kind in (LOAD, TRAIN, ANSWERS)
        share = 1.0 if own else 1 / min(self.case.ranks.number, max(1, self._shards(piece)))
        return Estimate(
            piece.title,
            batch,
            peak,
            None if seconds is None else rounds * seconds * share,
            rounds * count,
            rounds * tokens,
            piece.kind,
            piece.titles,
            changed or {},
        )

    def _shards(self, piece: Piece) -> int:
        """How many parts of a piece ranks can take."""
        return math.ceil(piece.prompts / self.config.shard_size)


def only(estimate: Estimate, title: str) -> Estimate:
    """The share of one of several equal rounds."""
    rounds = len(estimate.titles)
    seconds = None if estimate.seconds is None else estimate.seconds / rounds
    count, tokens = estimate.count // rounds, estimate.tokens // rounds
    return replace(
        estimate, title=title, titles=(title,), seconds=seconds, count=count, tokens=tokens
    )


def _changed(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}
