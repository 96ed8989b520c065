"""``python -m tests.fuzz [--minutes M] [--seed S] [--kind K]``, or ``--case SEED`` for one case."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import argparse
import itertools
import logging
import sys
import time
from collections import Counter

import torch

from .compare import closest
from .run import KINDS, kind_of, run_case

PROGRESS = 60.0  # seconds between two lines
MOST_PRINTED = 20


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to run")
    parser.add_argument("--cases", type=int, help="stop after this many cases")
    parser.add_argument("--seed", type=int, help="the first seed; the others count up from it")
    parser.add_argument("--kind", choices=list(KINDS), help="run cases of this kind only")
    parser.add_argument("--case", type=int, metavar="SEED", help="run one case and print it whole")
    return parser.parse_args(arguments)


def one(seed: int) -> int:
    failure = run_case(seed, whole=True)
    print(failure or f"passed: {kind_of(seed)}, seed {seed}")
    return int(failure is not None)


def many(options: argparse.Namespace) -> int:
    """Run cases until the time is up; the exit code is 1 if one failed."""
    first = time.time_ns() // 1_000_000 % 10**9 * 1000 if options.seed is None else options.seed
    start = shown = time.monotonic()
    failed: Counter[str] = Counter()
    count = 0
    for seed in itertools.count(first):
        if time.monotonic() - start > 60 * options.minutes or count == options.cases:
            break
        if options.kind not in (None, kind_of(seed)):
            continue
        failure, count = run_case(seed), count + 1
        if failure is not None:
            failed[failure.kind] += 1
            text = (
                str(failure) if failed.total() <= MOST_PRINTED else f"FAILED {failure.kind}: {seed}"
            )
            print(text, flush=True)
        if time.monotonic() - shown > PROGRESS:
            shown = time.monotonic()
            print(
                f"{(shown - start) / 60:.1f} min, {count} cases, {failed.total()} failed",
                flush=True,
            )
    print(f"{count} cases from seed {first}, {failed.total()} failed {dict(failed) or ''}")
    print(
        "largest error by tolerance: "
        + ", ".join(f"{k} {v:.2f}" for k, v in sorted(closest.items()))
    )
    return int(bool(failed))


def main() -> int:
    torch.set_num_threads(1)
    logging.getLogger("pad_fast").setLevel(logging.ERROR)  # "auto" says where it samples
    options = parse(sys.argv[1:])
    return many(options) if options.case is None else one(options.case)


if __name__ == "__main__":
    sys.exit(main())
