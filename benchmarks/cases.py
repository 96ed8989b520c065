"""What is measured: a case is one job at one shape, and its random inputs.

``M`` token rows, ``D`` hidden size, ``V`` vocabulary; ``R`` responses of ``T`` rows;
``P`` prompts of ``N`` responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks import listwise

# Families of jobs. The listwise jobs, losses of given rewards, are those of benchmarks/listwise.py.
LOGITS = "logits"
LINEAR = "linear"  # from hidden states, a number for each token
LINEAR_LOSS = "linear loss"  # from hidden states, the mean loss of prompts
LOGITS_LOSS = "logits loss"  # a loss module on logits, by the host's clock with all launches
LISTWISE = "listwise"

# The family of a job, and its axes.
JOBS = {
    "token_logprobs": (LOGITS, "MV"),
    "response_rewards": (LOGITS, "RTV"),
    "linear_token_logprobs": (LINEAR, "MDV"),
    "linear_preference_loss": (LINEAR_LOSS, "PNTDV"),
    "linear_pair_loss": (LINEAR_LOSS, "PNTDV"),
    "PADLoss": (LOGITS_LOSS, "PNTV"),
}
# The loss of the jobs that end in one. For pairs it is SimPO's without a margin, so that Liger's
# chunked loss can take part.
LOSS_OF = {"linear_preference_loss": "kl", "linear_pair_loss": "vpd", "PADLoss": "kl"}
IGNORE_INDEX = -100
SPAN = 128  # rows of a made-up sequence, whose first rows are ignored as a prompt's are


@dataclass(frozen=True)
class Case:
    """One job at one shape."""

    job: str
    shape: tuple[int, ...]  # along the job's axes
    backward: bool = True
    dtype: str = "float32"
    live_share: float = 1.0  # share of the rows whose label is not ignored
    softcap: float | None = None
    frozen: bool = False  # the output head's weight needs no gradient
    curve: str = ""  # "budget" or "M": a point of a picture, for ours alone
    memory_budget: int | None = None  # bytes; None: "auto"
    rounds: int = 30  # repetitions at most; see ENOUGH_SECONDS in measure.py
    target_ms: float | None = None  # our target on an H200

    def __post_init__(self) -> None:
        known = [*JOBS, *listwise.jobs()]
        if self.job not in known:
            raise ValueError(f"job must be one of {', '.join(known)}, got {self.job!r}")

    @property
    def family(self) -> str:
        return JOBS[self.job][0] if self.job in JOBS else LISTWISE

    @property
    def uses_head(self) -> bool:
        """Whether the job starts from hidden states, and so multiplies by the output head."""
        return self.family in (LINEAR, LINEAR_LOSS)

    @property
    def is_mean_loss(self) -> bool:
        """Whether the job gives the mean loss of prompts, of logits or of hidden states."""
        return self.family in (LINEAR_LOSS, LOGITS_LOSS)

    @property
    def sizes(self) -> dict[str, int]:
        """The shape with the names of its axes."""
        axes = JOBS[self.job][1] if self.job in JOBS else "PN"
        return dict(zip(axes, self.shape, strict=True))

    def __getitem__(self, axis: str) -> int:
        """The size of an axis. R and M are also known where they follow from others."""
        sizes = self.sizes
        if axis == "R" and "P" in sizes:
            return sizes["P"] * sizes["N"]
        if axis == "M" and "T" in sizes:
            return self["R"] * sizes["T"]
        return sizes[axis]

    @property
    def num_logits(self) -> int:
        """M * V."""
        return self["M"] * self["V"]

    @property
    def work(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def label(self) -> str:
        """The case in words, as the tables show it."""
        shape = " ".join(f"{axis}={size:,}" for axis, size in self.sizes.items())
        parts = [self.job, shape, self.dtype, self.work]
        parts += [f"softcap {self.softcap:g}"] if self.softcap else []
        parts += ["frozen head"] if self.frozen else []
        parts += [f"{1 - self.live_share:.0%} ignored"] if self.live_share < 1 else []
        parts += [f"curve over {self.curve}"] if self.curve else []
        if self.memory_budget is not None:
            parts.append(f"budget {self.memory_budget / 2**20:,.0f} MiB")
        return ", ".join(parts)


@dataclass
class Inputs:
    """Inputs of a case. Gradients are taken with respect to the leaves."""

    leaves: dict[str, Tensor]  # logits | hidden, weight | student, all of the case's dtype
    others: dict[str, Tensor]  # labels, teacher, a frozen weight
    upstream: Tensor  # gradient of the results, random: (M,), (R,), (P,) or (1,), float32

    def __getattr__(self, name: str) -> Tensor:
        for tensors in (self.leaves, self.others):
            if name in tensors:
                return tensors[name]
        raise AttributeError(name)

    @cached_property
    def valid_labels(self) -> Tensor:
        """The labels, with 0 for ignored ones, for contestants that cannot ignore any."""
        return self.labels.clamp(min=0)

    @cached_property
    def live_rows(self) -> Tensor:
        """Row numbers of the labels that are not ignored."""
        return (self.labels != IGNORE_INDEX).nonzero().squeeze(-1)


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Random inputs, drawn in the case's dtype and the same each time.

    Logits have standard deviation 3 and labels stand out by 12, so that log-probabilities are
    those of a trained model. Rewards of a prompt differ by some tenths of a nat.
    """
    draws = _Draws(case, device)
    if case.family == LISTWISE:
        student, teacher = draws.normal(*case.shape), draws.normal(*case.shape)
        student = student.mul_(0.1).requires_grad_()
        upstream = draws.normal(case["P"]).float()
        return Inputs({"student": student}, {"teacher": teacher.mul_(0.1)}, upstream)
    labels = draws.labels()
    tensors = draws.head(labels) if case.uses_head else draws.logits(labels)
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    others = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
    _ignore_some(case, labels)
    others = {"labels": labels, **others}
    if case.is_mean_loss:
        others["teacher"] = draws.normal(case["P"], case["N"]).float().mul_(0.1)
        return Inputs(leaves, others, torch.ones(1, device=device))
    if case.job == "response_rewards":
        return Inputs(leaves, others, draws.normal(case["R"]).float())
    # As in any masked mean, the log-probabilities of ignored rows have weight 0.
    return Inputs(leaves, others, draws.normal(case["M"]).float() * (labels != IGNORE_INDEX))


class _Draws:
    """Random tensors of a case, all from one generator."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.device, self.dtype = device, getattr(torch, case.dtype)
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        options = {"generator": self.generator, "device": self.device, "dtype": self.dtype}
        return torch.randn(shape, **options)

    def labels(self) -> Tensor:
        size = (self.case["M"],)
        return torch.randint(self.case["V"], size, generator=self.generator, device=self.device)

    def head(self, labels: Tensor) -> dict[str, Tensor]:
        """Hidden states and the output head's weight."""
        case = self.case
        weight = self.normal(case["V"], case["D"]).mul_(3 / case["D"] ** 0.5)
        # A label's row of the weight has norm 3, so that 12 / 9 of it raises its logit by 12.
        hidden = self.normal(case["M"], case["D"]).add_(weight[labels], alpha=12 / 9)
        return {"hidden": hidden.requires_grad_(), "weight": weight.requires_grad_(not case.frozen)}

    def logits(self, labels: Tensor) -> dict[str, Tensor]:
        logits = self.normal(self.case["M"], self.case["V"]).mul_(3)
        raised = torch.full_like(labels, 12, dtype=self.dtype)
        logits.scatter_add_(1, labels[:, None], raised[:, None])
        return {"logits": logits.requires_grad_()}


def _ignore_some(case: Case, labels: Tensor) -> None:
    """Ignore the first labels of each sequence, in place."""
    span = case.sizes.get("T", min(SPAN, len(labels)))
    places = torch.arange(len(labels), device=labels.device) % span
    labels[places < round(span * (1 - case.live_share))] = IGNORE_INDEX
