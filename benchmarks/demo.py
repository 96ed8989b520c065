"""Which of the demo's methods is ahead, whatever the student and the seed?

``python -m benchmarks.demo --students DIR [DIR ...] --seeds 1 2 3`` runs ``pad-fast demo`` for
every base student and seed, each in its own process, and adds what their evaluations say to
results/demo.jsonl. ``python -m benchmarks.tables`` makes the tables. More base students are made
by ``tools/make_tiny_world.py --only student --student-seed S``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.machine import describe
from pad_fast.evaluation import model_names
from pad_fast.evaluation.reported_metrics import METRICS, Metric
from pad_fast.pipeline.compared import phase_of
from pad_fast.report.costs import read_costs

EMBEDDED = Path(__file__).parents[1] / "pad_fast" / "tiny_world" / "student"
OWN = "PAD"  # the run's own method
COSTS = {"tokens": "tokens read", "seconds": "seconds of training"}
RESULTS = Path(__file__).parent / "results" / "demo.jsonl"


def run_demo(student: Path, seed: int, folder: Path, options: list[str], threads: int) -> dict:
    """Run the command from the start in a new process; the record of what its evaluations say."""
    command = [sys.executable, "-m", "pad_fast.cli", "demo", "--student", str(student)]
    command += ["--seed", str(seed), "--output_dir", str(folder), *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    seconds = time.perf_counter() - start
    evaluations = {
        path.stem: json.loads(path.read_text())
        for path in sorted((folder / "evaluation").glob("*.json"))
    }
    settings = json.loads((folder / "run.json").read_text())["config"]
    phases = {name: phase_of(name) for name in settings["compare"]} | {OWN: "train"}
    costs = {row["title"].rpartition(" · ")[2]: row for row in read_costs(folder)}
    config = {name: value for name, value in settings.items() if not Path(str(value)).is_absolute()}
    return {
        "student": student.name,
        "seed": seed,
        "seconds": round(seconds),
        "threads": threads,
        "evaluations": evaluations,
        "costs": {
            name: {key: costs[phase][key] for key in COSTS} for name, phase in phases.items()
        },
        "config": config,
    }


def stages(record: dict) -> dict[str, dict]:
    """The evaluations that are compared, by their label, in the order of the table.

    A record of a demo without compared methods has the student after the last round.
    """
    found = record["evaluations"]
    methods = record.get("config", {}).get("compare") or {}
    others = [name for name in found if name != model_names.TEACHER]
    others = [*methods] or [name for name in others if not model_names.is_student(name)]
    last = found[max(filter(model_names.is_student, found))]
    return {
        model_names.label(model_names.TEACHER): found[model_names.TEACHER],
        model_names.BEFORE: found[model_names.BASE],
        OWN if methods else model_names.AFTER: last,
        **{model_names.label(name): found[name] for name in others},
    }


def trained(record: dict) -> list[str]:
    """The labels of the students that a run trained."""
    return list(stages(record))[2:]


def table(records: list[dict]) -> list[list[str]]:
    """The table's rows of cells: the mean over the runs, and the range from least to most."""
    metrics = _metrics(records)
    costs = [key for key in COSTS if any("costs" in record for record in records)]
    heads = [*(metric.text_heading for metric in metrics), *(COSTS[key] for key in costs)]
    rows = [["", *heads], ["---", *["---:"] * len(heads)]]
    for stage in stages(records[0]):
        cells = [_cell(metric, _values(records, stage, metric)) for metric in metrics]
        rows.append([stage, *cells, *(_cost(records, stage, key) for key in costs)])
    return rows


def ahead(records: list[dict]) -> str:
    """In how many of the runs no method is above each, for each metric of which more is better."""
    counts = []
    for metric in _metrics(records):
        if metric.better > 0:
            methods = trained(records[0])
            values = [_values(records, stage, metric) for stage in methods]
            known = [each for each in zip(*values, strict=True) if None not in each]
            wins = [[value == max(each) for value in each] for each in known]
            counted = zip(methods, map(sum, zip(*wins, strict=True)), strict=False)
            shares = [f"{name} {count}" for name, count in counted if count]
            counts.append(f"{metric.text_heading}: {', '.join(shares)}")
    return "; ".join(counts)


def _cost(records: list[dict], stage: str, key: str) -> str:
    """The mean of what a training took over the runs; a dash for a model that was not trained."""
    known = [record["costs"][stage][key] for record in records if stage in record.get("costs", {})]
    return f"{statistics.fmean(known):,.0f}" if known else "–"


def _metrics(records: list[dict]) -> list[Metric]:
    """The columns. A metric that is newer than the records has none."""
    return [
        metric
        for metric in METRICS.values()
        if not metric.detail
        and any(metric.key in found for record in records for found in stages(record).values())
    ]


def _values(records: list[dict], stage: str, metric: Metric) -> list[float | None]:
    """The metric at a stage of each run; None where it does not apply."""
    return [stages(record)[stage].get(metric.key) for record in records]


def _cell(metric: Metric, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"

    def shown(value: float) -> str:
        return f"{100 * value:.1f}" if metric.percent else f"{value:.3g}"

    least, most = min(known), max(known)
    spread = f" ({shown(least)}–{shown(most)})" if most > least else ""
    return f"{shown(statistics.fmean(known))}{'%' if metric.percent else ''}{spread}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument(
        "--students", nargs="+", type=Path, default=[EMBEDDED], help="folders of base students"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the run")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the cores equally"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/study"), help="where the runs are written"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="records are added here")
    parser.add_argument("options", nargs="*", help="more options of pad-fast demo, after --")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    threads = max(1, torch.get_num_threads() // given.jobs)

    def run(pair: tuple[Path, int]) -> dict:
        student, seed = pair[0].resolve(), pair[1]
        folder = given.folder / f"{student.parent.name}-{student.name}-{seed}"
        return run_demo(student, seed, folder, given.options, threads)

    with ThreadPoolExecutor(given.jobs) as pool, given.results.open("a") as file:
        for record in pool.map(run, itertools.product(given.students, given.seeds)):
            about = {"run": started, **describe(torch.device("cpu"))}
            file.write(json.dumps(about | record) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
