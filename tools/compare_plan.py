"""Compare `pad-fast plan` with what a run on a real pair of models takes: ``--help`` lists options.

Method:

The plan of a small run is kept in its folder, then the run is done in a process of its own. Each
piece of work of the run, by the title of its progress bar, has the plan's seconds and peak memory
beside what costs.jsonl holds. Nothing else may run on the machine meanwhile, or ``--clock cpu``
compares CPU seconds of one thread; memory is the same either way.

Needs the package gguf in addition to pad-fast's own, which reads the pair (tools/real_model.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from marked_part import markdown, write_part
from real_model import add_arguments, make_pair, read_prompts

from pad_fast.report.costs import Comparison, compared, read_costs, read_plan
from pad_fast.terminal import plain_table

ROOT = Path(__file__).resolve().parents[1]
TIME, MEMORY = 1.5, 1.15  # factors within which a plan is promised to be
RECORDS = ROOT / "benchmarks" / "results" / "plan.jsonl"
PAGE = ROOT / "docs" / "plan.md"
MIB = 2**20

Row = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, layers=20, number=64, responses=4, tokens=48)
    parser.add_argument(
        "--records", type=Path, default=RECORDS, help="jsonl that a line is added to"
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine"
    )
    parser.add_argument("--table", type=Path, default=PAGE, help="page whose table is replaced")
    return parser.parse_args()


def write_config(options: argparse.Namespace, models: tuple[Path, Path]) -> tuple[Path, Path]:
    """The YAML file of the run, and its folder."""
    folder, prompts = options.cache / "plan-run", options.cache / "plan-prompts.jsonl"
    shutil.rmtree(folder, ignore_errors=True)
    texts = read_prompts(options.prompts, options.number)
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    settings = {
        "teacher": models[0].resolve(),
        "student": models[1].resolve(),
        "prompts": prompts.resolve(),
        "heldout_size": max(2, options.number // 4),
        "validation_size": max(2, options.number // 8),
        "output_dir": folder.resolve(),
        "dtype": "bfloat16",
        "num_generations": options.responses,
        "max_new_tokens": options.tokens,
        "baseline": "seqkd",
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-5,
        "save_strategy": '"no"',
        "disable_tqdm": "true",
        "report_to": "none",
    }
    config = options.cache / "plan-run.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return config, folder


def call(clock: str, *words: str) -> None:
    """A command of pad-fast in a process of its own, by a clock."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path} | ({"OMP_NUM_THREADS": "1"} if clock == "cpu" else {})
    entry = ["-m", "pad_fast"] if clock == "wall" else [str(ROOT / "tools" / "cpu_clock.py")]
    subprocess.run([sys.executable, *entry, *words], check=True, env={**os.environ, **own})


def table(rows: Sequence[Comparison]) -> Table:
    """Plan and measurement of each piece, with their ratios: measured over planned."""
    found = plain_table(("seconds planned", "taken", "ratio", "MiB planned", "held", "ratio"))
    for row in rows:
        time, memory = row.time_ratio, row.memory_ratio
        wrong = _beyond(time, TIME) or _beyond(memory, MEMORY)
        found.add_row(
            row.title,
            _shown(row.planned_here),
            _shown(row.seconds),
            _shown(time),
            _shown(row.planned_peak, MIB, 0),
            _shown(row.peak, MIB, 0),
            _shown(memory),
            style="yellow" if wrong else None,
        )
    return found


def _beyond(ratio: float | None, factor: float) -> bool:
    return ratio is None or abs(math.log(ratio)) > math.log(factor)


def _shown(value: float | None, unit: float = 1.0, digits: int = 2) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


def write_table(record: Row, rows: Sequence[Comparison], path: Path) -> None:
    """The table in the document, made from a record."""
    headings = ("work", "s planned", "s taken", "ratio", "MiB planned", "MiB held", "ratio")
    cells = [
        (
            row.title,
            _shown(row.planned_here),
            _shown(row.seconds),
            _shown(row.time_ratio),
            _shown(row.planned_peak, MIB, 0),
            _shown(row.peak, MIB, 0),
            _shown(row.memory_ratio),
        )
        for row in rows
    ]
    what = "{prompts} prompts, {responses} responses of {tokens} tokens, {threads} threads"
    clock = "CPU seconds of a shared machine, " if record["clock"] == "cpu" else ""
    said = f"{what.format(**record)}, {clock}{record['at']}."
    write_part(path, "pair", [said, "", *markdown(headings, cells)])


def main() -> int:
    options = parse()
    models = make_pair(options.cache, options.wheel, options.layers)
    config, folder = write_config(options, models)
    call(options.clock, "plan", str(config), "--keep", "true")
    call(options.clock, "run", str(config))
    rows = compared(read_plan(folder), read_costs(folder))
    console = Console(width=120)
    console.print(table(rows))
    within = [row for row in rows if not _beyond(row.time_ratio, TIME)]
    fitting = [row for row in rows if not _beyond(row.memory_ratio, MEMORY)]
    console.print(
        f"{len(within)} of {len(rows)} pieces within {TIME} times the planned time, "
        f"{len(fitting)} within {MEMORY - 1:.0%} of the planned memory"
    )
    record = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "clock": options.clock,
        "threads": torch.get_num_threads() if options.clock == "wall" else 1,
        "layers": options.layers,
        "prompts": options.number,
        "responses": options.responses,
        "tokens": options.tokens,
        "pieces": [row.as_json() for row in rows],
    }
    with options.records.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    write_table(record, rows, options.table)
    return 0 if len(within) == len(fitting) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
