"""Measure a suite: ``python -m benchmarks --suite NAME``.

A whole suite adds its records to benchmarks/results/ and rebuilds tables and pictures; a part of
it, chosen with --case or --contestant, is shown and not recorded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The profiler would report each of its starts; the variable is read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")

import torch

from benchmarks import machine, records, tables
from benchmarks.records import Record
from benchmarks.suites import SUITES, Suite


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    suite = SUITES[options.suite]
    if suite.on_gpu and not torch.cuda.is_available():
        missing = f"--suite {suite.name} needs a CUDA device, and torch sees none"
        print(f"benchmarks: {missing}", file=sys.stderr)
        return 1
    device = torch.device(suite.device)
    run = {"run": records.now(), "suite": suite.name, **machine.describe(device)}
    roofs = machine.roofs(device)
    print(f"{run['device']}, torch {torch.__version__}: {_in_words(roofs)}")
    for record in _measured(suite, options, device, roofs):
        print(tables.line(record), flush=True)
        if options.results:
            file = records.path(options.results, suite.name)
            records.append(file, run | {"roofs": roofs} | record)
    if options.results == records.RESULTS:
        tables.rebuild()
    return 0


def _in_words(roofs: dict[str, float]) -> str:
    rates = dict(roofs)
    copy = f"copy {rates.pop('copy') / 1e9:.0f} GB/s"
    products = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in rates.items())
    return f"{copy}, product {products}"


def _measured(
    suite: Suite, options: argparse.Namespace, device: torch.device, roofs: dict[str, float]
) -> Iterator[Record]:
    """The records of all chosen cases and contestants, until the minutes are over."""
    chosen = [c for c in suite.contestants if options.contestant in c.name]
    minutes = options.minutes or suite.minutes
    deadline = time.monotonic() + 60 * minutes
    for case in suite.cases:
        if options.case not in case.label:
            continue
        if time.monotonic() > deadline:
            print(f"\n{case.label}: not run, {minutes:g} minutes are over")
            continue
        print(f"\n{case.label}", flush=True)
        yield from suite.measure(case, chosen, device, roofs)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    lines = [
        f"  {suite.name:12} {suite.content}, {suite.minutes:g} minutes" for suite in SUITES.values()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["suites:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=SUITES, required=True)
    text: dict[str, Any] = {"default": "", "metavar": "TEXT"}
    parser.add_argument("--case", **text, help="only cases whose label contains TEXT")
    parser.add_argument("--contestant", **text, help="only contestants whose name contains TEXT")
    parser.add_argument("--minutes", type=float, help="start no case after so many minutes")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder to which records are added; the committed tables stay as they are",
    )
    options = parser.parse_args(arguments)
    in_full = not options.case and not options.contestant and SUITES[options.suite].is_recorded
    options.results = options.results or (records.RESULTS if in_full else None)
    return options


if __name__ == "__main__":
    sys.exit(main())
