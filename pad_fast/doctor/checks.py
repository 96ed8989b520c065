"""The doctor's checks: what can be wrong with a run's data, each with a verdict.

A check is a pure function of scored rows that returns a :class:`Finding`. Its docstring states the
limits of its verdicts. They are our own choice: what is common in a healthy run is ``ok``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pad_fast.evaluation.choice import ChoiceEffect
from pad_fast.evaluation.evaluated_model import RewardPair, mean
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.whole_files import Row
from pad_fast.training.config import PADConfig
from pad_fast.training.objective import saturation

Verdict = Literal["ok", "look", "problem"]

# If beta * (best reward - worst reward) is below this, the best response is preferred to the worst
# with a probability of at most 52.5%.
FLAT = 0.1

NOT_FINITE = "a model gives numbers that are not finite: set dtype: float32, and check its weights"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: its name.
        verdict: "ok", "look" or "problem".
        found: what was found.
        advice: what to do about it; empty if the verdict is ok.
        numbers: the numbers behind the verdict.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # No comparison with NaN is true, so that no limit would ever be reached.
        if any(isinstance(value, float) and not math.isfinite(value) for value in self._values()):
            object.__setattr__(self, "verdict", "problem")
            object.__setattr__(self, "advice", self.advice or NOT_FINITE)

    def _values(self) -> Iterator[Any]:
        for value in self.numbers.values():
            yield from value if isinstance(value, list | tuple) else (value,)


def grade(value: float, look: float, problem: float) -> Verdict:
    """The verdict on a value; each limit belongs to the worse verdict, and NaN to the worst."""
    return "problem" if not value < problem else "look" if value >= look else "ok"


def template(checkpoint: Checkpoint, rows: Sequence[Row]) -> Finding:
    """Whether a conversation with the response begins with the tokens of the prompt alone.

    The verdict is "problem" if the prompt's text changes once a response follows, and "look" if
    only the tokens at the border of prompt and response merge.
    """
    outcomes = [_border(checkpoint, row) for row in rows]
    rewritten, merged = outcomes.count("rewritten"), outcomes.count("merged")
    verdict: Verdict = "ok"
    found, advice = "prompt and response begin with the prompt's tokens", ""
    if rewritten:
        verdict = "problem"
        found = f"rewrites {_share(rewritten, rows)} of the prompts once a response follows"
        advice = (
            "training would show the student other tokens than a later turn: set "
            'chat_template_kwargs (such as {"enable_thinking": false}), or change the '
            f"{checkpoint.role}'s chat_template.jinja"
        )
    elif merged:
        verdict = "look"
        found = f"a response's first token merges with the prompt in {_share(merged, rows)}"
        advice = (
            f"end the generation prompt of the {checkpoint.role}'s chat_template.jinja at the end "
            "of a token"
        )
    numbers = {"rewritten": rewritten, "merged": merged, "prompts": len(rows)}
    return Finding(f"{checkpoint.role}'s template", verdict, found, advice, numbers)


def _border(checkpoint: Checkpoint, row: Row) -> Literal["kept", "rewritten", "merged"]:
    """What becomes of a row's prompt in the chat template once a response follows."""
    response = next(filter(str.strip, row["completions"]), "response")
    messages = [*row["prompt"], {"role": "assistant", "content": response}]
    chat, ids = checkpoint.chat, checkpoint.prompt_ids(row["prompt"])
    try:
        with_response, text = chat.conversation_ids(messages), chat.rendered(messages)
    except ValueError:  # the template accepts no assistant's turn
        return "rewritten"
    prompt = chat.rendered(row["prompt"], add_generation_prompt=True)
    if not text.startswith(prompt):
        return "rewritten"
    return "kept" if with_response[: len(ids)] == ids else "merged"


def ending(student: Checkpoint, rows: Sequence[Row], config: RunConfig) -> Finding:
    """Whether responses end by themselves.

    The verdict is "problem" if none does, or if the token that closes a turn in the template does
    not end a response.
    """
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
            f"raise max_new_tokens (now {config.max_new_tokens}); if that does not help, the "
            f"student was never trained to end with {token}: use an instruction-tuned one, or "
            "compare eos_token_id in its generation_config.json with what it writes"
        )
        return Finding(
            "end of response",
            "problem",
            f"none of {len(reasons)} responses ended by itself",
            advice,
            numbers,
        )
    return Finding(
        "end of response",
        "ok",
        f"{_share(ended, reasons)} ended by themselves, with {token} or another end token",
        numbers=numbers,
    )


def clipped(rows: Sequence[Row], config: RunConfig) -> Finding:
    """The share of responses cut at max_new_tokens: "look" from 10%, "problem" from 50%."""
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
    """The share of responses that repeat another one: "look" from 10%, "problem" from 50%.

    Equal responses have no order that could be learned.
    """
    share = sampling_metrics(rows)["completions/duplicate_ratio"]
    advice = (
        f"raise temperature (now {config.temperature}) or top_p (now {config.top_p}), or lower "
        "num_generations"
    )
    return _graded(
        "repeated",
        share,
        0.1,
        0.5,
        f"{share:.0%} of the responses repeat another one to their prompt",
        advice,
    )


def masked(rows: Sequence[Row]) -> Finding:
    """The share of responses without a teacher's reward: "look" above 0, "problem" from 25%."""
    rewards = [reward for row in rows for reward in row["teacher_rewards"]]
    share = rewards.count(None) / len(rewards)
    advice = (
        "they are empty for the teacher or longer than its window: lower max_new_tokens or "
        "max_prompt_length"
    )
    return _graded(
        "unscored",
        share,
        1e-9,
        0.25,
        f"{share:.0%} of the responses have no reward from the teacher",
        advice,
    )


def flat_groups(rows: Sequence[Row], training: PADConfig) -> Finding:
    """The share of groups whose rewards hardly differ: "look" from 25%, "problem" from 75%.

    In such a group, teacher_beta * (best reward - worst reward) is below 0.1.
    """
    beta = _teacher_beta(training)
    groups = [group for row in rows if len(group := _scored(row["teacher_rewards"])) >= 2]
    if not groups:
        advice = "find out why they are unscored, or lower max_new_tokens"
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
        f"raise teacher_beta (now {beta:g}), temperature or num_generations; if the responses' "
        "log-probabilities are the flat ones, set mcq_preset: paper and change mcq_weight"
    )
    found = f"in {flat:.0%} of the groups rewards hardly differ; median spread {median:.3g} {unit}"
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
    """The share of prompts with a JSD above 0.95 ln 2: "look" from 50%, "problem" from 95%.

    There the JSD has almost no gradient. Other losses have no upper bound, and neither has a sum
    over the groups of preference decomposing.
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
    text += f"; {share:.0%} of the prompts near the upper bound of the JSD, ln 2"
    advice = (
        f"lower teacher_beta (now {_teacher_beta(training):g}), set divergence: kl, or raise "
        "mcq_floor if mcq_formula is paper"
    )
    return _graded("first loss", share, 0.5, 0.95, text, advice, numbers)


def length(rows: Sequence[Row], config: RunConfig, training: PADConfig) -> Finding:
    """Whether the teacher's reward follows the response's length.

    The value is the absolute Kendall's tau of reward and length, within prompts, minus two standard
    errors: "look" from 0.1, "problem" from 0.5. A student can raise such a reward by length alone.
    """
    lengths = [[len(ids) for ids in row["completion_ids"]] for row in rows]
    taus = RewardPair(lengths, [row["teacher_rewards"] for row in rows]).taus()
    if not taus:
        return Finding("length", "ok", "no ranking to compare with", numbers={"kendall_tau": None})
    tau, error = _mean_and_error(taus)
    kind = "longer" if tau > 0 else "shorter"
    advice = (
        f"the teacher mostly ranks {kind} responses first: raise mcq_weight (now "
        f"{config.mcq_weight}), which judges content"
    )
    if training.normalize == "sum":
        advice += ", or set normalize: mean"
    else:
        advice += ", or leave cut ones out with mask_truncated_completions: true"
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
    """The agreement of the student's ranking with the teacher's before any training.

    The verdict is "problem" from a tau of 0.9, since nothing is left to learn, and "look" if tau is
    below -0.3 by more than two standard errors: the models seem to judge by opposite criteria.
    """
    student, teacher = _rewards(rows)
    pair = RewardPair(student, teacher)
    taus = pair.taus()
    found = {name: pair.agreement(name) for name in ("kendall_tau", "top1")}
    if not taus:
        advice = "see the reward spread"
        return Finding(
            "agreement", "problem", "the teacher ranks none of the groups", advice, found
        )
    tau, error = _mean_and_error(taus)
    chance = 1 / len(teacher[0])
    text = f"tau {tau:+.2f} ± {error:.2f}, top-1 {found['top1']:.0%} (by chance {chance:.0%})"
    numbers = {**found, "standard_error": error}
    if tau >= 0.9:
        advice = (
            "the student already ranks as the teacher does: use a stronger teacher or other "
            "prompts; raise mcq_weight if it is low"
        )
        return Finding("agreement", "problem", text, advice, numbers)
    if tau + 2 * error < -0.3:
        advice = (
            "they rank in opposite ways: look at the templates, at normalize, and at a few "
            "responses in both orders"
        )
        return Finding("agreement", "look", text, advice, numbers)
    return Finding("agreement", "ok", text, numbers=numbers)


def position(metrics: Row, config: RunConfig) -> Finding:
    """How much the teacher prefers one of k places: its mean probability minus 1/k.

    It is the first place of a pair, and of a list the one where this is farthest from 0. The
    verdict is "look" from 0.1 and "problem" from 0.25. If responses do not stand in every place,
    nothing cancels the preference, and the verdict is "problem" from 0.1.
    """
    if not config.asks:
        return Finding("position bias", "ok", "no multiple choice is asked")
    if "mcq/position_bias" not in metrics:
        advice = (
            "every question is longer than the teacher's window: lower max_new_tokens, or set "
            "mcq_style: pairwise or none"
        )
        return Finding("position bias", "problem", "no question could be asked", advice)
    bias = metrics["mcq/position_bias"]
    advice = f"lower mcq_weight (now {config.mcq_weight}), or reword mcq_template"
    if not config.mcq_every_place:
        advice = f"set mcq_every_place: true, so that it cancels; {advice}"
    direction = "more" if bias >= 0 else "less"
    place = "the first place" if config.letters == 2 else "one of the places"
    found = f"{place} has a probability {abs(bias):.2f} {direction} than its share"
    numbers = {"mean": bias, "every_place": bool(config.mcq_every_place)}
    return _graded(
        "position bias",
        abs(bias),
        0.1,
        0.25 if config.mcq_every_place else 0.1,
        found,
        advice,
        numbers,
    )


def letters(metrics: Row, config: RunConfig) -> Finding:
    """The probability of a letter as the answer: "look" below 0.5, "problem" below 0.05.

    If it is small, the choice is read from the tail of the teacher's distribution.
    """
    mass = metrics.get("mcq/letter_mass")
    if mass is None:
        return Finding("letters", "ok", "no multiple choice is asked")
    advice = (
        "the teacher does not answer with a letter: reword mcq_template, set chat_template_kwargs "
        "(no thinking), or mcq_style: none"
    )
    found, numbers = (
        f"the offered letters hold {mass:.0%} of the answer's probability",
        {"letter_mass": mass},
    )
    verdict: Verdict = "ok" if mass >= 0.5 else "look" if mass >= 0.05 else "problem"
    return Finding("letters", verdict, found, "" if verdict == "ok" else advice, numbers)


def choices(metrics: Row, config: RunConfig) -> Finding:
    """What multiple choice adds to the log-probabilities, and what it costs.

    The verdict is "look" if it does not discriminate, with a spread of the log selection
    probabilities below 0.25 nats, or if it changes the order of fewer than 5% of the pairs.
    """
    effect = ChoiceEffect.logged(metrics)
    if effect is None:
        return Finding("multiple choice", "ok", "none is asked")
    verdict: Verdict = "ok" if effect.pays else "look"
    advice = "set mcq_style: none, which saves the questions, or reword mcq_template"
    if effect.discriminates:
        advice += f"; or raise mcq_weight (now {config.mcq_weight:g})"
    return Finding(
        "multiple choice",
        verdict,
        effect.sentence().removeprefix("multiple choice "),
        "" if effect.pays else advice,
        vars(effect),
    )


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


def _scored(group: Sequence[float | None]) -> list[float]:
    return [reward for reward in group if reward is not None]


def _teacher_beta(training: PADConfig) -> float:
    return training.beta if training.teacher_beta is None else training.teacher_beta


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of some taus and its standard error.

    A single value has no standard error; 1 is used then, the largest that a tau can have.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 1.0
    return mean, math.sqrt(
        math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
    )


def _share(count: int, whole: Sequence[Any]) -> str:
    return f"{count / len(whole):.0%}"
