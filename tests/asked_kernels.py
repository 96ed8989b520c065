"""Print which forms of kernels are asked for by warming up, and by the calls that follow it.

A process of its own, without the interpreter: a driver that names a GPU takes the launches, and
what would be compiled is recorded in its place.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from triton.runtime import jit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pad_fast  # noqa: E402
from pad_fast import argument_checks, device, dispatch, warming  # noqa: E402
from pad_fast.logprob import torch_impl  # noqa: E402
from pad_fast.models.output_head import output_head  # noqa: E402
from pad_fast.pipeline.train.compile_ahead import training_calls  # noqa: E402
from pad_fast.warming import LossSizes  # noqa: E402
from tests.students import make_args, make_model, make_rows, trained  # noqa: E402
from tools.kernel_resources import only_compile  # noqa: E402

CPU = torch.device("cpu")
asked: set[str] = set()


def record(kernel, key, *_) -> None:
    asked.add(f"{kernel.fn.__name__} {key}")


def of(*calls: Callable[[], object]) -> list[str]:
    asked.clear()
    for call in calls:
        call()
    return sorted(asked)


def later(loss, n: int, vocabulary: int, dtype, *, masked=False, frozen=False, tokens: Iterable):
    """Calls as a user makes them, of 2 prompts of random values.

    Teachers' rewards are float32, or float64 as NumPy has them, for which ListMLE has a form of
    its own: it sorts them.
    """

    def call(count: int, exact: torch.dtype):
        labels = torch.randint(vocabulary, (2 * n, count))
        teacher = torch.randn(2, n, dtype=exact)
        mask = torch.ones(2, n, dtype=torch.bool) if masked else None
        if isinstance(loss, pad_fast.LinearPADLoss):
            hidden = torch.randn(2 * n, count, 96).to(dtype).requires_grad_()
            weight = torch.randn(vocabulary, 96).to(dtype).requires_grad_(not frozen)
            states = (hidden, weight)
        else:
            states = (torch.randn(2 * n, count, vocabulary).to(dtype).requires_grad_(),)
        loss(*states, labels, teacher, mask=mask).sum().backward()

    return [
        partial(call, count, exact) for count in tokens for exact in (torch.float32, torch.float64)
    ]


def losses() -> dict[str, tuple[list[str], list[str]]]:
    bf16, fp32 = torch.bfloat16, torch.float32
    logits = pad_fast.PADLoss("ppd", impl="triton")
    linear = pad_fast.LinearPADLoss("vpd", impl="triton", softcap=30.0)
    short = pad_fast.LinearPADLoss("vpd", impl="triton", softcap=30.0, memory_budget=0)
    odd = pad_fast.PADLoss("ppd", divergence="kl", shift=True, impl="triton", reduction="none")
    jobs = {
        "logits": (logits, (8, 512, bf16), {}, [logits], (7, 37)),
        "odd": (odd, (5, 1001, fp32), {"masked": True}, [odd], (6, 16, 17)),
        "linear": (linear, (4, 1001, bf16), {}, [linear, short], (9, 16)),
        "frozen": (linear, (4, 512, bf16), {"frozen": True}, [linear], (9,)),
    }
    found = {}
    for name, (loss, sizes, more, others, tokens) in jobs.items():
        given = LossSizes(*sizes, more.get("masked", False), more.get("frozen", False))
        followed = [
            call for other in others for call in later(other, *sizes, **more, tokens=tokens)
        ]
        found[name] = (of(*warming.loss_calls(loss, given, CPU)), of(*followed))
    wrong = {
        "another dtype": LossSizes(8, 512, torch.float16),
        "another number of responses": LossSizes(7, 512, bf16),
        "a mask": LossSizes(8, 512, bf16, masked=True),
        "another vocabulary": LossSizes(8, 513, bf16),
    }
    for name, sizes in wrong.items():
        found[name] = (of(*warming.loss_calls(logits, sizes, CPU)), found["logits"][1])
    return found


def training() -> tuple[list[str], list[str]]:
    """A step of the trainer, whose rows all have as many responses."""
    rows = [row for row in make_rows(40) if len(row["teacher_rewards"]) == 5][:2]
    with tempfile.TemporaryDirectory() as folder:
        head, calls, steps = output_head(make_model()), [], []
        for budget in ("0", "auto"):
            options = {"impl": "triton", "max_steps": 1, "memory_budget": budget}
            args = make_args(folder, **options)
            calls += training_calls(head, args, 5, frozen=False, device=CPU)
            steps.append(lambda options=options: trained(folder, rows, **options))
        return of(*calls), of(*steps)


def main() -> None:
    dispatch.runs_kernels = lambda tensor: True
    # What no kernel writes is 0, and not whatever was in memory: NaN would end the training.
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    torch.Tensor.new_empty = torch.Tensor.new_zeros
    for module in (device, argument_checks, torch_impl):
        module.waits_for_values = lambda device: True
    with only_compile("sm_90"):
        jit.JITFunction._do_compile = record
        print(json.dumps({**losses(), "training": training()}))


if __name__ == "__main__":
    main()
