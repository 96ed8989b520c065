"""The eight ratios of the main README, from the newest records of a CPU: the mark ``ratios``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import NAIVE, OURS
from benchmarks.in_words import markdown
from benchmarks.records import Record, load, newest


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        words: what is done, for somebody who does not know the suite.
        suite: whose records hold it.
        case: the case's label.
    """

    words: str
    suite: str
    case: str


_BOTH = "float32, forward+backward"
_STEP = "Llama, 20M, n=8 P=512 R=128, float32"
_HEAD = f"linear_token_logprobs, M=512 D=512 V=32,000, {_BOTH}"
ROWS = (
    Row(
        "a training step: prompt of 512, 8 responses of 128 tokens",
        "steps",
        f"training step, {_STEP}",
    ),
    Row("scoring the same", "steps", f"scoring, {_STEP}"),
    Row("rewards from hidden states, half the rows prompts", "cpu", f"{_HEAD}, 50% ignored"),
    Row(
        "the same of 2,048 rows, all responses",
        "cpu",
        f"linear_token_logprobs, M=2,048 D=768 V=50,257, {_BOTH}",
    ),
    Row(
        "rewards from logits, in bfloat16",
        "cpu",
        "token_logprobs, M=256 V=50,257, bfloat16, forward+backward",
    ),
    Row(
        "the loss of pairs, from hidden states",
        "cpu",
        f"linear_pair_loss, P=8 N=2 T=32 D=512 V=32,000, {_BOTH}",
    ),
    Row("KL over all rankings of 8 responses", "cpu", f"kl, P=64 N=8, {_BOTH}"),
    Row("Jensen-Shannon over all rankings of 8", "cpu", f"jsd, P=64 N=8, {_BOTH}"),
)


def ratios(results: Path) -> str:
    """The table, and where its figures come from."""
    runs: dict[str, dict[str, list[Record]]] = {}
    for suite in dict.fromkeys(row.suite for row in ROWS):
        found = newest(load(results, suite))
        if found:
            runs[suite] = max(found.values(), key=lambda cases: _first(cases)["run"])
    head = ["what", "time, of PyTorch's", "memory, of PyTorch's", "time, of the quickest other's"]
    rows = [head, ["---", "---:", "---:", "---:"]]
    for row in ROWS:
        if records := runs.get(row.suite, {}).get(row.case):
            rows.append([row.words, *_cells(records)])
    return f"{markdown(rows)}\n\n{_sources(runs)}" if runs else "*Not yet measured.*"


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


def _first(cases: dict[str, list[Record]]) -> Record:
    return next(iter(cases.values()))[0]


def _sources(runs: dict[str, dict[str, list[Record]]]) -> str:
    """The machine of each suite, and when it ran there."""
    return "\n".join(
        f"{name}: {one['device']}, {one['threads']} threads, torch {one['versions']['torch']}, "
        f"{one['run']}."
        for name, one in ((name, _first(cases)) for name, cases in runs.items())
    )
