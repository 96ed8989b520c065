"""The table of bad inputs, ``docs/bad_inputs.md``: the message to each, and after how many seconds.

``python tools/bad_inputs.py [--check]`` gives every bad input of tests/bad_inputs to the command.
With ``--check`` it writes nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402

from pad_fast.pipeline import rounds  # noqa: E402, F401  imported before the forks
from pad_fast.training import trainer  # noqa: E402, F401
from tests.bad_inputs import CASES  # noqa: E402
from tests.bad_inputs.attempt import Case, Outcome, Worlds, attempt, faults  # noqa: E402

PAGE = ROOT / "docs" / "bad_inputs.md"
LONGEST = 420  # letters of a message


def attempts(cases: Sequence[Case]) -> list[tuple[Case, Outcome]]:
    """Every case with what came of it."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory(prefix="pad-fast-bad-") as folder:
        worlds = Worlds(Path(folder) / "worlds")
        for case in cases:
            outcome = attempt(case, worlds.of(case))
            found.append((case, outcome))
            for fault in faults(case, outcome):
                print(f"{case.group}: {case.what}: {fault}\n    {outcome.last}", file=sys.stderr)
    return found


def page(found: Sequence[tuple[Case, Outcome]]) -> str:
    """The table in Markdown."""
    slowest = max(outcome.seconds for _, outcome in found)
    lines = [
        "# Bad inputs",
        "",
        f"What `pad-fast run` says to {len(found)} bad inputs, each alone in a small world that "
        "would run. Made by `python tools/bad_inputs.py` from the commands themselves; "
        "`tests/bad_inputs/` holds them.",
        "Seconds are from the start of the command, imports apart; the slowest took "
        f"{slowest:.1f} s on two busy cores. Weights: the models whose weights had been read by "
        "then. `WORK` is the folder of the world. "
        f"{sum(case.reads > 0 for case, _ in found)} of the inputs cannot be known before: weights "
        "that are NaN, and a quota that a file exceeds.",
    ]
    for group in dict.fromkeys(case.group for case, _ in found):
        lines += ["", f"## {group.capitalize()}", ""]
        lines += ["| input | message | seconds | weights |", "| --- | --- | ---: | ---: |"]
        lines += [
            f"| {_cell(case.what)} | {_cell(outcome.last.removeprefix('pad-fast: '))} "
            f"| {outcome.seconds:.2f} | {outcome.reads} |"
            for case, outcome in found
            if case.group == group
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text in a cell of a table; Markdown's own characters are shown as they are."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--group", help="the cases of one group, of which no page is written")
    options = parser.parse_args(arguments)
    found = attempts([case for case in CASES if options.group in (None, case.group)])
    wrong = sum(bool(faults(case, outcome)) for case, outcome in found)
    print(f"{len(found)} bad inputs, {wrong} answered badly")
    if not options.check and options.group is None:
        PAGE.write_text(page(found), encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
