"""A GPU's suites on a CPU: each case in small, by the same code, with a made-up card.

``python -m benchmarks.rehearsal [SUITE ...]`` shows what would fail on a card before one is there:
our kernels run in Triton's interpreter and plain PyTorch as it is; other projects, and what is
compiled, are imported and built, but not called. The clocks of the made-up card are the CPU's, so
no time is shown and no record is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # as in __main__.py

import torch

from benchmarks import measure, memory, peers, steps
from benchmarks.cases import JOBS, Case
from benchmarks.contestants import Contestant, Participant
from benchmarks.listwise import SAMPLED
from benchmarks.records import Record
from benchmarks.step_cases import StepCase
from benchmarks.suites import SUITES, AnyCase, Suite
from pad_fast import device as devices

SIZES = {"M": 40, "D": 16, "V": 200, "R": 4, "T": 6, "P": 2, "N": 4}
BUDGET = 1 << 19  # bytes, where a case has a budget
ROOFS = {"copy": 1e12, "float32": 1e13, "bfloat16": 1e14}
MOST_ERROR = {"float32": 1e-4, "bfloat16": 0.05}
MODEL_OF = {"Llama-3.2-1B": "tiny", "Gemma-2-2B": "tiny Gemma-2"}


def small(case: AnyCase) -> AnyCase:
    """The case with the same options and at most :data:`SIZES`."""
    if isinstance(case, StepCase):
        model = MODEL_OF[case.model]
        return replace(case, model=model, n=3, prompt=12, response=6, most=12, rounds=1)
    assert isinstance(case, Case)
    shape = tuple(min(size, SIZES[axis]) for axis, size in case.sizes.items())
    if case.job in JOBS and "P" in case.sizes:  # pairs stay pairs
        shape = (SIZES["P"], min(case["N"], SIZES["N"]), *shape[2:])
    budget = case.memory_budget and BUDGET
    return replace(case, shape=shape, memory_budget=budget, rounds=1)


def rehearse(suite: Suite, text: str = "") -> Iterator[Record]:
    """The records of all cases whose label contains ``text``, at their small sizes.

    Contestants that are imported and built alone have the status "built".
    """
    cpu, seen = torch.device("cpu"), set()
    with made_up_card():
        for case in suite.cases:
            if text not in case.label or small(case) in seen:
                continue
            seen.add(small(case))
            called = [c for c in suite.contestants if _is_called(c)]
            for record in suite.measure(small(case), called, cpu, ROOFS):
                yield record | {"case": case.label}
            yield from _built(small(case), suite.contestants, case.label)


def complaint(record: Record) -> str | None:
    """What is wrong with a record of a rehearsal; None if nothing is."""
    is_ours = record["contestant"].startswith("pad_fast")
    if record["status"] == "failed" or (is_ours and record["status"] not in ("ok", "unsupported")):
        return f"{record['contestant']}: {record['status']}: {record['reason']}"
    errors = {key: e for key, e in (record.get("error") or {}).items() if e is not None}
    if record.get("job", "").endswith(SAMPLED):  # an estimate, whose error is that of its draws
        return None
    most = MOST_ERROR[record["dtype"]] if errors else 0.0
    if is_ours and any(not error <= most for error in errors.values()):
        return f"{record['contestant']}: errors {errors}, more than {most:g}"
    return None


def report(suite: Suite, text: str = "") -> int:
    """Print what a rehearsal finds; the number of things that are wrong."""
    counts: dict[str, int] = {}
    wrong: list[str] = []
    absent: dict[str, str] = {}
    for record in rehearse(suite, text):
        counts[record["status"]] = counts.get(record["status"], 0) + 1
        if record["status"] == "absent":
            absent[record["contestant"]] = record["reason"]
        if found := complaint(record):
            wrong.append(f"{record['case']}: {found}")
            print(wrong[-1], flush=True)
    print(f"{suite.name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    for name, reason in absent.items():
        print(f"  not here: {name}: {reason}")
    return len(wrong)


# Other projects.


def _is_called(contestant: Participant) -> bool:
    """Whether a contestant runs in a rehearsal: ours and plain PyTorch, of steps all."""
    if not isinstance(contestant, Contestant):
        return True
    return contestant.package in ("pad_fast", "torch") and contestant.name != "torch.compile"


def _built(case: AnyCase, contestants: Sequence[Participant], label: str) -> Iterator[Record]:
    """Import and build those that are not called; whatever they raise is their status."""
    others = [c for c in contestants if isinstance(c, Contestant) and not _is_called(c)]
    for contestant in others:
        assert isinstance(case, Case)
        if contestant.takes_part(case):
            entry = measure.Entry(contestant, status="built")
            with measure.guarded(entry), patch.object(peers, "CPU_IS_REFUSED", False):
                inputs = measure.make_inputs(case, torch.device("cpu"))
                measure.make_step(contestant, case, inputs)
            yield {
                "case": label,
                "contestant": contestant.name,
                "status": entry.status,
                "reason": entry.reason,
                "dtype": case.dtype,
            }


# The card.


@dataclass
class _Event:
    """Stands for torch.cuda.Event."""

    enable_timing: bool = True
    seconds: float = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.seconds - self.seconds)


class _Stream:
    """Stands for torch.cuda.Stream and torch.cuda.CUDAGraph."""

    def wait_stream(self, other: _Stream) -> None: ...

    def replay(self) -> None: ...


def _yes(*arguments: Any) -> bool:
    return True


def _nothing(*arguments: Any, **options: Any) -> None: ...


CARD: dict[str, Any] = {
    "Event": _Event,
    "Stream": _Stream,
    "CUDAGraph": _Stream,
    "current_stream": _Stream,
    "stream": nullcontext,
    "graph": nullcontext,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "reset_peak_memory_stats": _nothing,
    "memory_allocated": lambda *arguments: 0,
    "max_memory_allocated": lambda *arguments: 1 << 20,
    "get_device_capability": lambda *arguments: (9, 0),
    "mem_get_info": lambda *arguments: (128 << 30, 139 << 30),
}


@contextmanager
def made_up_card() -> Iterator[None]:
    """Inside, measuring takes the CPU for a GPU, and operations take Triton in its interpreter."""
    from pad_fast import dispatch
    from tests.interpreter import mend

    mend()
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **CARD))
        for module in (measure, steps):
            stack.enter_context(patch.object(module, "is_gpu", _yes))
        card = SimpleNamespace(**{**vars(devices), "is_gpu": _yes})
        stack.enter_context(patch.object(memory, "devices", card))
        stack.enter_context(patch.object(measure, "CACHE_BYTES", 1))
        stack.enter_context(patch.object(dispatch, "runs_kernels", _yes))
        yield


def main(arguments: list[str] | None = None) -> int:
    """Rehearse the named suites, or all of a GPU; 1 if something would fail."""
    names = [suite.name for suite in SUITES.values() if suite.on_gpu]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rehearsal")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(names)}")
    parser.add_argument("--case", default="", help="only cases whose label contains it")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.suites) - set(names)):
        parser.error(f"no suite of a GPU: {', '.join(unknown)}; there are {', '.join(names)}")
    wrong = [report(SUITES[name], options.case) for name in options.suites or names]
    return 1 if sum(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
