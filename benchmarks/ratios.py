"""The eight ratios of the main README, from the newest records of a CPU: the mark ``ratios``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import NAIVE, OURS
from benchmarks.records import Record, load, newest


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        words: what is done, for somebody who does not know the suite.
        suite: whose records hold it.
        case: how the case's label begins.
    """

    words: str
    suite: str
    case: str


_HEAD = "linear_token_logprobs, M=512 D=512 V=32,000, float32, forward+backward"
ROWS = (
    Row("a training step, 8 responses of 128 to 512 tokens", "steps", "training step, Llama, 20M"),
    Row("scoring the same", "steps", "scoring, Llama, 20M"),
    Row("rewards from hidden states, half the rows prompts", "cpu", f"{_HEAD}, 50% ignored"),
    Row("the same of 2,048 rows, all responses", "cpu", "linear_token_logprobs, M=2,048 D=768"),
    Row("rewards from logits, in bfloat16", "cpu", "token_logprobs, M=256 V=50,257, bfloat16"),
    Row("the loss of pairs, from hidden states", "cpu", "linear_pair_loss, P=8"),
    Row("KL over all rankings of 8 responses", "cpu", "kl, P=64 N=8"),
    Row("Jensen-Shannon over all rankings of 8", "cpu", "jsd, P=64 N=8"),
)


def ratios(results: Path) -> str:
    """The table, and where its figures come from."""
    runs: dict[str, dict[str, list[Record]]] = {}
    for suite in dict.fromkeys(row.suite for row in ROWS):
        found = newest(load(results, suite))
        if found:
            runs[suite] = next(iter(found.values()))
    lines = ["| what | time, of PyTorch's | memory, of PyTorch's | time, of the quickest other's |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for row in ROWS:
        cases = runs.get(row.suite, {})
        label = next((label for label in cases if label.startswith(row.case)), None)
        if label is not None:
            lines.append(f"| {row.words} | {' | '.join(_cells(cases[label]))} |")
    return "\n".join([*lines, "", _sources(runs)]) if runs else "*Not yet measured.*"


def _cells(records: list[Record]) -> list[str]:
    measured = {record["contestant"]: record for record in records if record["status"] == "ok"}
    ours, naive = measured[OURS], measured[NAIVE]
    others = [
        record
        for name, record in measured.items()
        if name != NAIVE and not name.startswith(OURS) and record["same_job"]
    ]
    best = min(others, key=lambda record: record["median_ms"], default=None)
    peer = "–"
    if best is not None:
        peer = f"{_ratio(ours['median_ms'] / best['median_ms'])}, {best['contestant']}"
    memory = ours["peak_bytes"] / naive["peak_bytes"] if naive["peak_bytes"] else None
    return [_ratio(ours["ratio_to_naive"]), _ratio(memory), peer]


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.05 else f"1/{1 / value:,.0f}"


def _sources(runs: dict[str, dict[str, list[Record]]]) -> str:
    """The machine, and the run of each suite."""
    firsts = {name: next(iter(cases.values()))[0] for name, cases in runs.items()}
    some = next(iter(firsts.values()))
    when = "; ".join(f"{name}: {first['run']}" for name, first in firsts.items())
    return (
        f"{some['device']}, {some['threads']} threads, torch {some['versions']['torch']}. {when}."
    )
