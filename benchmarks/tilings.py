"""Time the kernels' tiles on a card: ``python -m benchmarks.tilings [JOB ...]``.

For each job it times the tiles of the tuning tables in ``kernels/*/tuning.py`` and others beside
them, in turns, and adds records to results/tilings.jsonl. The tables are changed by hand, where a
candidate is ahead by more than its two times differ. ``--compile`` only compiles what will be
timed, on little data: several jobs at a time, on the cores that a card's machine has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import records
from benchmarks.machine import describe
from pad_fast.logprob.softmax import TokenOptions

PASSES = 2  # times that each candidate is timed, all of them once before any is timed again
FEW = 64  # rows where nothing is timed
CAP = 30.0
LLAMA, GEMMA = 128256, 256000  # vocabularies
WIDTH = 4096
DEVICE = "cuda"  # tests set it to "cpu", where kernels run in the interpreter
Call = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """A kernel at a size: ``make(rows)`` gives what launches it once with a candidate."""

    rows: int
    make: Callable[[int], Callable[[Any], Call]]
    candidates: Callable[[], list[Any]]  # the one in the tables first, and maybe again


def _labels(rows: int, vocabulary: int) -> Tensor:
    return torch.arange(rows, device=DEVICE) * 7 % vocabulary


# Given logits.


def _given(vocabulary: int, softcap: float, backward: bool) -> Callable[[int], Any]:
    def make(rows: int) -> Callable[[Any], Call]:
        from pad_fast.kernels.logprob import launch

        logits = torch.randn(1, rows, vocabulary, device=DEVICE, dtype=torch.bfloat16).mul_(3)
        labels, options = _labels(rows, vocabulary)[None], TokenOptions(softcap=softcap)
        _, peak, total = launch.forward(logits, labels, options)
        grad, out = torch.rand_like(peak), torch.empty_like(logits) if backward else logits

        def call(tiling: Any) -> Call:
            if not backward:
                return lambda: launch.forward(logits, labels, options, tiling)
            softmax = (peak, total)
            return lambda: launch.backward(
                grad, logits, labels, softmax, options, out, tiling=tiling
            )

        return call

    return make


def _given_tiles(softcap: float, backward: bool) -> Callable[[], list[Any]]:
    def candidates() -> list[Any]:
        from pad_fast.kernels.logprob.tuning import Tiling, tilings_of

        sizes = [(kib, warps) for kib in (1, 2, 4, 8, 16) for warps in (1, 2, 4, 8, 16)]
        # A thread takes 32, 64 or 128 bytes of a tile.
        fitting = [(kib, warps) for kib, warps in sizes if 1 <= kib / warps <= 4]
        whole = (32, 64, 128) if backward else (64,)  # KiB that a program of the backward takes
        others = [Tiling(kib << 10, warps, part // kib) for kib, warps in fitting for part in whole]
        return [tilings_of(torch.device(DEVICE)).of(softcap), *others]

    return candidates


# Logits of a chunk, in float32.


def _rows(vocabulary: int, softcap: float) -> Callable[[int], Any]:
    def make(rows: int) -> Callable[[Any], Call]:
        from pad_fast.kernels.linear_logprob import launch

        logits = torch.randn(rows, vocabulary, device=DEVICE).mul_(3)
        labels, options = _labels(rows, vocabulary), TokenOptions(softcap=softcap)
        scores = torch.empty(rows, vocabulary, device=DEVICE, dtype=torch.bfloat16)
        row_scale, *found = (torch.empty(rows, device=DEVICE) for _ in range(4))
        kept, numbers = (scores, row_scale), tuple(found)

        def call(tiling: Any) -> Call:
            return lambda: launch.rows(logits, None, labels, kept, numbers, options, tiling)

        return call

    return make


def _row_tiles(softcap: float) -> Callable[[], list[Any]]:
    def candidates() -> list[Any]:
        from pad_fast.kernels.linear_logprob.tuning import RowTiling, rows_of

        present = rows_of(torch.device(DEVICE)).of(torch.float32, softcap)
        sizes = [(4096, 32), (8192, 32), (2048, 16), (4096, 16), (8192, 16)]
        sizes += [(1024, 8), (2048, 8), (4096, 8), (512, 4), (1024, 4), (2048, 4), (512, 2)]
        sizes += [(256, 1), (1024, 2), (512, 1)]
        others = [RowTiling(columns, warps) for columns, warps in sizes]
        return [present, *others]

    return candidates


# Products that write no logits.


def _scoring(softcap: float) -> Callable[[int], Any]:
    def make(rows: int) -> Callable[[Any], Call]:
        from pad_fast.kernels.linear_logprob import launch
        from pad_fast.kernels.linear_logprob.tuning import scoring_of

        dtype, tables = torch.bfloat16, scoring_of(torch.device(DEVICE))
        hidden = torch.randn(rows, WIDTH, device=DEVICE, dtype=dtype)
        weight = torch.randn(LLAMA, WIDTH, device=DEVICE, dtype=dtype).mul_(3 / WIDTH**0.5)
        labels, options = _labels(rows, LLAMA), TokenOptions(softcap=softcap)

        def call(tiling: Any) -> Call:
            chosen = replace(tables, aligned=tiling)
            return lambda: launch.score(hidden, weight, None, labels, options, chosen)

        return call

    return make


def _scoring_tiles() -> list[Any]:
    from pad_fast.kernels.linear_logprob.tuning import ScoringTiling, scoring_of

    sizes = [(128, 128, 128, 4, 4), (128, 256, 128, 8, 3), (128, 256, 128, 8, 4)]
    sizes += [(256, 128, 128, 8, 3), (256, 128, 128, 8, 4), (128, 256, 64, 8, 4)]
    sizes += [(128, 128, 128, 8, 3), (128, 128, 128, 8, 5), (128, 128, 256, 8, 2)]
    others = [ScoringTiling(*size, described=True) for size in sizes]
    return [scoring_of(torch.device(DEVICE)).aligned, *others]


# Listwise losses, 512 groups. A tiling is what their options are changed to, as sorted pairs.


def _listwise(kind: str, method: str, n: int) -> Callable[[int], Any]:
    def make(rows: int) -> Callable[[Any], Call]:
        from pad_fast.kernels.preference import launch

        from pad_fast.preference.plackett_luce import RankingOptions

        student, teacher = torch.randn(2, rows, n, device=DEVICE).mul_(0.1)
        options, name = RankingOptions(10.0, 10.0), _options_name(kind, method)

        def call(tiling: Any) -> Call:
            def once() -> object:
                with patch.object(launch, name, lambda *_: dict(tiling)):
                    return launch.forward(student, teacher, None, kind, method, options)

            return once

        return call

    return make


def _listwise_tiles(kind: str, method: str, n: int, **others: tuple) -> Callable[[], list[Any]]:
    """The present options, and all combinations of ``others`` in their place."""

    def candidates() -> list[Any]:
        from pad_fast.kernels.common.device import architecture
        from pad_fast.kernels.preference import tuning

        name = architecture(torch.device(DEVICE))
        present = getattr(tuning, _options_name(kind, method))(n, name)
        chosen = [
            present | dict(zip(others, values, strict=True)) for values in product(*others.values())
        ]
        tiles = [tuple(sorted(options.items())) for options in (present, *chosen)]
        return [*dict.fromkeys(tiles)]

    return candidates


def _options_name(kind: str, method: str) -> str:
    if method == "sampled":
        return "sampled_options"
    return "exact_jsd_options" if kind == "jsd" else "exact_kl_options"


def _listwise_job(kind: str, method: str, n: int, **others: tuple) -> Job:
    return Job(512, _listwise(kind, method, n), _listwise_tiles(kind, method, n, **others))


JOBS = {
    "logits": Job(16384, _given(LLAMA, 0.0, False), _given_tiles(0.0, False)),
    "logits, softcap": Job(16384, _given(GEMMA, CAP, False), _given_tiles(CAP, False)),
    "logits backward": Job(16384, _given(LLAMA, 0.0, True), _given_tiles(0.0, True)),
    "logits backward, softcap": Job(16384, _given(GEMMA, CAP, True), _given_tiles(CAP, True)),
    "rows": Job(1024, _rows(LLAMA, 0.0), _row_tiles(0.0)),
    "rows, few": Job(300, _rows(LLAMA, 0.0), _row_tiles(0.0)),
    "rows, softcap": Job(512, _rows(GEMMA, CAP), _row_tiles(CAP)),
    # Fewer warps walk over the first half's orders fewer times; docs/design.md says what to expect.
    "jsd of 10": _listwise_job(
        "jsd", "exact", 10, num_warps=(1, 2, 4), BLOCK_F=(4, 8), maxnreg=(255,)
    ),
    "jsd of 8": _listwise_job("jsd", "exact", 8, BLOCK_S=(1, 2, 4), num_warps=(1, 2, 4)),
    "kl of 12": _listwise_job("kl", "exact", 12, num_warps=(8, 16, 32)),
    "sampled kl of 16": _listwise_job(
        "kl", "sampled", 16, num_warps=(1, 2, 4), DRAWS=(1, 2, 4), maxnreg=(128, 255)
    ),
    "scoring": Job(16384, _scoring(0.0), _scoring_tiles),
}


def compile_only(job: Job) -> None:
    """Compile what a job's candidates need; one that cannot be compiled is said and left."""
    call = job.make(min(FEW, job.rows))
    for tiling in job.candidates():
        _problem(call(tiling), tiling)


def measure(name: str, job: Job) -> list[records.Record]:
    """A record of each candidate: milliseconds of each pass, and their median over the first's."""
    from triton.testing import do_bench

    call = job.make(job.rows)
    calls = {tiling: call(tiling) for tiling in job.candidates()}
    calls = {tiling: call for tiling, call in calls.items() if _problem(call, tiling) is None}
    times: dict[Any, list[float]] = {tiling: [] for tiling in calls}
    for _ in range(PASSES):
        for tiling, once in calls.items():
            times[tiling].append(do_bench(once, warmup=10, rep=40, return_mode="median"))
    present = median(next(iter(times.values())))
    return [
        {
            "job": name,
            "rows": job.rows,
            "tiling": str(tiling),
            "times_ms": found,
            "ratio_to_present": median(found) / present,
        }
        for tiling, found in times.items()
    ]


def _problem(call: Call, tiling: Any) -> str | None:
    """Why a candidate does not run, which is printed: it may need more than a program can have."""
    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler raises
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"  {tiling}: {problem}", flush=True)
        return problem
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tilings", description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of: {'; '.join(JOBS)}")
    parser.add_argument("--compile", action="store_true", help="compile, and time nothing")
    parser.add_argument("--results", type=Path, default=records.path(records.RESULTS, "tilings"))
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.jobs) - set(JOBS)):
        parser.error(f"no job {', '.join(unknown)}; there are: {'; '.join(JOBS)}")
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device, and torch sees none")
    run = {"run": records.now(), **describe(torch.device(DEVICE))}
    for name in options.jobs or JOBS:
        print(name, flush=True)
        if options.compile:
            compile_only(JOBS[name])
            continue
        for record in measure(name, JOBS[name]):
            times = ", ".join(f"{time:.4g}" for time in record["times_ms"])
            print(f"  {record['ratio_to_present']:5.3f}  {times} ms  {record['tiling']}")
            records.append(options.results, run | record)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
