"""Which settings to change where a run does not fit, or where questions cost more than they may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pad_fast.pipeline.batch_sizes import SAMPLED, SCORED
from pad_fast.pipeline.multiple_choice import questions
from pad_fast.plan.case import Case
from pad_fast.plan.estimate import Estimate, Estimator
from pad_fast.plan.work import ASK, SAMPLE, SCORE, Work

GIB = 2**30
# Questions that take more than so many times the time of the log-probabilities are worth a word.
WORTH_A_WORD = 3.0
FEW_OPPONENTS = 2


def advise(
    estimator: Estimator, pieces: Sequence[Estimate], steps: Sequence[Estimate]
) -> list[str]:
    """Lines of advice: first about what does not fit, then about questions."""
    machine = estimator.case.machine
    found = _about_batches(estimator, pieces)
    if not machine.fits(steps[0].peak or 0):
        found.append(_about_training(estimator, steps))
    return [*found, *_about_questions(estimator, pieces)]


def _about_batches(estimator: Estimator, pieces: Sequence[Estimate]) -> list[str]:
    """The largest limits on tokens with which each piece fits, by halving those of the run."""
    machine, advice, limits = estimator.case.machine, list[str](), dict[str, int]()
    work = {piece.titles: piece for piece in Work(estimator.config, estimator.case.counts).pieces()}
    for estimate in pieces:
        if estimate.peak is None or machine.fits(estimate.peak):
            continue
        if estimate.kind not in (SAMPLE, SCORE, ASK):
            if estimate.title.startswith("load"):
                advice.append(
                    f"{estimate.title}: the weights alone do not fit; take a smaller model"
                )
            continue
        # scoring and the multiple-choice questions share one setting
        name = SAMPLED if estimate.kind == SAMPLE else SCORED
        piece, tokens = work[estimate.titles], limits.get(name, estimator.case.batch_tokens(name))
        if not machine.fits(estimator.piece(piece, 1).peak or 0):
            advice.append(
                f"{estimate.title}: not even a batch of one fits; lower max_new_tokens or "
                "num_generations, or take a smaller model"
            )
            continue
        while tokens > 1 and not machine.fits(estimator.piece(piece, tokens).peak or 0):
            tokens //= 2
        limits[name] = tokens
    return [*(f"set {name}: {tokens}" for name, tokens in limits.items()), *advice]


def _about_training(estimator: Estimator, steps: Sequence[Estimate]) -> str:
    """The fastest of the other settings that fit."""
    machine = estimator.case.machine
    others = [other for other in steps[1:] if machine.fits(other.peak or 0)]
    if others:
        return f"set {words(min(others, key=lambda other: other.seconds or 0.0).settings)}"
    least = min(steps, key=lambda other: other.peak or 0)
    return (
        f"train: no setting of the above fits, the least takes {(least.peak or 0) / GIB:.1f} GiB; "
        f"lower max_length or max_new_tokens, {_about_weights(estimator.case)}or take a smaller "
        "student"
    )


def _about_weights(case: Case) -> str:
    """What makes the weights and what is kept beside them smaller, of what is not done yet."""
    config, found = case.config, list[str]()
    if not config.use_peft:
        found = ["train_dtype: bfloat16", "optim: adamw_8bit", "use_peft: true"]
    elif not config.load_in_4bit:
        found = ["train_dtype: bfloat16", "load_in_4bit: true"]
    said = f"set {' or '.join([', '.join(found[:-1]), found[-1]])}, " if found else ""
    split = "split the weights (--num_processes, --accelerate_config fsdp2), "
    return said if case.ranks.split or config.load_in_4bit else said + split


def _about_questions(estimator: Estimator, pieces: Sequence[Estimate]) -> list[str]:
    """Fewer questions, where they take several times as long as the log-probabilities."""
    ratio = questions_ratio(pieces)
    if ratio is None or ratio <= WORTH_A_WORD:
        return []
    config, every = estimator.config, bool(estimator.config.mcq_every_place)
    n = config.responses_per_prompt
    now, fewer = (
        len(questions(n, config.mcq_style, every, opponents))
        for opponents in (config.mcq_opponents, FEW_OPPONENTS)
    )
    said = f"the questions take {ratio:.1f} times as long as the log-probabilities"
    if fewer < now:
        return [
            f"{said}: mcq_opponents: {FEW_OPPONENTS} asks {fewer} a prompt in place of {now}, "
            "mcq_weight: 0 asks none"
        ]
    return [f"{said}: mcq_style: listwise asks fewer, mcq_weight: 0 asks none"]


def questions_ratio(pieces: Sequence[Estimate]) -> float | None:
    """The time of a round's questions over that of its log-probabilities."""
    times = {
        kind: sum(
            one.seconds or 0.0
            for one in pieces
            if one.kind == kind and one.titles[0].startswith("round")
        )
        for kind in (ASK, SCORE)
    }
    return times[ASK] / times[SCORE] if all(times.values()) else None


def words(settings: dict[str, Any], separator: str = ", ") -> str:
    """Settings as they stand in a YAML file."""
    return separator.join(f"{name}: {str(value).lower()}" for name, value in settings.items())
