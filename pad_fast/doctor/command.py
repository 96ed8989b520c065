"""`pad-fast doctor`: a few prompts go through sampling and scoring as a run would take them, and what is wrong is told.

Everything is written to a temporary folder: the run's own is neither read nor made, and a run that starts afterwards is the same.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.doctor import checks
from pad_fast.doctor.checks import Finding
from pad_fast.pipeline.config import Settings, option
from pad_fast.pipeline.files import Row, derive_seed, read_rows
from pad_fast.pipeline.open_run import check_models, fitting, read_split
from pad_fast.pipeline.run import Run, round_seed
from pad_fast.pipeline.sample.shards import sample_shards

STYLES = {"ok": "green", "look": "yellow", "problem": "bold red"}


@dataclass
class DoctorOptions:
    """Flags of the command beside those of the run. ValueError for fewer than two prompts."""

    num_prompts: int = option(32, "Training prompts to look at, drawn by the seed; 2 or more.")
    json: bool = option(False, "Print the findings as JSON in place of a table.")

    def __post_init__(self) -> None:
        if self.num_prompts < 2:
            raise ValueError(f"num_prompts: must be 2 or more, got {self.num_prompts}")


def doctor(settings: Settings, options: DoctorOptions) -> bool:
    """Examine and print; whether all is well, that is, nothing is a problem. ValueError as for a run."""
    findings = examine(settings, options.num_prompts)
    worst = max((finding.verdict for finding in findings), key=list(STYLES).index)
    if options.json:
        print(
            json.dumps(
                {
                    "verdict": worst,
                    "findings": [dataclasses.asdict(finding) for finding in findings],
                },
                indent=2,
            )
        )
    else:
        print_findings(findings)
    return worst != "problem"


def examine(settings: Settings, num_prompts: int) -> list[Finding]:
    """Every check on `num_prompts` of the training prompts, their responses from the student and its rewards from the teacher."""
    with tempfile.TemporaryDirectory(prefix="pad-fast-doctor-") as folder:
        # one shard, whose metrics are then those of all
        config = dataclasses.replace(settings.run, output_dir=folder, shard_size=num_prompts)
        run = Run(Settings(config, settings.training))
        rows, metrics = _scored(run, _drawn(run, num_prompts))
        student, teacher, training = run.student(0), run.teacher, run.training
        return [
            checks.template(student, rows),
            checks.template(teacher, rows),
            checks.ending(student, rows, config),
            checks.clipped(rows, config),
            checks.repeated(rows, config),
            checks.masked(rows),
            checks.flat_groups(rows, training),
            checks.saturated(rows, training),
            checks.length(rows, config, training),
            checks.agreement(rows),
            checks.position(metrics, config),
            checks.letters(metrics, config),
        ]


def _drawn(run: Run, count: int) -> list[Row]:
    """The prompts to look at, as a run would keep them."""
    config, student = run.config, run.student(0)
    check_models(config, student, run.teacher)
    train, _ = read_split(config)
    drawn = random.Random(derive_seed(config.seed, "doctor")).sample(train, min(count, len(train)))
    rows = fitting(drawn, config, student, run.teacher, run.training.max_length)
    if not rows:
        raise ValueError(f"prompts: every one of the {len(drawn)} that were drawn is too long")
    return rows


def _scored(run: Run, rows: Sequence[Row]) -> tuple[list[Row], Row]:
    """The rows with responses and rewards of both sides, and the metrics of scoring."""
    root, count, student, metrics = run.folder.root, run.config.num_generations, run.student(0), {}
    seed, sampler = round_seed(run.config.seed, 0, "doctor"), run.sampler(count, rewards=True)
    sample_shards(student, rows, root / "samples", sampler, seed=seed, title="doctor · sample")
    student.free()
    with run.scorer() as scorer:
        scorer.score_shards(
            root / "samples",
            root / "scores",
            count,
            title="doctor · teacher",
            on_shard=lambda _, values: metrics.update(values),
        )
    return read_rows(root / "scores"), metrics


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """A line a check, and below it what to do where it is not ok."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found, and what to do")
    for finding in findings:
        text = finding.found if not finding.advice else f"{finding.found}\n→ {finding.advice}"
        table.add_row(
            finding.check,
            finding.verdict,
            text,
            style=None if finding.verdict == "ok" else STYLES[finding.verdict],
        )
    console = console or Console()
    console.print(table)
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in STYLES
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), style="dim")
