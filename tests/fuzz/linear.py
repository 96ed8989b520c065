"""Cases of linear_token_logprobs and linear_response_rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast import linear_response_rewards, linear_token_logprobs

from .compare import cast_error, check, unit_roundoff
from .draw import DTYPES, Draw
from .known_defects import absolute_tanh
from .linear_oracle import Head, linear_gradients, linear_tokens
from .token_oracle import Options, Tokens, accumulation, reward_oracle
from .tokens import draw_ignore_index, draw_impl, draw_labels, draw_options, draw_responses

LAYOUTS = ("contiguous", "sliced columns", "sliced rows", "transposed")


@dataclass(frozen=True)
class Linear:
    """Leaves, the views of hidden and weight that the operation sees, and how it is called."""

    leaves: list[Tensor]  # hidden, weight and perhaps bias
    views: list[Tensor]
    labels: Tensor
    options: Options
    keywords: dict
    autocast: torch.dtype | None

    @property
    def dtype(self) -> torch.dtype:
        """What the products are made of."""
        return self.leaves[0].dtype if self.autocast is None else self.autocast

    @property
    def frozen(self) -> bool:
        return not self.leaves[1].requires_grad

    def head(self) -> Head:
        """The factors as they are multiplied, in float64."""
        wide = [view.detach().to(self.dtype).double() for view in self.views]
        bias = wide[2] if len(wide) > 2 else None
        return Head(wide[0].reshape(-1, wide[0].shape[-1]), wide[1], bias, self.dtype)

    def tokens(self, labels: Tensor) -> Tokens:
        """What log-probabilities of ``labels`` have to be."""
        rough = absolute_tanh(self.keywords["impl"], self.dtype)
        return linear_tokens(self.head(), labels, self.options, rough)

    def context(self) -> torch.autocast:
        return torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)


def draw_budget(draw: Draw) -> int | str:
    """Nothing, "auto", or a few bytes to some kilobytes; for many rows, room for a part of them."""
    if draw.case.get("many rows") and draw.chance("budget is for a part", 0.8):
        return draw.keep("memory_budget", int(draw.magnitude("budget", 7e4, 6e5)))
    kind = draw.choice("budget is", ("auto", "0", "small"), (2, 2, 3))
    small = int(draw.magnitude("budget", 1, 1e6)) if kind == "small" else 0
    return draw.keep("memory_budget", "auto" if kind == "auto" else small)


def draw_many_rows(draw: Draw, probability: float) -> bool:
    """Whether a case has more rows than one product takes, so that a budget has room for some."""
    return draw.case["impl"] == "torch" and draw.chance("many rows", probability)


def draw_linear(draw: Draw, rows: tuple[int, ...], none_at: Tensor | None = None) -> Linear:
    """Hidden states of ``rows`` rows and a head; ``none_at`` marks rows of no response."""
    impl = draw.case["impl"]
    width = draw.choice("D", (1, 2, 5, 8, 16, 33))
    vocabulary = draw.choice("V", (1, 2, 5, 17, 64, 130) if impl == "torch" else (1, 5, 17))
    if draw.case.get("many rows"):  # small, so that budgets with room for a part are known
        width, vocabulary = draw.choice("D", (2, 5, 8)), draw.choice("V", (2, 5, 17))
    elif impl == "torch" and draw.chance("V is large", 0.04):
        vocabulary = draw.integer("V", 2040, 4200)
    ignore_index = draw_ignore_index(draw, vocabulary)
    dtype, autocast = draw.choice("dtype", DTYPES, (1, 2, 3, 3)), None
    if dtype != torch.float64 and impl == "torch" and draw.chance("autocast", 0.15):
        autocast = draw.choice("autocast to", (torch.bfloat16, torch.float16), (4, 1))
    options = draw_options(draw, ignore_index)
    if torch.float16 in (dtype, autocast):
        # The gradients of the logits are kept in float16, whose range ends at 65504.
        while abs(options.logit_scale / options.temperature) > 1e3:
            options = draw_options(draw, ignore_index)
    labels = draw_labels(draw, rows, vocabulary, ignore_index)
    factor = abs(options.logit_scale / options.temperature) or 1.0
    size = min(max(draw.choice("size of scores", (0.3, 3.0, 30.0)) / factor, 1e-3), 1e3)
    frozen = draw.chance("frozen head", 0.25)
    leaves, views = [], []
    parts = {"hidden": ((*rows, width), 1.0), "weight": ((vocabulary, width), size / width**0.5)}
    for name, (shape, scale) in parts.items():
        base, view_of = draw.laid_out(name, shape, LAYOUTS if name == "hidden" else LAYOUTS[::3])
        leaf = draw.tensor(name, (draw.normal(*base) * scale).to(dtype))
        leaf.requires_grad_(name == "hidden" or not frozen)
        leaves.append(leaf)
        views.append(view_of(leaf))
    if draw.chance("bias", 0.4):
        bias = draw.tensor("bias", (draw.normal(vocabulary) * size).to(dtype))
        leaves.append(bias.requires_grad_(not frozen))
        views.append(bias)
    keywords: dict = {"impl": impl, "memory_budget": draw_budget(draw)}
    if draw.chance("live_rows is given", 0.4):
        live = labels.reshape(-1) != ignore_index
        live = live if none_at is None else live & ~none_at
        keywords["live_rows"] = draw.tensor("live_rows", live.nonzero()[:, 0])
    if len(views) > 2:
        keywords["bias"] = views[2]
    return Linear(leaves, views, labels, options, keywords, autocast)


def check_gradients(case: Linear, tokens: Tokens, upstream: Tensor, upstream_error: Tensor) -> None:
    """The gradients of hidden, weight and bias, which arrive in the leaves by their views."""
    found = linear_gradients(case.head(), tokens, upstream, upstream_error)
    names = ("hidden", "weight", "bias")
    for name, leaf, view, (want, bound) in zip(names, case.leaves, case.views, found, strict=False):
        if not leaf.requires_grad:
            if leaf.grad is not None:
                raise AssertionError(f"frozen {name} has a gradient")
            continue
        bound = bound + cast_error(want, leaf.dtype)  # autocast had cast it
        bound = bound.masked_fill(bound > 1e30, torch.inf)
        if case.dtype == torch.float16:  # beyond its range on the way to a wider leaf
            bound = bound.masked_fill(want.abs() + bound > 65000, torch.inf)
        got = leaf.grad.as_strided(view.shape, view.stride(), view.storage_offset())
        check(f"gradient of {name}", got, want.view(view.shape), bound.view(view.shape))


def linear_token_logprobs_case(draw: Draw) -> None:
    """linear_token_logprobs and its gradients."""
    impl = draw_impl(draw)
    dims = draw.choice("dims", (0, 1, 2, 3), (1, 5, 5, 1))
    rows = draw.keep("rows", tuple(draw.integers(0, 4 if impl == "triton" else 7, dims).tolist()))
    if dims == 1 and draw_many_rows(draw, 0.1):
        rows = draw.keep("rows", (draw.integer("M", 300, 900),))
    case = draw_linear(draw, rows)
    tokens = case.tokens(case.labels.reshape(-1))
    with case.context():
        logps = linear_token_logprobs(
            *case.views[:2], case.labels, **case.options.keywords(), **case.keywords
        )
    wide = accumulation(case.dtype)
    if logps.dtype != wide:
        raise AssertionError(f"log-probabilities are {logps.dtype}")
    shape = case.labels.shape
    check("linear log p", logps, tokens.logp.view(shape), tokens.logp_error.view(shape))
    upstream = draw.normal(*rows).to(wide)
    upstream = draw.tensor("upstream", upstream.masked_fill(draw.mask(0.2, *rows), 0))
    logps.backward(upstream)
    flat = upstream.double().reshape(-1)
    check_gradients(case, tokens, flat, torch.zeros_like(flat))


def linear_response_rewards_case(draw: Draw) -> None:
    """linear_response_rewards and its gradients, padded or packed."""
    impl = draw_impl(draw)
    packed = draw.chance("packed", 0.5)
    most = 4 if impl == "triton" else 7
    rows = (
        (draw.integer("M", 0, 3 * most),) if packed else tuple(draw.integers(0, most, 2).tolist())
    )
    if packed and draw_many_rows(draw, 0.08):
        rows = (draw.integer("M", 300, 900),)
    draw.keep("rows", rows)
    responses: dict = {}
    if packed:
        ids, count, given = draw_responses(draw, rows[0])
        responses = {"response_ids": ids, "num_responses": given}
    else:
        count = rows[0]
        ids = torch.arange(count).repeat_interleave(rows[1])
    case = draw_linear(draw, rows, ids < 0)
    mean = draw.choice("normalize", ("mean", "sum")) == "mean"
    labels = case.labels.reshape(-1)
    own = labels.where(ids >= 0, case.options.ignore_index)
    tokens = case.tokens(own)
    want = reward_oracle(tokens, labels, ids, count, mean, case.options, case.dtype)
    with case.context():
        rewards = linear_response_rewards(
            *case.views[:2],
            case.labels,
            normalize=draw.case["normalize"],
            **responses,
            **case.options.keywords(),
            **case.keywords,
        )
    check("linear reward", rewards, want.values, want.error)
    upstream = draw.tensor("upstream", draw.normal(count).to(rewards.dtype))
    rewards.backward(upstream)
    each = (
        upstream.double()[want.place] * want.weights if count else torch.zeros(len(labels)).double()
    )
    check_gradients(case, tokens, each, 2 * unit_roundoff(rewards.dtype) * each.abs())
