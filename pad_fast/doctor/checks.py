"""What can be wrong with the data of a run, seen in a few prompts with their responses and scores: one verdict each.

Every check is a pure function of scored rows (see :mod:`pad_fast.pipeline.files`) that gives a :class:`Finding`. The limits are
ours, chosen so that what is common in a healthy run is `ok`; they are stated beside each check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pad_fast.evaluation.evaluated import RewardPair, mean
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.files import Row
from pad_fast.pipeline.sample.shards import sampling_metrics
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import saturation

Verdict = Literal["ok", "look", "problem"]
FLAT = 0.1  # of beta * (best - worst): the best is then preferred to the worst with at most 52.5%


@dataclass(frozen=True)
class Finding:
    """One check: what was found, what to do about it ("" where it is ok), and the numbers behind it."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def grade(value: float, look: float, problem: float) -> Verdict:
    """`problem` from that limit on, `look` from its own on, else `ok`."""
    return "problem" if value >= problem else "look" if value >= look else "ok"


def template(checkpoint: Checkpoint, rows: Sequence[Row]) -> Finding:
    """Whether prompt and response render with the prompt's ids as their beginning.

    A problem where the text of the prompt changes once a response follows; a look where only the tokens at the border merge.
    """
    rewritten = merged = 0
    for row in rows:
        messages = [
            *row["prompt"],
            {
                "role": "assistant",
                "content": next(filter(str.strip, row["completions"]), "response"),
            },
        ]
        ids = checkpoint.prompt_ids(row["prompt"])
        try:
            whole = checkpoint.rendered(messages, tokenize=True, return_dict=True)["input_ids"]
            text = checkpoint.rendered(messages, tokenize=False)
        except ValueError:  # it takes no assistant's turn at all
            rewritten += 1
            continue
        if not text.startswith(
            checkpoint.rendered(row["prompt"], add_generation_prompt=True, tokenize=False)
        ):
            rewritten += 1
        elif whole[: len(ids)] != ids:
            merged += 1
    name, numbers = (
        f"{checkpoint.role}'s template",
        {"rewritten": rewritten, "merged": merged, "prompts": len(rows)},
    )
    if rewritten:
        advice = (
            f'what is trained is not what a later turn will see: set chat_template_kwargs (such as {{"enable_thinking": false}}), '
            f"or mend the {checkpoint.role}'s chat_template.jinja"
        )
        return Finding(
            name,
            "problem",
            f"rewrites {_share(rewritten, rows)} of the prompts once a response follows",
            advice,
            numbers,
        )
    if merged:
        advice = f"end the generation prompt of the {checkpoint.role}'s chat_template.jinja where a token ends"
        return Finding(
            name,
            "look",
            f"a response's first token merges with the prompt in {_share(merged, rows)}",
            advice,
            numbers,
        )
    return Finding(
        name, "ok", "prompt and response begin with the prompt's tokens", numbers=numbers
    )


def ending(student: Checkpoint, rows: Sequence[Row], config: RunConfig) -> Finding:
    """Whether responses end by themselves. A problem where none does, or where the template's end of turn ends nothing."""
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    ended, turn = reasons.count("stop"), student.end_of_turn_id
    numbers = {
        "ended": ended / len(reasons),
        "end_of_turn_id": turn,
        "eos_token_ids": student.eos_token_ids,
    }
    token = student.tokenizer.convert_ids_to_tokens(turn)
    if turn not in student.eos_token_ids:
        advice = f"add {turn} to eos_token_id in the student's generation_config.json"
        return Finding(
            "end of response",
            "problem",
            f"the template closes a turn with {token}, which ends no response",
            advice,
            numbers,
        )
    if not ended:
        advice = (
            f"raise max_new_tokens (now {config.max_new_tokens}); if that does not help, the student was never taught to end with {token}: "
            "take an instruction-tuned one, or compare eos_token_id in its generation_config.json with what it writes"
        )
        return Finding(
            "end of response",
            "problem",
            f"not one of {len(reasons)} responses ended by itself",
            advice,
            numbers,
        )
    return Finding(
        "end of response",
        "ok",
        f"{_share(ended, reasons)} ended by themselves, with {token} or its like",
        numbers=numbers,
    )


def clipped(rows: Sequence[Row], config: RunConfig) -> Finding:
    """Responses cut at max_new_tokens: a look from 10%, a problem from 50%."""
    share = sampling_metrics(rows)["completions/clipped_ratio"]
    advice = (
        "raise max_new_tokens, or leave them out of training with mask_truncated_completions: true"
    )
    return _graded(
        "clipped",
        share,
        0.1,
        0.5,
        f"{share:.0%} of the responses were cut at {config.max_new_tokens} tokens",
        advice,
    )


def repeated(rows: Sequence[Row], config: RunConfig) -> Finding:
    """Responses equal to another of their prompt: a look from 10%, a problem from 50%. Copies have no order."""
    share = sampling_metrics(rows)["completions/duplicate_ratio"]
    advice = f"raise temperature (now {config.temperature}) or top_p (now {config.top_p}), or lower num_generations"
    return _graded(
        "repeated",
        share,
        0.1,
        0.5,
        f"{share:.0%} of the responses repeat another of their prompt",
        advice,
    )


def masked(rows: Sequence[Row]) -> Finding:
    """Responses without a teacher's reward (empty, or beyond its window): a look from the first, a problem from 25%."""
    rewards = [reward for row in rows for reward in row["teacher_rewards"]]
    share = rewards.count(None) / len(rewards)
    advice = "they are empty for the teacher or longer than its window: lower max_new_tokens or max_prompt_length"
    return _graded(
        "unscored",
        share,
        1e-9,
        0.25,
        f"{share:.0%} of the responses have no reward from the teacher",
        advice,
    )


def flat_groups(rows: Sequence[Row], training: PADConfig) -> Finding:
    """Groups with teacher_beta * (best - worst reward) below 0.1: a look from 25%, a problem from 75%."""
    beta = _teacher_beta(training)
    groups = [group for row in rows if len(group := _live(row["teacher_rewards"])) >= 2]
    if not groups:
        advice = "see why they are unscored; or lower max_new_tokens"
        return Finding(
            "reward spread",
            "problem",
            "no prompt has two responses with a reward",
            advice,
            {"flat": None},
        )
    spreads = sorted(max(group) - min(group) for group in groups)
    flat, median = (
        sum(beta * spread < FLAT for spread in spreads) / len(spreads),
        spreads[len(spreads) // 2],
    )
    unit = "nats per token" if training.normalize == "mean" else "nats"
    advice = (
        f"raise teacher_beta (now {beta:g}), temperature or num_generations; or change mcq_weight: of the teacher's two rewards one may "
        "be the flat one"
    )
    found = f"{flat:.0%} of the groups hardly differ; the median spread is {median:.3g} {unit}"
    return _graded(
        "reward spread",
        flat,
        0.25,
        0.75,
        found,
        advice,
        {"median_spread": median, "teacher_beta": beta},
    )


def saturated(rows: Sequence[Row], training: PADConfig) -> Finding:
    """Prompts whose JSD is above 0.95 ln 2, where it has next to no gradient: a look from 50%, a problem from 95%.

    Other losses have no such end; neither has a sum over the groups of preference decomposing.
    """
    losses = prompt_losses(RewardPair(*_rewards(rows)), training)
    found = [loss for loss in losses if loss is not None]
    average = mean(found)
    shown = "–" if average is None else f"{average:.3f}"
    text, numbers = f"{shown} on average", {"mean_loss": average}
    limit = saturation(training)
    if not found or limit is None:
        return Finding("first loss", "ok", text, numbers=numbers)
    share = sum(loss > limit for loss in found) / len(found)
    text += f"; {share:.0%} of the prompts near the end of the JSD, ln 2"
    advice = f"lower teacher_beta (now {_teacher_beta(training):g}), take divergence: kl, or raise mcq_floor"
    return _graded("first loss", share, 0.5, 0.95, text, advice, numbers)


def length(rows: Sequence[Row], config: RunConfig, training: PADConfig) -> Finding:
    """Kendall's tau of the teacher's reward with the response's length, within prompts, less two standard errors: a look from 0.1,
    a problem from 0.5. A student can raise such a reward by length alone."""
    lengths = [[len(ids) for ids in row["completion_ids"]] for row in rows]
    taus = RewardPair(lengths, [row["teacher_rewards"] for row in rows]).taus()
    if not taus:
        return Finding("length", "ok", "no ranking to compare with", numbers={"kendall_tau": None})
    tau, error = _mean_and_error(taus)
    kind = "longer" if tau > 0 else "shorter"
    advice = f"the teacher mostly ranks {kind} responses first: raise mcq_weight (now {config.mcq_weight}), which judges content"
    advice += (
        ", take normalize: mean"
        if training.normalize == "sum"
        else ", or leave cut ones out with mask_truncated_completions: true"
    )
    verdict = grade(abs(tau) - 2 * error, 0.1, 0.5)
    found = f"tau of reward and length is {tau:+.2f} ± {error:.2f}"
    return Finding(
        "length",
        verdict,
        found,
        "" if verdict == "ok" else advice,
        {"kendall_tau": tau, "standard_error": error},
    )


def agreement(rows: Sequence[Row]) -> Finding:
    """The student's ranking against the teacher's before any training. A problem from tau 0.9 on, since nothing is left to learn;
    a look below -0.3, less two standard errors: the two judge by opposite measures."""
    student, teacher = _rewards(rows)
    pair = RewardPair(student, teacher)
    taus = pair.taus()
    found = {name: pair.agreement(name) for name in ("kendall_tau", "top1")}
    if not taus:
        advice = "see the reward spread"
        return Finding(
            "agreement", "problem", "the teacher ranks not one of the groups", advice, found
        )
    tau, error = _mean_and_error(taus)
    text = f"tau {tau:+.2f} ± {error:.2f}, top-1 {found['top1']:.0%} (by chance {1 / len(teacher[0]):.0%})"
    numbers = {**found, "standard_error": error}
    if tau >= 0.9:
        advice = "the student already ranks as the teacher does: take a stronger teacher, or other prompts; raise mcq_weight if it is low"
        return Finding("agreement", "problem", text, advice, numbers)
    if tau + 2 * error < -0.3:
        advice = "they rank in opposite ways: look at the templates, at normalize, and at a few responses in both orders"
        return Finding("agreement", "look", text, advice, numbers)
    return Finding("agreement", "ok", text, numbers=numbers)


def position(metrics: Row, config: RunConfig) -> Finding:
    """The multiple choice's fondness for the first letter, its mean probability less 1/k: a look from 0.1, a problem from 0.25 (from
    0.1 on where pairs are asked in one order only, as nothing cancels it then)."""
    if not config.asks:
        return Finding("position bias", "ok", "no multiple choice is asked")
    if "mcq/position_bias" not in metrics:
        advice = "every question is longer than the teacher's window: lower max_new_tokens, or set mcq_style: pairwise or none"
        return Finding("position bias", "problem", "no question could be asked", advice)
    bias = metrics["mcq/position_bias"]
    advice = f"lower mcq_weight (now {config.mcq_weight}), or reword mcq_template"
    if not config.mcq_both_orders:
        advice = "set mcq_both_orders: true, so that it cancels; " + advice
    found = f"the first letter is chosen {abs(bias):.2f} {'more' if bias >= 0 else 'less'} than its share"
    numbers = {"mean": bias, "both_orders": bool(config.mcq_both_orders)}
    return _graded(
        "position bias",
        abs(bias),
        0.1,
        0.25 if config.mcq_both_orders else 0.1,
        found,
        advice,
        numbers,
    )


def letters(metrics: Row, config: RunConfig) -> Finding:
    """Probability that the teacher's next token is one of the offered letters: a look below 0.5, a problem below 0.05. Then the choice
    is read from the tail of its distribution."""
    mass = metrics.get("mcq/letter_mass")
    if mass is None:
        return Finding("letters", "ok", "no multiple choice is asked")
    advice = "the teacher does not answer with a letter: reword mcq_template, set chat_template_kwargs (no thinking), or mcq_style: none"
    found, numbers = (
        f"the offered letters hold {mass:.0%} of the answer's probability",
        {"letter_mass": mass},
    )
    verdict: Verdict = "problem" if mass < 0.05 else "look" if mass < 0.5 else "ok"
    return Finding("letters", verdict, found, "" if verdict == "ok" else advice, numbers)


def _graded(
    check: str,
    share: float,
    look: float,
    problem: float,
    found: str,
    advice: str,
    numbers: Row | None = None,
) -> Finding:
    verdict = grade(share, look, problem)
    return Finding(
        check,
        verdict,
        found,
        "" if verdict == "ok" else advice,
        {"share": share, **(numbers or {})},
    )


def _rewards(rows: Sequence[Row]) -> tuple[list[Any], list[Any]]:
    return [row["student_rewards"] for row in rows], [row["teacher_rewards"] for row in rows]


def _live(group: Sequence[float | None]) -> list[float]:
    return [reward for reward in group if reward is not None]


def _teacher_beta(training: PADConfig) -> float:
    return training.beta if training.teacher_beta is None else training.teacher_beta


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; of a single value there is none, so it is taken as 1, the largest that a tau can have."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 1.0
    return mean, math.sqrt(
        math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    )


def _share(count: int, whole: Sequence[Any]) -> str:
    return f"{count / len(whole):.0%}"
