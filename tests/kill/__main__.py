"""``python -m tests.kill [--kills N] [--seed S] [--out FILE.json]``: kill runs and compare."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import platform
import secrets
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the shared modules of tests/

from pad_fast.environment import versions

from .killer import attack


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="how often to kill")
    parser.add_argument("--per-folder", type=int, default=6, help="kills of one run")
    parser.add_argument("--seed", type=int, help="of the times; drawn if not given")
    parser.add_argument("--out", type=Path, help="a JSON file for the record")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pad-fast-kill-") as folder:
        report = attack(Path(folder), options.kills, options.per_folder, seed)
    record = {
        "seed": seed,
        **vars(report),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": platform.platform(),
        "versions": versions(),
    }
    print(json.dumps(record, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(bool(report.different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
