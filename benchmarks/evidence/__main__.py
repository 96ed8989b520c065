"""When does preference distillation help? A study on the embedded world, in cells.

``python -m benchmarks.evidence --quick`` does the smallest useful part in under 15 minutes of
2 cores; ``--hours 6`` begins no cell after six hours. A cell with a record is not done again, so
the same command goes on where another was stopped. ``--list`` says what is done, ``--tables``
prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import datasets
from transformers.utils import logging as transformers_logging

from benchmarks import records
from benchmarks.evidence.cells import Cell, cells
from benchmarks.evidence.kept import write_shortened
from benchmarks.evidence.runner import Study
from benchmarks.evidence.settings import SETTINGS, SIZES
from benchmarks.evidence.tables import report

FOLDER = Path("runs") / "evidence"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument(
        "--size", choices=[*SIZES], default="full", help="how large the study is (default: full)"
    )
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="size", help="the same as --size quick"
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        metavar="NAME",
        choices=[*SETTINGS],
        help=f"do cells of these alone: {', '.join(SETTINGS)}",
    )
    parser.add_argument("--hours", type=float, help="begin no cell after so many hours")
    parser.add_argument("--list", action="store_true", help="list the cells, and do none")
    parser.add_argument("--tables", action="store_true", help="print the tables, and do no cell")
    parser.add_argument(
        "--recount",
        action="store_true",
        help="count again what the recorded trainings read, where their groups are in --folder",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="write the records to FILE, shortened, and do no cell",
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where runs are written")
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="folder of evidence.jsonl"
    )
    given = parser.parse_args(arguments)
    if given.hours is not None and given.hours <= 0:
        parser.error(f"--hours must be above 0, got {given.hours}")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    size = SIZES[given.size]
    study = Study(size, given.folder.resolve(), given.results, given.settings)
    if given.keep:
        written = write_shortened(records.load(given.results, "evidence"), given.keep)
        print(f"wrote {given.keep}, {written / 1e6:.1f} MB")
        return
    if given.recount:
        print(f"changed {study.recount()} records")
        return
    if given.list:
        for cell in cells(size):
            print("done " if cell.key in study.known else "     ", cell.label)
        return
    if not given.tables:
        logging.getLogger("pad_fast").setLevel(logging.ERROR)  # a pool's warnings are not news
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        total, done = len(cells(size)), sum(cell.key in study.known for cell in cells(size))
        for number, record in enumerate(study.run(given.hours), done + 1):
            cell, found = Cell(**record["cell"]), record["means"]
            greedy, sampled = SETTINGS[cell.setting].world.tuned_by
            print(
                f"{number}/{total} {record['seconds']:.0f} s  {cell.label}  "
                f"greedy {found[greedy]:.3f} sampled {found[sampled]:.3f}",
                flush=True,
            )
    print(report(size, list(study.known.values())))


if __name__ == "__main__":
    main()
