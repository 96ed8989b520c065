"""Checks of the sampled responses."""

from __future__ import annotations

from collections.abc import Sequence

from pad_fast.evaluation.evaluated_model import RewardPair
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.findings.finding import Finding, grade, graded, mean_and_error, share_text
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.training.config import PADConfig


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
        f"{share_text(ended, reasons)} ended by themselves, with {token} or another end token",
        numbers=numbers,
    )


def clipped(rows: Sequence[Row], config: RunConfig) -> Finding:
    """The share of responses cut at max_new_tokens: "look" from 10%, "problem" from 50%."""
    share = sampling_metrics(rows)["completions/clipped_ratio"]
    advice = (
        "raise max_new_tokens, or leave them out of training with mask_truncated_completions: true"
    )
    return graded(
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
    return graded(
        "repeated",
        share,
        0.1,
        0.5,
        f"{share:.0%} of the responses repeat another one to their prompt",
        advice,
    )


def length(rows: Sequence[Row], config: RunConfig, training: PADConfig) -> Finding:
    """Whether the teacher's reward follows the response's length.

    The value is the absolute Kendall's tau of reward and length, within prompts, minus two standard
    errors: "look" from 0.1, "problem" from 0.5. A student can raise such a reward by length alone.
    """
    lengths = [[len(ids) for ids in row["completion_ids"]] for row in rows]
    taus = RewardPair(lengths, [row["teacher_rewards"] for row in rows]).taus()
    if not taus:
        return Finding("length", "ok", "no ranking to compare with", numbers={"kendall_tau": None})
    tau, error = mean_and_error(taus)
    kind = "longer" if tau > 0 else "shorter"
    remedies = [
        f"raise mcq_weight (now {config.mcq_weight}), which judges content",
        "set normalize: mean"
        if training.normalize == "sum"
        else "leave cut ones out with mask_truncated_completions: true",
    ]
    advice = f"the teacher mostly ranks {kind} responses first: "
    advice += ", or ".join(remedies if config.asks else remedies[1:])
    verdict = grade(abs(tau) - 2 * error, 0.1, 0.5)
    found = f"tau of reward and length is {tau:+.2f} ± {error:.2f}"
    numbers = {"kendall_tau": tau, "standard_error": error}
    return Finding("length", verdict, found, advice, numbers)
