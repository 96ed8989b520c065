"""Does the demo improve its student, whatever the seed? ``python -m benchmarks.demo --students DIR [DIR ...] --seeds 1 2 3``

Runs ``pad-fast demo`` once for every base student and seed, each in a process of its own, and adds what its evaluations say to
results/demo.jsonl. Base students beside the embedded one are made by ``tools/make_tiny_world.py --only student --student-seed S``.
The tables are made by ``python -m benchmarks.tables``.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.machine import describe

EMBEDDED = Path(__file__).parents[1] / "pad_fast" / "tiny_world" / "student"
COLUMNS = {  # key: heading, in percent
    "greedy_accuracy": ("right, greedy", True),
    "sampled_accuracy": ("right, sampled", True),
    "kendall_tau": ("tau, fixed groups", False),
    "top1": ("top-1, fixed groups", True),
    "fresh_kendall_tau": ("tau, fresh samples", False),
    "fresh_top1": ("top-1, fresh samples", True),
    "ppd_loss": ("loss, fixed groups", False),
    "mean_length": ("mean tokens", False),
}


def run_demo(student: Path, seed: int, folder: Path, options: list[str], threads: int) -> dict:
    """One run of the command, from nothing, and what its evaluations say."""
    command = [
        sys.executable,
        "-m",
        "pad_fast.cli",
        "demo",
        "--student",
        str(student),
        "--seed",
        str(seed),
        "--output_dir",
        str(folder),
    ]
    start = time.perf_counter()
    subprocess.run(
        [*command, *options], check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    seconds = time.perf_counter() - start
    evaluations = {
        path.stem: json.loads(path.read_text())
        for path in sorted((folder / "evaluation").glob("*.json"))
    }
    settings = json.loads((folder / "run.json").read_text())["config"]
    config = {name: value for name, value in settings.items() if not Path(str(value)).is_absolute()}
    return {
        "student": student.name,
        "seed": seed,
        "seconds": round(seconds),
        "threads": threads,
        "evaluations": evaluations,
        "config": config,
    }


def stages(record: dict) -> dict[str, dict]:
    """The evaluations that are compared, in the order of the table."""
    found = record["evaluations"]
    last = max(name for name in found if name.startswith("student-"))
    return {
        "teacher": found["teacher"],
        "student before": found["student-00"],
        "student after": found[last],
        "SeqKD": found["seqkd"],
    }


def table(records: list[dict]) -> list[list[str]]:
    """Rows of cells: mean over the runs, and from the least to the most."""
    rows = [["", *(heading for heading, _ in COLUMNS.values())], ["---", *["---:"] * len(COLUMNS)]]
    for stage in stages(records[0]):
        cells = [
            _cell([stages(record)[stage][key] for record in records], in_percent)
            for key, (_, in_percent) in COLUMNS.items()
        ]
        rows.append([stage, *cells])
    return rows


def rises(records: list[dict]) -> str:
    """In how many of the runs each measure rose."""
    keys = [key for key in COLUMNS if key not in ("ppd_loss", "mean_length")]
    counts = {
        key: sum(
            stages(r)["student after"][key] > stages(r)["student before"][key] for r in records
        )
        for key in keys
    }
    return ", ".join(f"{COLUMNS[key][0]} in {count}" for key, count in counts.items())


def _cell(values: Iterable[float | None], in_percent: bool) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    form = (lambda value: f"{100 * value:.1f}") if in_percent else (lambda value: f"{value:.3g}")
    spread = f" ({form(min(known))}–{form(max(known))})" if max(known) > min(known) else ""
    return f"{form(statistics.fmean(known))}{'%' if in_percent else ''}{spread}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument(
        "--students", nargs="+", type=Path, default=[EMBEDDED], help="folders of base students"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the run")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; the cores are shared out among them"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/study"), help="where the runs are written"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results" / "demo.jsonl",
        help="records are added here",
    )
    parser.add_argument("options", nargs="*", help="more options of pad-fast demo, after --")
    given = parser.parse_args(arguments)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    threads = max(1, torch.get_num_threads() // given.jobs)

    def run(pair: tuple[Path, int]) -> dict:
        student, seed = pair[0].resolve(), pair[1]
        return run_demo(
            student,
            seed,
            given.folder / f"{student.parent.name}-{student.name}-{seed}",
            given.options,
            threads,
        )

    with ThreadPoolExecutor(given.jobs) as pool, given.results.open("a") as file:
        for record in pool.map(run, itertools.product(given.students, given.seeds)):
            file.write(
                json.dumps({"run": started, **describe(torch.device("cpu")), **record}) + "\n"
            )
            file.flush()


if __name__ == "__main__":
    main()
