"""Cases of the listwise losses: exact ones by definition, sampled ones by statistics."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pad_fast import probabilistic_preference_loss, vanilla_preference_loss

from .compare import cast_error, check, check_equal, unit_roundoff
from .draw import DTYPES, Draw
from .listwise_oracle import loss_bounds, loss_oracle
from .tokens import draw_impl

KINDS = ("vpd", "kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class Listwise:
    """A loss over rankings and its options."""

    kind: str
    beta: float
    teacher_beta: float | None = None
    group_size: int | None = None
    group_reduction: str = "mean"
    reduction: str = "mean"
    extra: dict = field(default_factory=dict)

    def keywords(self) -> dict:
        """The options of the loss, less those of rewards."""
        shared = ("beta", "group_size", "group_reduction", "reduction")
        options = {name: getattr(self, name) for name in shared}
        if self.kind != "vpd":
            options |= {"divergence": self.kind, "teacher_beta": self.teacher_beta, **self.extra}
        return options

    def __call__(self, student: Tensor, teacher: Tensor, **others) -> Tensor:
        loss = vanilla_preference_loss if self.kind == "vpd" else probabilistic_preference_loss
        return loss(student, teacher, **self.keywords(), **others)

    def scales(self) -> tuple[float, float]:
        return self.beta, self.beta if self.teacher_beta is None else self.teacher_beta


@dataclass(frozen=True)
class Expected:
    """Loss and gradient, in float64, with their bounds."""

    loss: Tensor
    loss_error: Tensor
    gradient: Tensor
    gradient_error: Tensor


def groups_of(live: Tensor, size: int | None) -> list[tuple[int, list[int]]]:
    """(prompt, responses) of each group: consecutive live responses, ``size`` at a time."""
    found = []
    for prompt, row in enumerate(live.tolist()):
        members = [i for i, alive in enumerate(row) if alive]
        step = size or max(1, len(members))
        parts = [members[i : i + step] for i in range(0, len(members), step)]
        found += [(prompt, part) for part in parts if len(part) > 1]
    return found


def expect(
    loss: Listwise, student: Tensor, teacher: Tensor, live: Tensor, upstream: Tensor | None = None
) -> Expected:
    """What the loss has to be, and its gradient for an ``upstream`` one of the losses (P,)."""
    student, teacher = student.detach(), teacher.detach()
    unit = unit_roundoff(torch.promote_types(student.dtype, torch.float32)) * 2
    groups = groups_of(live, loss.group_size)
    prompts = len(student)
    each, error = torch.zeros(2, prompts, dtype=torch.float64)
    slope, slope_error = torch.zeros(2, *student.shape, dtype=torch.float64)
    counts = torch.zeros(prompts, dtype=torch.float64)
    for prompt, _ in groups:
        counts[prompt] += 1
    divisor = counts.clamp(min=1) if loss.group_reduction == "mean" else torch.ones_like(counts)
    for n in {len(part) for _, part in groups}:
        rows = torch.tensor([prompt for prompt, part in groups if len(part) == n])
        places = torch.tensor([part for _, part in groups if len(part) == n])
        parts = student[rows[:, None], places], teacher[rows[:, None], places]
        values, gradients = loss_oracle(loss.kind, *parts, *loss.scales())
        bounds = loss_bounds(loss.kind, *parts, *loss.scales(), unit)
        weight = 1 / divisor[rows]
        each.index_add_(0, rows, values * weight)
        error.index_add_(0, rows, (bounds[0] + 4 * unit * values) * weight)
        slope[rows[:, None], places] = gradients * weight[:, None]
        slope_error[rows[:, None], places] = (bounds[1] + 4 * unit * gradients.abs()) * weight[
            :, None
        ]
    return _reduced(loss.reduction, counts, (each, error, slope, slope_error), upstream)


def _reduced(
    reduction: str, counts: Tensor, parts: tuple[Tensor, ...], upstream: Tensor | None
) -> Expected:
    each, error, slope, slope_error = parts
    if reduction == "none":
        weights = torch.ones_like(each) if upstream is None else upstream.double()
        return Expected(each, error, slope * weights[:, None], slope_error * weights[:, None].abs())
    if reduction == "mean":
        scale = 1 / (counts > 0).double().sum().clamp(min=1)
        each, error, slope, slope_error = (part * scale for part in parts)
    return Expected(each.sum(), error.sum(), slope, slope_error)


def draw_loss(draw: Draw, most: int, exact: bool = True) -> Listwise:
    """A loss and options for groups of at most ``most`` responses."""
    kind = draw.choice("loss", KINDS)
    beta = draw.magnitude("beta", 1e-3, 1e3) if draw.chance("any beta", 0.4) else 10.0
    draw.keep("beta", beta)
    teacher_beta = (
        draw.magnitude("teacher_beta", 1e-2, 1e2) if draw.chance("two betas", 0.3) else None
    )
    group_size = draw.integer("group_size", 2, most) if draw.chance("decomposed", 0.3) else None
    limit = group_size or most
    if kind == "jsd" and exact and limit > 9:
        group_size = draw.integer("group_size", 2, 7)
    method = draw.choice("method", ("auto", "exact"))
    if kind == "jsd" and limit > 8:  # "auto" samples from nine on
        method = draw.keep("method", "exact")
    extra = {} if kind == "vpd" else {"method": method}
    return Listwise(
        kind,
        beta,
        teacher_beta if kind != "vpd" else None,
        group_size,
        draw.choice("group_reduction", ("mean", "sum")),
        draw.choice("reduction", ("mean", "sum", "none")),
        extra,
    )


def draw_rewards(draw: Draw, name: str, prompts: int, n: int) -> Tensor:
    """Rewards of any spread, with ties, all equal, or shifted far from 0."""
    kind = draw.choice(
        f"{name} rewards", ("usual", "any spread", "ties", "equal", "shifted"), (5, 3, 2, 1, 1)
    )
    values = draw.normal(prompts, n)
    if kind == "any spread":
        values = values * draw.magnitude(f"{name} spread", 1e-4, 1e2)
    if kind == "ties":
        values = values.mul(1.5).round()
    if kind == "equal":
        values = values[:, :1].expand(prompts, n)
    return values - (50.0 if kind == "shifted" else 1.0)


def listwise_case(draw: Draw) -> None:
    """An exact loss and its gradient."""
    impl = draw_impl(draw)
    sizes = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
    rates = (4, 4, 4, 3, 3, 1, 1, 0.1, 0.3, 0.1) if impl == "torch" else (1, 1, 1, 1)
    n = draw.choice("N", sizes[: len(rates)], rates)
    prompts = draw.integer("P", 0, 8 if n <= 6 else 2) if n < 9 else 1
    loss = draw_loss(draw, n)
    dtypes = [draw.choice(f"{side} dtype", DTYPES, (1, 1, 4, 4)) for side in ("student", "teacher")]
    pair = [draw_rewards(draw, side, prompts, n) for side in ("student", "teacher")]
    if draw.chance("equal sides", 0.05):
        pair[1] = pair[0]
    share = draw.choice("share masked", (None, 0.0, 0.3, 1.0), (5, 1, 4, 0.3))
    live = torch.ones(prompts, n, dtype=torch.bool)
    if share is not None:
        live = draw.tensor("mask", ~draw.mask(share, prompts, n))
        pair = [side.masked_fill(~live, torch.nan) for side in pair]
    student, teacher = (side.to(dtype) for side, dtype in zip(pair, dtypes, strict=True))
    if draw.chance("transposed", 0.2):
        student, teacher = student.T.contiguous().T, teacher.T.contiguous().T
    student = draw.tensor("student", student.clone()).requires_grad_()
    draw.tensor("teacher", teacher)
    wide = torch.promote_types(student.dtype, torch.float32)
    upstream = None
    if loss.reduction == "none":
        upstream = draw.tensor("upstream", draw.normal(prompts).to(wide))
    want = expect(loss, student, teacher, live, upstream)
    found = loss(student, teacher, mask=None if share is None else live, impl=impl)
    if found.dtype != wide:
        raise AssertionError(f"the loss is {found.dtype}")
    check(f"loss {loss.kind}", found, want.loss, want.loss_error)
    found.backward(upstream)
    bound = want.gradient_error + cast_error(want.gradient, student.dtype)
    check(f"gradient {loss.kind}", student.grad, want.gradient, bound)


CALLS, DRAWS = 4, 16384  # seeds, and draws in a call, spread over copies of the prompt
DEVIATIONS = 6.0  # for the mean of at least 1024 estimates: one case in 5e8
LOGARITHM = 22.0  # log(2 / 5e-10), in Bernstein's inequality


def sampled_case(draw: Draw) -> None:
    """The mean over many draws is the exact loss and gradient, within standard errors.

    A ranking too rare to be drawn is not in the measured spread: Bernstein's inequality allows the
    range of a draw times log(2 / delta) / (3 draws) for those.
    """
    kind = draw.choice("loss", KINDS[1:])
    n = draw.integer("N", 2, 6)
    beta = draw.magnitude("beta", 0.3, 3)
    samples = draw.choice("num_samples", (4, 5, 16, 64))
    student = draw.tensor("student", draw.normal(1, n).clamp(-1.5, 1.5))
    teacher = draw.tensor("teacher", draw.normal(1, n).clamp(-1.5, 1.5))
    extra = {"method": "sampled", "num_samples": samples}
    loss = Listwise(kind, beta, reduction="none", extra=extra)
    want, want_slope = loss_oracle(kind, student, teacher, *loss.scales())
    first = draw.keep("seed", 1000 * (draw.seed % 10**6))
    count = DRAWS // samples  # copies of the prompt, each with draws of its own
    leaf, copies = student.repeat(count, 1).requires_grad_(), teacher.repeat(count, 1)
    values, slopes = [], []
    for seed in range(first, first + CALLS):
        value = loss(leaf, copies, seed=seed, impl="torch")
        slopes.append(torch.autograd.grad(value.sum(), leaf)[0])
        values.append(value.detach())
    again = loss(leaf, copies, seed=first, impl="torch").detach()
    check_equal("the same seed again", again, values[0])
    if torch.equal(values[0], values[1]) and values[0].std() > 1e-12:
        raise AssertionError("another seed gives the same estimates")
    # Along a ranking each step's log-ratio, and so its KL, is within the range of x - y.
    ratios = beta * (student - teacher)
    most = float(n * (ratios.max() - ratios.min()))
    draws = CALLS * count * samples
    for name, found, exact, reach in (
        ("loss", torch.cat(values), want[0], most),
        ("gradient", torch.cat(slopes), want_slope[0], beta * n * (1 + most)),
    ):
        mean, deviation = found.mean(0), found.std(0) / len(found) ** 0.5
        bound = DEVIATIONS * deviation + reach * LOGARITHM / (3 * draws) + 1e-12
        check(f"sampled {name} {kind}", mean, exact, bound)
