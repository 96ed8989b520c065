"""What a listwise loss costs as responses become more: ``python -m benchmarks.scaling [--device cuda]``, about a minute on a CPU.

Every way to each divergence, from 2 to 32 responses as far as it goes: all rankings enumerated (the definition), the subset recursion
(KL), meeting in the middle (JSD), and estimates from drawn rankings with their standard error. Adds its records to
results/scaling.jsonl; ``python -m benchmarks.tables`` draws the picture.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import BETA
from benchmarks.machine import describe
from benchmarks.truth import enumerate_rankings

SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
LAST = {"enumeration": 8, "subset recursion": 16, "meeting in the middle": 10, "sampled": 32}
SECONDS = 0.5  # of one way at one size
AT_MOST = 20  # repetitions
Loss = Callable[[Tensor, Tensor], Tensor]  # (P, N), (P, N) -> (P,)


def ways(divergence: str, samples: int) -> dict[str, Loss]:
    from pad_fast.losses import probabilistic_preference_loss as loss

    ours = partial(loss, divergence=divergence, beta=BETA, reduction="none")
    exact = "meeting in the middle" if divergence == "jsd" else "subset recursion"
    return {
        "enumeration": partial(enumerate_rankings, divergence),
        exact: partial(ours, method="exact"),
        "sampled": partial(ours, method="sampled", num_samples=samples),
    }


def rewards(prompts: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    student, teacher = 0.03 * torch.randn(
        2, prompts, n, generator=generator
    )  # JSD well below ln 2, so that there is something to see
    return student.to(device).requires_grad_(), teacher.to(device)


def milliseconds(call: Loss, student: Tensor, teacher: Tensor) -> float:
    """The least of some repetitions, forward and backward: other work on a shared machine only ever adds."""

    def once() -> float:
        if student.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.autograd.grad(call(student, teacher).sum(), student)
        if student.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    times = [once()]
    while sum(times) < SECONDS and len(times) < AT_MOST:
        times.append(once())
    return 1000 * min(times)


def measure(
    divergence: str, n: int, prompts: int, samples: int, device: torch.device
) -> Iterator[dict]:
    student, teacher = rewards(prompts, n, device)
    for way, call in ways(divergence, samples).items():
        if n > LAST[way]:
            continue
        error = None
        with torch.no_grad():
            value = call(student[:1], teacher[:1]).item()
            if way == "sampled":  # copies of the first prompt: as many independent estimates
                estimates = call(student[:1].expand(200, n), teacher[:1].expand(200, n))
                value, error = estimates.mean().item(), estimates.std().item()
        yield {
            "way": way, "divergence": divergence, "n": n, "prompts": prompts, "samples": samples,
            "ms": round(milliseconds(call, student, teacher), 4), "value": value, "standard_error": error,
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="responses of a prompt")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results" / "scaling.jsonl",
        help="records are added here",
    )
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    torch.set_num_threads(1)  # so small are the tensors
    said = {"run": datetime.now(timezone.utc).isoformat(timespec="seconds"), **describe(device)}
    with given.results.open("a") as file:
        for divergence in ("kl", "jsd"):
            for n in given.sizes:
                for record in measure(divergence, n, given.prompts, given.samples, device):
                    print(
                        f"{divergence:4} {n:3} {record['way']:22} {record['ms']:10.3f} ms",
                        flush=True,
                    )
                    file.write(json.dumps(said | record) + "\n")
                    file.flush()


if __name__ == "__main__":
    main()
