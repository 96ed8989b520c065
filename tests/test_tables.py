"""Tables of the terminal at 80 columns, and as paragraphs at 50."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from pad_fast.doctor.command import print_findings
from pad_fast.evaluation.reported_metrics import METRICS
from pad_fast.files.own_files import write_json
from pad_fast.pipeline.benchmark.judged_files import HEADINGS
from pad_fast.pipeline.evaluate import summary
from pad_fast.pipeline.findings.finding import Finding
from pad_fast.plan import command as plan
from pad_fast.plan.estimate import Estimate
from pad_fast.plan.machine import Machine
from pad_fast.terminal import console, show_table

GIB = 2**30
FINDINGS = [
    Finding("end of response", "ok", "31 of 32 responses end by themselves", ""),
    Finding("multiple-choice letters", "problem", "the letters have 3%", "set mcq_weight: 0"),
]
STEPS = [
    Estimate("train", "2 prompts, shared, slices of 8,192 tokens", 90 * GIB, 12.3),
    Estimate(
        "train",
        "2 prompts",
        60 * GIB,
        14.3,
        settings={"gradient_checkpointing": True, "max_tokens_per_step": 4096},
    ),
]


def doctor(out, tmp_path):
    print_findings(FINDINGS, out)
    return [*FINDINGS[1].found.split(), "→ set", "multiple-choice letters"]


def plans(out, tmp_path):
    machine = Machine("one", 80 * GIB, 6e14, 3e12, True)
    show_table(out, plan._table(machine, "a training step", STEPS), plan.LEAST)
    return ["gradient_checkpointing: true", "90.00 GiB", "12.3 s", "no", "yes"]


def evaluations(out, tmp_path):
    (tmp_path / "evaluation").mkdir()
    for name in ("base", "round-01", "seqkd", "teacher"):
        row = {"name": name, "num_prompts": 256, **dict.fromkeys(METRICS, 0.4567)}
        write_json(tmp_path / "evaluation" / f"{name}.json", row)
    summary.print_table(tmp_path, out)
    return ["round-01", "SeqKD", "45.7%", "0.457", "256 held-out prompts"]


def comparisons(out, tmp_path):
    table = Table(title="mine against yours")
    for heading in ("", *HEADINGS):
        table.add_column(heading)
    table.add_row("coding", "20", "3/4/13", "25.0 ± 9.7%", "26.1 ± 9.9%", "12%", "0.31", "55%")
    show_table(out, table)
    return ["coding", "25.0 ± 9.7%", "LC win rate"]


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("show", [doctor, plans, evaluations, comparisons])
def test_tables_fit(show, columns, tmp_path):
    said = io.StringIO()
    words = show(console(width=columns, file=said), tmp_path)
    text = said.getvalue()
    assert [line for line in text.splitlines() if len(line.rstrip()) > columns] == []
    assert "…" not in text  # which stands for what was cut off
    for word in words:
        assert word in text or columns == 80, word
    assert ("───" in text or "━━━" in text) == (columns == 80)


def test_a_row_of_many_values_shares_lines_and_breaks_none():
    said = io.StringIO()
    table = Table("", *(f"long heading {number}" for number in range(6)))
    table.add_row("one", *["12.5 s"] * 5, "")
    show_table(console(width=50, file=said), table)
    assert [line.rstrip() for line in said.getvalue().splitlines()] == [
        "one",
        "  long heading 0: 12.5 s, long heading 1: 12.5 s,",
        "  long heading 2: 12.5 s, long heading 3: 12.5 s,",
        "  long heading 4: 12.5 s",
    ]
