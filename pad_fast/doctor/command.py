"""The command ``pad-fast doctor``: sample and score a few prompts as a run would, and check them.

Everything is written to a temporary folder. The run's own folder is neither read nor created, and a
run that starts afterwards is the same as without the doctor.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table

from pad_fast.device import on_cpu
from pad_fast.doctor.engine_difference import of_engines
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.dry_build import check_hub, check_training
from pad_fast.pipeline.findings.finding import Finding, Verdict
from pad_fast.pipeline.findings.first_shard import of_samples, of_scores
from pad_fast.pipeline.option import option
from pad_fast.pipeline.parquet_rows import keep_rows, read_rows, shard_paths
from pad_fast.pipeline.preflight import (
    check_models,
    check_prompts,
    check_sources,
    fitting,
    read_split,
)
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample import given
from pad_fast.pipeline.sample.shards import sample_shards
from pad_fast.pipeline.seeds import derive_seed, round_seed
from pad_fast.pipeline.settings import Settings
from pad_fast.terminal import console as plain_console
from pad_fast.terminal import show_table

COLORS: dict[Verdict, str] = {"ok": "green", "look": "yellow", "problem": "bold red"}


@dataclass
class DoctorOptions:
    """Flags of the command, in addition to those of the run.

    Raises:
        ValueError: fewer than two prompts.
    """

    num_prompts: int = option(
        32, "Number of training prompts to try, drawn with the seed; 2 or more."
    )
    json: bool = option(False, "Print the findings as JSON instead of a table.")

    def __post_init__(self) -> None:
        if self.num_prompts < 2:
            raise ValueError(f"num_prompts: must be 2 or more, got {self.num_prompts}")


def doctor(settings: Settings, options: DoctorOptions) -> bool:
    """Run every check and print the findings.

    Args:
        settings: of the run.
        options: of the command.

    Returns:
        Whether no finding is a problem.

    Raises:
        ValueError: a run could not start with these settings.
    """
    findings = examine(settings, options.num_prompts)
    worst = max((finding.verdict for finding in findings), key=list(COLORS).index)
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
    """The findings of every check on ``num_prompts`` training prompts.

    The student responds to them as in a run, and the teacher scores its responses.
    """
    with (
        on_cpu(settings.on_cpu),
        tempfile.TemporaryDirectory(prefix="pad-fast-doctor-") as folder,
    ):
        # With a single shard, the metrics of the shard are those of all prompts.
        config = settings.run.changed(output_dir=folder, shard_size=num_prompts)
        run = RunContext(Settings(config, settings.training))
        drawn, heldout = _drawn(run, num_prompts)
        run.train_rows = drawn  # in the place of the file that a run writes
        try:
            rows, metrics = _scored(run, drawn)
            differences = of_engines(run, rows)
        finally:
            run.engines.close()
        return [*of_samples(run, rows, heldout), *of_scores(run, rows, metrics), *differences]


def _drawn(run: RunContext, count: int) -> tuple[list[Row], int]:
    """The prompts to try, less those that a run would drop, and the number of held-out prompts."""
    config, student = run.config, run.student(0)
    check_sources(config)
    check_training(run)
    check_hub(run.training, config.hub_dataset_id, config.hub_dtype)
    check_models(config, student, run.judge)
    train, heldout = read_split(config, partial(keep_rows, run.files))
    check_prompts(itertools.chain(train, heldout), student, run.judge)
    drawn = random.Random(derive_seed(config.seed, "doctor")).sample(train, min(count, len(train)))
    rows = list(fitting(drawn, config, student, run.judge, run.training.max_length))
    if not rows:
        raise ValueError(f"prompts: all {len(drawn)} that were drawn are too long")
    return rows, len(heldout)


def _scored(run: RunContext, rows: Sequence[Row]) -> tuple[list[Row], Row]:
    """The rows with responses and both models' rewards, and the metrics of scoring."""
    root, count = run.folder.root, run.config.num_generations
    metrics: Row = {}
    seed, sampler = round_seed(run.config.seed, 0, "doctor"), run.sampler(count, rewards=True)
    if given.is_given(rows):
        rows = list(given.without_responses(rows))
        given.write_samples(run, rows, root / "samples", title="doctor · student")
    else:
        title = "doctor · sample"
        with run.engine(run.student(0)) as student:
            sample_shards(student, rows, root / "samples", sampler, seed=seed, title=title)
    given.write_scores(root / "samples", root / "scores")
    if shard_paths(root / "scores"):
        return read_rows(root / "scores"), metrics
    with run.scorer() as scorer:
        scorer.score_shards(
            root / "samples",
            root / "scores",
            count,
            title="doctor · teacher",
            on_shard=lambda _, __, values: metrics.update(values),
        )
    return read_rows(root / "scores"), metrics


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a line for each check, with advice below it if it is not ok."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("finding and advice")
    for finding in findings:
        text = finding.found if not finding.advice else f"{finding.found}\n→ {finding.advice}"
        table.add_row(
            finding.check,
            finding.verdict,
            text,
            style=None if finding.verdict == "ok" else COLORS[finding.verdict],
        )
    console = console or plain_console()
    show_table(console, table, least=64)
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in COLORS
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), style="dim")
