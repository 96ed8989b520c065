"""What is measured: a case is one job at one shape, and its inputs.

``M`` token rows, ``D`` hidden size, ``V`` vocabulary; ``R`` responses of ``T`` rows; ``P`` prompts of ``N`` responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LOGITS_JOBS = ("token_logprobs", "response_rewards")
LINEAR_JOBS = ("linear_token_logprobs",)
GROUP_LOSS = {
    "linear_preference_loss": "kl",
    "linear_pair_loss": "vpd",
}  # the mean loss of prompts, from hidden states
GROUP_JOBS = tuple(GROUP_LOSS)
HEAD_JOBS = LINEAR_JOBS + GROUP_JOBS
TOKEN_JOBS = LOGITS_JOBS + LINEAR_JOBS
SAMPLED = "_sampled"  # how a job ends that is estimated from drawn rankings; its error is that of the draws
LISTWISE_JOBS = ("vpd", "kl", "reverse_kl", "jsd", "kl_sampled", "jsd_sampled")
AXES = {
    "token_logprobs": "MV",
    "response_rewards": "RTV",
    "linear_token_logprobs": "MDV",
    **dict.fromkeys(GROUP_JOBS, "PNTDV"),
    **dict.fromkeys(LISTWISE_JOBS, "PN"),
}
IGNORE_INDEX = -100
BETA = 10.0
SPAN = 128  # rows of a sequence at most, of which the first ones are ignored, as a prompt's are


@dataclass(frozen=True)
class Case:
    """One job at one shape. ``live``: share of rows whose label is not ignored. ``frozen``: the weight needs no gradient."""

    job: str
    shape: tuple[int, ...]  # as AXES names them
    backward: bool = True
    dtype: str = "float32"
    live: float = 1.0
    softcap: float | None = None
    frozen: bool = False
    curve: str = ""  # "budget" or "M": a point of a picture, for ours alone
    budget: int | None = None  # bytes; None: "auto"
    rounds: int = 30  # repetitions at most; SECONDS in measure.py may end them earlier
    target_ms: float | None = None  # what we set out to reach on an H200

    def __getitem__(self, axis: str) -> int:
        if axis == "M" and self.job == "response_rewards":
            return self["R"] * self["T"]
        if self.job in GROUP_JOBS and axis in "RM":
            return self["P"] * self["N"] * (self["T"] if axis == "M" else 1)
        return self.shape[AXES[self.job].index(axis)]

    @property
    def elements(self) -> int:
        """Logits, M * V."""
        return self["M"] * self["V"]

    @property
    def work(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def label(self) -> str:
        """The case in words, as the tables show it."""
        parts = [
            self.job,
            " ".join(
                f"{axis}={size:,}" for axis, size in zip(AXES[self.job], self.shape, strict=True)
            ),
            self.dtype,
            self.work,
        ]
        parts += [f"softcap {self.softcap:g}"] if self.softcap else []
        parts += ["frozen head"] if self.frozen else []
        parts += [f"{1 - self.live:.0%} ignored"] if self.live < 1 else []
        parts += [f"curve over {self.curve}"] if self.curve else []
        parts += [f"budget {self.budget / 2**20:,.0f} MiB"] if self.budget is not None else []
        return ", ".join(parts)


@dataclass
class Inputs:
    """Inputs of a case. ``leaves`` are what a gradient is taken in; ``upstream`` is random, one number for each result."""

    leaves: dict[str, Tensor]  # logits | hidden, weight | student, all of the case's dtype
    others: dict[str, Tensor]  # labels, teacher, a frozen weight
    upstream: Tensor  # (M,), (R,), (P,) or (1,) float32

    def __getattr__(self, name: str) -> Tensor:
        for tensors in (self.leaves, self.others):
            if name in tensors:
                return tensors[name]
        raise AttributeError(name)

    @cached_property
    def rows(self) -> Tensor:
        """Labels that are all columns, for contestants that know no ignored ones."""
        return self.labels.clamp(min=0)

    @cached_property
    def live_rows(self) -> Tensor:
        """Places of the labels that are not ignored."""
        return (self.labels != IGNORE_INDEX).nonzero().squeeze(-1)


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Random inputs, the same each time, drawn in the case's dtype: logits of standard deviation 3 and labels that stand out by 12."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    if case.job in LISTWISE_JOBS:
        student, teacher = normal(*case.shape), normal(*case.shape)
        leaves = {
            "student": student.mul_(0.1).requires_grad_()
        }  # rewards of one prompt lie within a few tenths of a nat
        return Inputs(leaves, {"teacher": teacher.mul_(0.1)}, normal(case["P"]).float())
    rows = case["M"]
    labels = torch.randint(case["V"], (rows,), generator=generator, device=device)
    if case.job in HEAD_JOBS:
        weight = normal(case["V"], case["D"]).mul_(3 / case["D"] ** 0.5)
        hidden = normal(rows, case["D"]).add_(weight[labels], alpha=12 / 9)
        leaves = {
            "hidden": hidden.requires_grad_(),
            "weight": weight.requires_grad_(not case.frozen),
        }
    else:
        logits = normal(rows, case["V"]).mul_(3)
        logits.scatter_add_(1, labels[:, None], torch.full_like(labels, 12, dtype=dtype)[:, None])
        leaves = {"logits": logits.requires_grad_()}
    span = case["T"] if case.job in ("response_rewards", *GROUP_JOBS) else min(SPAN, rows)
    labels[torch.arange(rows, device=device) % span < round(span * (1 - case.live))] = IGNORE_INDEX
    others = {"labels": labels} | {
        name: leaf for name, leaf in leaves.items() if not leaf.requires_grad
    }
    if case.job in GROUP_JOBS:
        others["teacher"] = normal(case["P"], case["N"]).float().mul_(0.1)
        return Inputs(
            {name: leaf for name, leaf in leaves.items() if leaf.requires_grad},
            others,
            torch.ones(1, device=device),
        )
    # What becomes of the numbers takes those of ignored rows with weight 0, as any masked mean does.
    upstream = (
        normal(case["R"]).float()
        if case.job == "response_rewards"
        else normal(rows).float() * (labels != IGNORE_INDEX)
    )
    return Inputs(
        {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}, others, upstream
    )
