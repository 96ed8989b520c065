"""The memory of each phase of a run as the prompts grow: ``python -m benchmarks.run_memory``.

Each phase is done in a process of its own, with models whose forwards are replaced by random
numbers (``benchmarks/run_phases.py``).

Records:
    The peak of the resident memory, how much of it the process holds itself, and the time, in
    results/run-memory.jsonl. The other part are pages of mapped files, which the system takes back
    where memory is short. ``python -m benchmarks.tables`` makes a table and a picture of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import memory, records
from benchmarks.machine import ROOT, describe

NAME = "run-memory"
SIZES = (300_000, 100_000, 30_000, 10_000)  # the longest first, beside which the others fit
GOAL = 1_000_000, 4 * 2**30  # prompts, and the bytes that no phase is to need for them
INTERVAL = 0.02  # seconds between two looks at the process's own memory


class OwnPeak:
    """The largest memory that the process held itself inside the block, looked at again and again.

    Linux keeps the peak of all that is resident, and none of this part.
    """

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self.bytes = max(self.bytes, memory.resident("RssAnon") or 0)

    def __enter__(self) -> OwnPeak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def measure_here(phase: str, folder: Path) -> records.Record:
    """What a phase takes, done in this process; the modules that it needs are loaded before."""
    from benchmarks.run_phases import PHASES

    before = memory.resident()
    memory.forget_peak()
    start = time.perf_counter()
    with OwnPeak() as own:
        PHASES[phase](folder)
    return {
        "phase": phase,
        "seconds": round(time.perf_counter() - start, 3),
        "loaded_bytes": before,
        "peak_bytes": memory.resident("VmHWM"),
        "own_bytes": own.bytes,
    }


def measure(prompts: int, parent: Path | None = None) -> Iterator[records.Record]:
    """A record for each phase of a run over so many prompts, each done in a process of its own.

    Raises:
        RuntimeError: a phase fails; the message is what it wrote last.
    """
    from benchmarks.run_phases import PHASES, temporary_world

    with temporary_world(prompts, parent) as folder:
        for phase in PHASES:
            words = [sys.executable, "-m", "benchmarks.run_memory", "--phase", phase, folder]
            done = subprocess.run(
                words,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"{phase}, {prompts} prompts: {done.stderr.strip()[-2000:]}")
            yield {"prompts": prompts, **json.loads(done.stdout.splitlines()[-1])}


def line_of(found: Iterable[records.Record], key: str) -> tuple[float, float]:
    """The straight line through a figure of one phase over the prompts: its slope and its start."""
    points = [(record["prompts"], record[key]) for record in found]
    x, y = np.array(points, dtype=np.float64).T
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start)


def by_phase(found: Iterable[records.Record]) -> dict[str, list[records.Record]]:
    """The records of each phase by their prompts; the phases as they follow one another."""
    phases: dict[str, list[records.Record]] = {}
    for record in sorted(found, key=lambda record: record["prompts"]):
        phases.setdefault(record["phase"], []).append(record)
    return phases


def table(found: list[records.Record]) -> list[list[str]]:
    """The rows of a table in Markdown: of each phase the peaks, and the line at a million prompts.

    A cell holds the peak in MiB and, in brackets, what the process held itself of it.
    """
    sizes = sorted({record["prompts"] for record in found})
    largest, (goal, _) = sizes[-1], GOAL
    heads = [*(f"{size:,}" for size in sizes), f"{goal:,} (line)", f"seconds at {largest:,}"]
    rows = [["phase", *heads], ["---", *["---:"] * len(heads)]]
    for phase, of_phase in by_phase(found).items():
        cells = {
            record["prompts"]: _cell(record["peak_bytes"], record["own_bytes"])
            for record in of_phase
        }
        ends = [slope * goal + start for slope, start in _lines(of_phase)]
        seconds = next((r["seconds"] for r in of_phase if r["prompts"] == largest), None)
        last = "–" if seconds is None else f"{seconds:,.0f}"
        row = [phase, *(cells.get(size, "–") for size in sizes)]
        rows.append([*row, _cell(*ends) if len(of_phase) > 1 else "–", last])
    return rows


def _lines(of_phase: list[records.Record]) -> list[tuple[float, float]]:
    return [line_of(of_phase, key) for key in ("peak_bytes", "own_bytes")]


def _cell(peak: float, own: float) -> str:
    return f"{peak / 2**20:,.0f} ({own / 2**20:,.0f})"


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    if options.phase:
        # What the phase itself prints is not what the process says.
        with contextlib.redirect_stdout(sys.stderr):
            found = measure_here(options.phase, options.folder)
        print(json.dumps(found))
        return
    run = {"run": records.now(), **describe(torch.device("cpu"))}
    lock = threading.Lock()

    def measure_size(prompts: int) -> None:
        for record in measure(prompts, options.parent):
            with lock:
                print(f"{prompts:9,} {record['phase']:30} "
                      f"{_cell(record['peak_bytes'], record['own_bytes']):>14} MiB "
                      f"{record['seconds']:8.1f} s", flush=True)  # fmt: skip
                records.append(options.results, run | record)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(measure_size, sorted(options.sizes, reverse=True)))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of prompts")
    parser.add_argument("--workers", type=int, default=2, help="sizes that are measured at a time")
    parser.add_argument("--parent", type=Path, help="where the runs lie meanwhile (about 2 GB)")
    parser.add_argument("--phase", help="measure one phase in this process, in a folder")
    parser.add_argument("folder", type=Path, nargs="?", help="of --phase")
    parser.add_argument(
        "--results",
        type=Path,
        default=records.path(records.RESULTS, NAME),
        help="file to which records are added",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
