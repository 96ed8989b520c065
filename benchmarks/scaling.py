"""The cost of a listwise loss as the number of responses grows: ``python -m benchmarks.scaling``.

From 2 to 32 responses it measures every way to each divergence, as far as the way goes: all
rankings enumerated (the definition), the subset recursion (KL), meeting in the middle (JSD), and
estimates from drawn rankings with their standard error. It takes about a minute on a CPU and adds
records to results/scaling.jsonl, of which ``python -m benchmarks.tables`` draws the picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import records
from benchmarks.float64_truth import enumerate_rankings
from benchmarks.listwise import BETA
from benchmarks.machine import describe
from pad_fast.device import synchronize

SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
EXACT_WAYS = {"kl": "subset recursion", "jsd": "meeting in the middle"}
# The largest number of responses at which a way is measured.
LARGEST = {"enumeration": 8, "subset recursion": 16, "meeting in the middle": 10, "sampled": 32}
ENOUGH_SECONDS = 0.5  # a way's repetitions at one size end when they add up to this
MAX_REPETITIONS = 20
ESTIMATES = 200  # independent estimates, from which the standard error of one is computed

Loss = Callable[[Tensor, Tensor], Tensor]  # (P, N), (P, N) -> (P,)


def ways(divergence: str, samples: int) -> dict[str, Loss]:
    """The ways to compute a divergence, by name."""
    from pad_fast.losses import probabilistic_preference_loss as loss

    ours = partial(loss, divergence=divergence, beta=BETA, reduction="none")
    return {
        "enumeration": partial(enumerate_rankings, divergence),
        EXACT_WAYS[divergence]: partial(ours, method="exact"),
        "sampled": partial(ours, method="sampled", num_samples=samples),
    }


def rewards(prompts: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random rewards (P, N) of both sides, so close that JSD is well below its limit of ln 2."""
    generator = torch.Generator().manual_seed(n)
    student, teacher = 0.03 * torch.randn(2, prompts, n, generator=generator)
    return student.to(device).requires_grad_(), teacher.to(device)


def milliseconds(call: Loss, student: Tensor, teacher: Tensor) -> float:
    """The least time of a forward and backward: other work on a shared machine only ever adds."""

    def once() -> float:
        synchronize(student.device)
        start = time.perf_counter()
        torch.autograd.grad(call(student, teacher).sum(), student)
        synchronize(student.device)
        return time.perf_counter() - start

    once()
    times = [once()]
    while sum(times) < ENOUGH_SECONDS and len(times) < MAX_REPETITIONS:
        times.append(once())
    return 1000 * min(times)


def measure(
    divergence: str, n: int, prompts: int, samples: int, device: torch.device
) -> Iterator[records.Record]:
    """A record for each way that goes as far as ``n`` responses."""
    student, teacher = rewards(prompts, n, device)
    for way, call in ways(divergence, samples).items():
        if n > LARGEST[way]:
            continue
        error = None
        with torch.no_grad():
            value = call(student[:1], teacher[:1]).item()
            if way == "sampled":  # copies of the first prompt are independent estimates
                estimates = call(student[:1].expand(ESTIMATES, n), teacher[:1].expand(ESTIMATES, n))
                value, error = estimates.mean().item(), estimates.std().item()
        yield {
            "way": way,
            "divergence": divergence,
            "n": n,
            "prompts": prompts,
            "samples": samples,
            "ms": round(milliseconds(call, student, teacher), 4),
            "value": value,
            "standard_error": error,
        }


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(1)  # the tensors are too small for more
    run = {"run": records.now(), **describe(device)}
    for divergence in EXACT_WAYS:
        for n in options.sizes:
            for record in measure(divergence, n, options.prompts, options.samples, device):
                time_found = f"{record['ms']:10.3f} ms"
                print(f"{divergence:4} {n:3} {record['way']:22} {time_found}", flush=True)
                records.append(options.results, run | record)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=256, help="rankings that are drawn")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="responses of a prompt")
    parser.add_argument(
        "--results",
        type=Path,
        default=records.path(records.RESULTS, "scaling"),
        help="file to which records are added",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
