"""What ``pad-fast benchmark`` prints when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pad_fast.pipeline.benchmark.cost import duration


def print_result(result: Mapping[str, Any], root: Path) -> None:
    """Print where the answers are, and how many are right where that is known."""
    print(
        f"{result['benchmark']}: {result['questions']:,} questions answered by {result['model']} "
        f"in {duration(result['seconds'])}"
    )
    for name, score in result.get("scores", {}).items():
        error = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.1f}"
        print(
            f"  {name:<16}  {100 * score['value']:.1f}%{error}  ({score['right']} of "
            f"{score['count']}; 95% interval {100 * score['low']:.1f} to "
            f"{100 * score['high']:.1f}%)"
        )
    if "scores" in result:
        print(
            f"  {result['shots']} shots as turns, with the chat template; by {result['scored_by']}"
        )
    print(f"answers  {root / result['answers']}")
    if "official_judge" in result:
        print(f"judge    {root / result['official_judge']}")
