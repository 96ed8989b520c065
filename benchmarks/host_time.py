"""Host time of small operations on a CPU: ``python -m benchmarks.host_time``.

The tensors are so small that nearly all of the time is Python's and PyTorch's own: the time in
which a GPU would wait for its next kernel. Each operation is the least and the median of many
calls, in turns, on one thread, by PyTorch's operations and by our kernels, whose launches return at
once (:func:`launches_left_out`). It takes some seconds and adds records to results/host-time.jsonl.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

# The profiler would report each of its starts; the variable is read when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks import records
from benchmarks.in_words import markdown
from benchmarks.machine import describe
from benchmarks.records import Record

NAME = "host-time"
CALLS = 400
PROMPTS, RESPONSES, TOKENS, VOCABULARY = 2, 4, 4, 32
OURS_AND_PYTORCHS = ("aten::", "pad_fast::")  # what an operation of theirs is called in a profile
IMPLS = ("torch", "triton")
Call = Callable[[], object]


def _backward(loss: Callable[[], Tensor], leaf: Tensor) -> object:
    return torch.autograd.grad(loss().sum(), leaf)


@contextmanager
def launches_left_out() -> Iterator[None]:
    """Tensors of a CPU count as a GPU's, and a kernel's launch returns at once.

    Results are whatever was in memory. What Triton takes for a launch is not counted, some 10 us.
    """
    from pad_fast.kernels.logprob import launch

    from pad_fast import argument_checks, device, dispatch

    kernel = type(launch.logprob_fwd)  # Triton's compiled or interpreted one
    with (
        patch.object(kernel, "run", lambda *_, **__: None),
        patch.object(dispatch, "runs_kernels", lambda _: True),
        patch.object(device, "waits_for_values", lambda _: True),
        patch.object(argument_checks, "waits_for_values", lambda _: True),
    ):
        yield


def calls(impl: str) -> dict[str, Call]:
    """What is measured, by name."""
    from pad_fast import PADLoss, token_logprobs
    from pad_fast.losses import preference_loss

    generator = torch.Generator().manual_seed(0)
    responses = PROMPTS * RESPONSES
    shape = (responses, TOKENS, VOCABULARY)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    labels = torch.randint(VOCABULARY, shape[:2], generator=generator)
    rewards, teacher = torch.randn(2, PROMPTS, RESPONSES, generator=generator)
    rewards.requires_grad_()
    ours = partial(token_logprobs, logits, labels, impl=impl)
    flat = (logits.view(-1, VOCABULARY), labels.view(-1))
    peer = partial(functional.cross_entropy, *flat, reduction="none")
    found: dict[str, Call] = {
        "token_logprobs, forward": ours,
        "F.cross_entropy, forward": peer,
        "token_logprobs, forward and backward": partial(_backward, ours, logits),
        "F.cross_entropy, forward and backward": partial(_backward, peer, logits),
    }
    for loss in ("ppd", "vpd"):
        whole = partial(PADLoss(loss, impl=impl), logits, labels, teacher)
        found[f'PADLoss("{loss}"), forward and backward'] = partial(_backward, whole, logits)
        given = partial(preference_loss, loss, rewards, teacher, impl=impl)
        found[f"{loss} of given rewards, forward and backward"] = partial(_backward, given, rewards)
    return found


def operations(call: Call) -> int:
    """How many operations of PyTorch and ours a call makes, those inside of others included."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(
        event.count for event in seen.key_averages() if event.key.startswith(OURS_AND_PYTORCHS)
    )


def measure(count: int) -> list[Record]:
    """A record for each call, without the description of the machine."""
    found = _of_impl("torch", count, calls("torch"))
    ours = {name: call for name, call in calls("triton").items() if not name.startswith("F.")}
    with launches_left_out():
        return found + _of_impl("triton", count, ours)


def _of_impl(impl: str, count: int, chosen: dict[str, Call]) -> list[Record]:
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for call in chosen.values():
        call()  # what is loaded or built once
    for _ in range(count):
        for name, call in chosen.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return [
        {
            "operation": name,
            "impl": impl,
            "calls": count,
            "least_us": round(1e6 * min(found), 1),
            "median_us": round(1e6 * median(found), 1),
            "operations": operations(chosen[name]),
        }
        for name, found in times.items()
    ]


def table(measured: list[Record]) -> str:
    """A row for each operation, and the figures of both implementations."""
    figures = ("least_us", "median_us", "operations")
    head = [
        f"{impl}: {figure}"
        for impl in IMPLS
        for figure in ("least, us", "median, us", "operations")
    ]
    rows = [["operation", *head], ["---", *["---:"] * len(head)]]
    by_impl = {(record["operation"], record.get("impl", "torch")): record for record in measured}
    for name in dict.fromkeys(record["operation"] for record in measured):
        cells = [
            f"{record[figure]:.0f}" if (record := by_impl.get((name, impl))) else ""
            for impl in IMPLS
            for figure in figures
        ]
        rows.append([f"`{name}`", *cells])
    return markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS, help="of each operation")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="folder of records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = {"run": records.now(), **describe(torch.device("cpu"))}
    measured = measure(options.calls)
    for record in measured:
        records.append(records.path(options.results, NAME), run | record)
    print(table(measured))


if __name__ == "__main__":
    main()
