"""The ratios of the main README, from the newest records: the mark ``ratios``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from textwrap import fill

from benchmarks.contestants import OURS
from benchmarks.in_words import markdown
from benchmarks.records import Record, load, memory_of_naive, newest, quickest_peer


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


_BOTH = "forward+backward"
_STEP = "Llama, 20M, n=8 P=512 R=128, float32"
_GPU_STEP = "n=8 P=512 R=512, bfloat16, checkpointed activations"
ROWS = {
    "GPU": (
        Row(
            "a training step of Gemma-2-2B: prompt of 512, 8 responses of 512 tokens",
            "gpu-steps",
            f"training step, Gemma-2-2B, {_GPU_STEP}",
        ),
        Row("the same of Llama-3.2-1B", "gpu-steps", f"training step, Llama-3.2-1B, {_GPU_STEP}"),
        Row(
            "rewards from 16,384 hidden states, Llama-3-8B's head",
            "gpu",
            f"linear_token_logprobs, M=16,384 D=4,096 V=128,256, bfloat16, {_BOTH}",
        ),
        Row(
            "rewards from 16,384 rows of logits, Gemma-2's softcap",
            "gpu",
            f"token_logprobs, M=16,384 V=256,000, bfloat16, {_BOTH}, softcap 30",
        ),
    ),
    "CPU": (
        Row(
            "a training step of 20M weights: prompt of 512, 8 responses of 128 tokens",
            "steps",
            f"training step, {_STEP}",
        ),
        Row("scoring the same", "steps", f"scoring, {_STEP}"),
        Row(
            "rewards from 512 hidden states, half of them prompts",
            "cpu",
            f"linear_token_logprobs, M=512 D=512 V=32,000, float32, {_BOTH}, 50% ignored",
        ),
        Row(
            "the same of 2,048 hidden states, all responses",
            "cpu",
            f"linear_token_logprobs, M=2,048 D=768 V=50,257, float32, {_BOTH}",
        ),
    ),
}
COLUMNS = (
    "on",
    "what",
    "time, of PyTorch's",
    "memory, of PyTorch's",
    "time, of the quickest other's",
)
WIDTH = 118  # characters of a line below the table


def ratios(results: Path) -> str:
    """The table, and where its figures come from."""
    rows, sources = [list(COLUMNS), ["---", "---", "---:", "---:", "---:"]], {}
    newest_run = cache(partial(_newest_run, results))  # a suite's file is read once
    for kind, wanted in ROWS.items():
        for row in wanted:
            if records := newest_run(row.suite).get(row.case):
                rows.append([kind, row.words, *_cells(records)])
                sources[row.suite] = _source(row.suite, records[0])
    if not sources:
        return "*Not yet measured.*"
    return f"{markdown(rows)}\n\n{fill('; '.join(sources.values()) + '.', WIDTH)}"


def _newest_run(results: Path, suite: str) -> dict[str, list[Record]]:
    """The records of a suite's newest run, on whatever machine, by the label of the case."""
    found = newest(load(results, suite)).values()
    return max(found, key=lambda cases: next(iter(cases.values()))[0]["run"], default={})


def _cells(records: list[Record]) -> list[str]:
    measured = {record["contestant"]: record for record in records if record["status"] == "ok"}
    ours, best, peer = measured[OURS], quickest_peer(measured), "–"
    if best is not None:
        peer = f"{_ratio(ours['median_ms'] / best['median_ms'])}, {best['contestant']}"
    return [_ratio(ours["ratio_to_naive"]), _ratio(memory_of_naive(measured)), peer]


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.05 else f"1/{1 / value:,.0f}"


def _source(suite: str, record: Record) -> str:
    """The machine of a suite, and when it ran there."""
    threads = "" if record["cuda"] else f", {record['threads']} threads"
    torch = f"torch {record['versions']['torch']}"
    return f"{suite}: {record['device']}{threads}, {torch}, {record['run'][:10]}"
