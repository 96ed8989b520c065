"""How far the numbers of servers are from those of this process."""

from __future__ import annotations

from collections.abc import Sequence

from pad_fast.evaluation.evaluated_model import RewardPair, Rewards
from pad_fast.pipeline.findings.finding import Finding, graded


def difference(role: str, identity: str, served: Rewards, own: Rewards) -> Finding:
    """The pairs of responses that the two engines rank otherwise: "look" from 2%, "problem" at 10%.

    Rounding in bfloat16 turns round pairs that are nearly equal, which is below that.

    Args:
        role: "student" or "teacher".
        identity: of the servers.
        served: their rewards in nats a token, (P, N); None for a response that is not scored.
        own: those of this process.
    """
    apart = [
        abs(one - other)
        for group, others in zip(served, own, strict=True)
        for one, other in zip(group, others, strict=True)
        if one is not None and other is not None
    ]
    kept = RewardPair(own, served).agreement("pair_accuracy")
    turned = 0.0 if kept is None else 1.0 - kept
    mean, most = sum(apart) / len(apart), max(apart)
    return graded(
        f"engines: {role}",
        turned,
        0.02,
        0.10,
        f"rewards by {identity} are {mean:.2g} nats a token from those of this process on average, "
        f"{most:.2g} at most, on {len(served)} prompts; {turned:.1%} of the pairs change their "
        "order",
        "serve the same weights in the data type of the run, without a quantised cache",
        {"mean": mean, "most": most},
    )


def not_compared(role: str, identity: str, why: str) -> Finding:
    """The finding where this process cannot run the model."""
    found = f"rewards by {identity} are not compared with those of this process: {why}"
    return Finding(f"engines: {role}", "ok", found)


def per_token(
    groups: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]]
) -> Rewards:
    """Log-probabilities of responses as nats a token."""
    return [
        [None if logp is None else logp / length for logp, length in zip(logps, ns, strict=True)]
        for logps, ns in zip(groups, lengths, strict=True)
    ]
