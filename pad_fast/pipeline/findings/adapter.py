"""The check of an adapter's learning rate."""

from __future__ import annotations

from collections.abc import Mapping

from pad_fast.pipeline.findings.finding import Finding
from pad_fast.training.adapter_rate import TAKE, is_small


def rate(rates: Mapping[str, float]) -> Finding:
    """Whether an adapter moves the student at its learning rate: "look" below 5e-6.

    Args:
        rates: of the run's own training and of each compared method, by their names.
    """
    small = {name: rate for name, rate in rates.items() if is_small(rate)}
    shown = ", ".join(f"{name}: {rate:g}" for name, rate in (small or rates).items())
    found = f"learning_rate of the adapter: {shown}"
    if not small:
        return Finding("adapter", "ok", found, numbers={"rates": list(rates.values())})
    return Finding(
        "adapter",
        "look",
        f"{found}. That is a rate for all weights, at which an adapter hardly moves",
        TAKE,
        {"rates": list(rates.values())},
    )
