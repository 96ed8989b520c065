"""``python -m benchmarks --suite cpu|gpu|steps|gpu-steps``: measure, append the records to benchmarks/results/, rebuild tables and
pictures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "9"
)  # the profiler would tell of each start; read when torch is imported

import torch

from benchmarks import machine, tables
from benchmarks.measure import run_case
from benchmarks.steps import STEP_CONTESTANTS, STEP_SUITES, run_step_case
from benchmarks.suites import CONTESTANTS, SUITES

MINUTES = {  # make gpu has 8, of which its tests take some
    "cpu": 10.0, "gpu": 5.0, "smoke": 1.0, "steps": 4.0, "gpu-steps": 25.0, "steps-smoke": 1.0,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    on_gpu = options.suite.startswith("gpu")
    if on_gpu and not torch.cuda.is_available():
        print(
            f"benchmarks: --suite {options.suite} needs a CUDA device, and torch sees none",
            file=sys.stderr,
        )
        return 1
    device = torch.device("cuda" if on_gpu else "cpu")
    run = {
        "run": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "suite": options.suite,
        **machine.describe(device),
    }
    roofs = machine.roofs(device)
    print(
        f"{run['device']}, torch {torch.__version__}: copy {roofs['copy'] / 1e9:.0f} GB/s, product ",
        end="",
    )
    print(
        ", ".join(
            f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in roofs.items() if name != "copy"
        )
    )
    for record in _records(options, device, roofs):
        print(tables.line(record), flush=True)
        if options.results:
            options.results.mkdir(parents=True, exist_ok=True)
            with open(options.results / f"{options.suite}.jsonl", "a") as file:
                file.write(json.dumps(run | {"roofs": roofs} | record) + "\n")
    if options.results == tables.RESULTS:
        tables.rebuild()
    return 0


def _records(
    options: argparse.Namespace, device: torch.device, roofs: dict[str, float]
) -> Iterator[dict]:
    whole_models = options.suite in STEP_SUITES
    everybody = STEP_CONTESTANTS if whole_models else CONTESTANTS
    contestants = [contestant for contestant in everybody if options.contestant in contestant.name]
    deadline = time.monotonic() + 60 * options.minutes
    cases: Any = STEP_SUITES[options.suite] if whole_models else SUITES[options.suite]
    for case in cases:
        if options.case not in case.label:
            continue
        if time.monotonic() > deadline:
            print(f"\n{case.label}: not run, {options.minutes:g} minutes are over")
            continue
        print(f"\n{case.label}", flush=True)
        yield from (run_step_case if whole_models else run_case)(case, contestants, device, roofs)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=[*SUITES, *STEP_SUITES], required=True)
    parser.add_argument(
        "--case", default="", metavar="TEXT", help="only cases whose label contains TEXT"
    )
    parser.add_argument(
        "--contestant", default="", metavar="TEXT", help="only contestants whose name contains TEXT"
    )
    parser.add_argument("--minutes", type=float, default=None, help="start no case after so long")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder to which records are appended; tables are left as they are",
    )
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or MINUTES[options.suite]
    # A part of a suite is shown and not kept: tables are made of whole runs.
    whole = not (options.case or options.contestant or "smoke" in options.suite)
    options.results = options.results or (tables.RESULTS if whole else None)
    return options


if __name__ == "__main__":
    sys.exit(main())
