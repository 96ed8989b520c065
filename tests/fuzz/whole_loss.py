"""Cases of linear_preference_loss and micro_batched_backward, to the head's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_fast import linear_preference_loss, linear_response_rewards, micro_batched_backward

from .compare import cast_error, check, unit_roundoff
from .draw import Draw
from .linear import Linear, check_gradients, draw_linear, draw_many_rows
from .listwise import Expected, Listwise, draw_loss, expect
from .token_oracle import Rewards, Tokens, reward_oracle
from .tokens import draw_impl


class Whole:
    """Hidden states of P prompts with N responses, a head, a loss, and what to expect."""

    def __init__(self, draw: Draw):
        self.prompts, self.n = draw.integer("P", 0, 5), draw.choice("N", (2, 3, 4, 5))
        count = self.prompts * self.n
        self.packed = draw.chance("packed", 0.6)
        rows: tuple[int, ...] = (count, draw.integer("T", 0, 5))
        self.ids = torch.arange(count).repeat_interleave(rows[1])
        if self.packed:
            rows = (draw.integer("M", 0, 8 * count),)
            # A chunk holds whole prompts: with three of them one is smaller than what has room.
            if self.prompts >= 3 and draw_many_rows(draw, 0.5):
                rows = (draw.integer("M", 900, 1400),)
            self.ids = draw.integers(0, max(count, 1), *rows)
            self.ids = draw.tensor("response_ids", self.ids.masked_fill(draw.mask(0.1, *rows), -1))
        draw.keep("rows", rows)
        self.case: Linear = draw_linear(draw, rows, self.ids < 0)
        self.loss: Listwise = draw_loss(draw, self.n)
        self.mean = draw.choice("normalize", ("mean", "sum")) == "mean"
        teacher = draw.normal(self.prompts, self.n) * draw.choice("teacher spread", (0.3, 3.0))
        self.teacher = draw.tensor(
            "teacher", teacher.to(draw.choice("teacher dtype", (torch.float32, torch.float64)))
        )
        self.mask = None
        if draw.chance("masked", 0.3):
            self.mask = draw.tensor("mask", draw.mask(0.7, self.prompts, self.n))
        labels = self.case.labels.reshape(-1)
        own = labels.where(self.ids >= 0, self.case.options.ignore_index)
        alive = torch.zeros(count, dtype=torch.int64)
        alive.index_add_(0, self.ids.clamp(min=0), (own != self.case.options.ignore_index).long())
        self.live = (alive > 0).view(self.prompts, self.n)
        self.live = self.live if self.mask is None else self.live & self.mask
        self.tokens: Tokens = self.case.tokens(own)
        self.rewards: Rewards = reward_oracle(
            self.tokens, labels, self.ids, count, self.mean, self.case.options, self.case.dtype
        )
        self.upstream = None
        if self.loss.reduction == "none":
            self.upstream = draw.tensor("upstream", draw.normal(self.prompts))

    def reward_keywords(self) -> dict:
        """The options of linear_response_rewards, but for the responses."""
        normalize = "mean" if self.mean else "sum"
        return {"normalize": normalize, **self.case.options.keywords(), **self.case.keywords}

    def check(self, way: str, loss: Tensor, rewards: Tensor) -> None:
        """Rewards against the oracle, loss and gradients against those of the rewards seen."""
        bound, size = self.rewards.error.view(rewards.shape), rewards.shape
        check(f"rewards {way}", rewards, self.rewards.values.view(size), bound)
        want: Expected = expect(self.loss, rewards, self.teacher, self.live, self.upstream)
        check(f"loss {way}", loss.detach(), want.loss, want.loss_error)
        slope = want.gradient.reshape(-1)
        slope_error = (want.gradient_error + cast_error(want.gradient, rewards.dtype)).reshape(-1)
        labels = self.case.labels.reshape(-1)
        if not len(slope):
            slope, slope_error = torch.zeros(2, 1, dtype=torch.float64)
        weights, place = self.rewards.weights, self.rewards.place
        each, error = slope[place] * weights, slope_error[place] * weights
        if len(each) != len(labels):
            raise AssertionError("one upstream gradient a row")
        rounding = 4 * unit_roundoff(rewards.dtype) * each.abs()
        for leaf in self.case.leaves:  # a leaf that no row reaches has no gradient, or 0
            if leaf.requires_grad and leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
        check_gradients(self.case, self.tokens, each, error + rounding)

    def backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            loss.backward(None if self.upstream is None else self.upstream.to(loss.dtype))

    def clear(self) -> None:
        for leaf in self.case.leaves:
            leaf.grad = None


def linear_preference_loss_case(draw: Draw) -> None:
    """linear_preference_loss, and its two steps one after the other."""
    draw_impl(draw)
    whole = Whole(draw)
    case, ids = whole.case, whole.ids if whole.packed else None
    name = "vpd" if whole.loss.kind == "vpd" else "ppd"
    options = {**whole.loss.keywords(), **whole.reward_keywords(), "loss": name}
    with case.context():
        loss, rewards = linear_preference_loss(
            *case.views[:2],
            case.labels,
            whole.teacher,
            response_ids=ids,
            mask=whole.mask,
            **options,
        )
    whole.backward(loss)
    whole.check("in one", loss, rewards)
    whole.clear()
    count = whole.teacher.numel()
    with case.context():
        seen = linear_response_rewards(
            *case.views[:2],
            case.labels,
            response_ids=ids,
            num_responses=count,
            **whole.reward_keywords(),
        )
    seen = seen.view(whole.teacher.shape)
    loss = whole.loss(seen, whole.teacher, mask=whole.live, impl=case.keywords["impl"])
    whole.backward(loss)
    whole.check("in two", loss, seen.detach())


def micro_batched_backward_case(draw: Draw) -> None:
    """The gradient of slices, one after another, is that of all responses together."""
    draw.keep("impl", "torch")
    whole = Whole(draw)
    if whole.loss.reduction == "none":
        whole.loss, whole.upstream = Listwise(whole.loss.kind, whole.loss.beta), None
    case, count = whole.case, whole.teacher.numel()
    parts = draw.integer("slices", 1, 4)
    owner = draw.tensor("slice of each response", draw.integers(0, parts, max(count, 1)))
    index, noises = case.options.ignore_index, []
    keywords = {**whole.reward_keywords(), "live_rows": None}

    def rewards_of(part: int) -> Tensor:
        noises.append((part, torch.rand(3)))  # what is random in a forward comes again as it was
        theirs = (whole.ids >= 0) & (owner[whole.ids.clamp(min=0)] == part)
        labels = case.labels.reshape(-1).where(theirs, index)
        hidden = case.views[0].reshape(-1, case.views[0].shape[-1])
        rewards = linear_response_rewards(
            hidden, case.views[1], labels, response_ids=whole.ids, num_responses=count, **keywords
        )
        return rewards.view(whole.teacher.shape)

    torch.manual_seed(draw.seed)
    with case.context():
        loss, rewards = micro_batched_backward(
            rewards_of, range(parts), lambda r: whole.loss(r, whole.teacher, mask=whole.live)
        )
    for part, noise in noises[parts:]:
        if not torch.equal(noise, noises[part][1]):
            raise AssertionError(f"slice {part} drew other random numbers in its second forward")
    if case.dtype.itemsize == 2 or case.autocast is not None:
        # The gradient of each slice is rounded to 16 bits, and their sum again: no bound here.
        size = rewards.shape
        want = whole.rewards
        check("rewards of slices", rewards, want.values.view(size), want.error.view(size))
        return
    whole.check("of slices", loss, rewards)
