"""Cases of token_logprobs and response_rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast import response_lengths, response_rewards, token_logprobs

from .compare import cast_error, check, check_equal, unit_roundoff
from .draw import DTYPES, Draw
from .known_defects import LAYOUT_BITS_MENDED, absolute_tanh
from .token_oracle import Options, Tokens, accumulation, reward_oracle, summed, token_oracle

# What check_token_options accepts; a case keeps to it.
SMALLEST, LARGEST = 1e-30, 1e30
VOCABULARIES = (1, 2, 3, 7, 16, 17, 31, 64, 65, 130)


def draw_impl(draw: Draw) -> str:
    """Triton's interpreter takes a part of the cases, PyTorch the others."""
    return draw.choice("impl", ("torch", "triton"), (96, 4))


def draw_ignore_index(draw: Draw, vocabulary: int) -> int:
    """-100, another negative number, a number that is also a column, or one beyond the columns."""
    kind = draw.choice("ignore_index is", ("-100", "negative", "a column", "beyond"), (5, 2, 2, 1))
    if kind == "a column":
        return draw.integer("ignore_index", 0, vocabulary - 1)
    if kind == "beyond":
        return draw.integer("ignore_index", vocabulary, vocabulary + 1000)
    return -100 if kind == "-100" else draw.integer("ignore_index", -(2**31), -1)


def draw_options(draw: Draw, ignore_index: int) -> Options:
    """Usual options, and those from tiny to large that float32 can hold."""
    if draw.chance("options are usual", 0.5):
        return Options(
            draw.choice("temperature", (1.0, 0.7, 2.0)),
            draw.choice("softcap", (None, 30.0, 50.0)),
            draw.choice("logit_scale", (1.0, 0.0625, 13.0)),
            ignore_index,
        )
    low, high = draw.choice(
        "range of options", ((1e-2, 1e2), (1e-6, 1e6), (1e-12, 1e12)), (5, 2, 1)
    )
    while True:
        temperature = draw.magnitude("temperature", low, high)
        softcap = draw.magnitude("softcap", low, high) if draw.chance("capped", 0.5) else None
        scale = draw.magnitude("logit_scale", low, high) * draw.choice("sign", (1, -1), (9, 1))
        scale = draw.keep("logit_scale", 0.0 if draw.chance("scale is 0", 0.02) else scale)
        factors = [abs(scale / temperature)]
        if softcap is not None:
            factors += [softcap / temperature, abs(scale / softcap)]
        if all(factor == 0 or SMALLEST <= factor <= LARGEST for factor in factors):
            draw.keep("softcap", softcap)
            return Options(temperature, softcap, scale, ignore_index)


def draw_labels(draw: Draw, rows: tuple[int, ...], vocabulary: int, ignore_index: int) -> Tensor:
    """Labels of which a part, none or all are ignored."""
    dtype = draw.choice("labels are", (torch.int64, torch.int32), (4, 1))
    ignored = draw.choice("share ignored", (0.0, 0.2, 0.7, 1.0), (3, 4, 2, 0.5))
    labels = draw.integers(0, vocabulary, *rows)
    labels = labels.masked_fill(draw.mask(ignored, *rows), ignore_index).to(dtype)
    if labels.ndim == 2 and draw.chance("labels are transposed", 0.15):
        labels = labels.T.contiguous().T
    elif labels.ndim >= 1 and draw.chance("labels are strided", 0.15):
        labels = torch.stack([labels, labels + 1], -1)[..., 0]
    return draw.tensor("labels", labels)


def draw_logits(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, options: Options) -> Tensor:
    """Logits whose scores are of a usual size, large, extreme for their dtype, or -inf."""
    size = draw.choice("size of logits", ("usual", "flat", "large", "extreme"), (6, 1, 2, 1))
    scale = {"usual": 3.0, "flat": 0.0, "large": 300.0, "extreme": 3e4}[size]
    if size == "extreme" and dtype not in (torch.float16,):
        scale = 1e6
    factor = abs(options.logit_scale / options.temperature) or 1.0
    if size != "extreme" and draw.chance("scores, not logits, have this size", 0.7):
        scale = min(max(scale / factor, 1e-3), 1e4)
    logits = draw.normal(*shape) * scale
    if size == "usual" and draw.chance("one column leads", 0.2):
        logits[..., 0] += 20 * scale
    largest = 0.9 * torch.finfo(dtype).max  # +inf is no logit of a model
    no_nan = options.logit_scale > 0 or (options.logit_scale < 0 and options.softcap is not None)
    if no_nan and shape[-1] > 1 and draw.chance("some are -inf", 0.15):
        hidden = draw.mask(0.4, *shape)
        # One column stays finite: a row of nothing else has no distribution.
        hidden.transpose(-1, -2 if draw.case.get("logits layout") == "transposed" else -1)[
            ..., :4
        ] = 0
        return logits.clamp(-largest, largest).masked_fill(hidden, -torch.inf).to(dtype)
    return logits.clamp(-largest, largest).to(dtype)


@dataclass(frozen=True)
class Logits:
    """A leaf, the view of it that the operation sees, and the labels with their options."""

    leaf: Tensor
    view: Tensor
    labels: Tensor
    options: Options
    impl: str

    def rows(self) -> tuple[Tensor, Tensor]:
        """The logits (M, V) in float64 and the labels (M,)."""
        columns = self.view.shape[-1]
        return self.view.detach().double().reshape(-1, columns), self.labels.reshape(-1)

    def tokens(self, labels: Tensor) -> Tokens:
        """What log-probabilities of ``labels`` (M,) have to be."""
        rough = absolute_tanh(self.impl, self.leaf.dtype)
        return token_oracle(self.rows()[0], None, labels, self.options, self.leaf.dtype, rough)


def draw_case(draw: Draw, rows: tuple[int, ...]) -> Logits:
    """Logits of ``rows`` rows in some layout, with NaN in rows that nothing may read."""
    impl = draw.case["impl"]
    vocabulary = draw.choice("V", VOCABULARIES if impl == "torch" else VOCABULARIES[:6])
    if impl == "torch" and draw.chance("V is large", 0.04):
        vocabulary = draw.integer("V", 2040, 4500)
    ignore_index = draw_ignore_index(draw, vocabulary)
    options = draw_options(draw, ignore_index)
    dtype = draw.choice("dtype", DTYPES, (2, 2, 3, 3))
    labels = draw_labels(draw, rows, vocabulary, ignore_index)
    base_shape, view_of = draw.laid_out("logits", (*rows, vocabulary))
    leaf = draw_logits(draw, base_shape, dtype, options)
    if draw.case.get("logits layout") == "contiguous" and draw.chance("NaN where ignored", 0.3):
        leaf = leaf.masked_fill((labels == ignore_index)[..., None], torch.nan)
    leaf = draw.tensor("logits", leaf).requires_grad_()
    return Logits(leaf, view_of(leaf), labels, options, impl)


def check_leaf_gradient(
    case: Logits, tokens: Tokens, upstream: Tensor, upstream_error: Tensor
) -> None:
    """The gradient of the leaf is the view's, added up where the view repeats the leaf."""
    wide = accumulation(case.leaf.dtype)
    want = (upstream[:, None] * tokens.slope).reshape(case.view.shape)
    error = upstream.abs()[:, None] * tokens.slope_error
    error += upstream_error[:, None] * (tokens.slope.abs() + tokens.slope_error)
    error = error.reshape(case.view.shape) + 4 * unit_roundoff(wide) * want.abs()
    error += cast_error(want, case.leaf.dtype)
    copies = case.view.numel() // max(1, case.leaf.numel())
    if copies > 1:  # added in the dtype of the logits
        rounding = unit_roundoff(case.leaf.dtype) * summed(copies)
        want, error, size = (t.sum(0, keepdim=True) for t in (want, error, want.abs()))
        # Copies that may be beyond the range are infinite, and two of unlike signs add up to NaN.
        beyond = size + error > torch.finfo(case.leaf.dtype).max
        error = error.masked_fill(beyond, torch.inf)
        check("gradient of expanded logits", case.leaf.grad, want, error + rounding * size)
        return
    # A permutation, or a part of the base: spread as autograd spreads ones.
    places = torch.arange(case.leaf.numel()).view(case.leaf.shape)
    seen = _same_view(case, places).reshape(-1)
    full, bound = torch.zeros(case.leaf.numel()).double(), torch.zeros(case.leaf.numel()).double()
    full[seen], bound[seen] = want.reshape(-1), error.reshape(-1)
    shape = case.leaf.shape
    check("gradient of logits", case.leaf.grad, full.view(shape), bound.view(shape))


def _same_view(case: Logits, places: Tensor) -> Tensor:
    """``places`` seen as the logits are."""
    return places.as_strided(case.view.shape, case.view.stride(), case.view.storage_offset())


def token_logprobs_case(draw: Draw) -> None:
    """token_logprobs and its gradient, of any number of dimensions."""
    impl = draw_impl(draw)
    dims = draw.choice("dims", (0, 1, 2, 3), (1, 4, 4, 1))
    most = 3 if impl == "triton" or dims == 3 else 6
    rows = tuple(draw.integers(0, most + 1, dims).tolist())
    if dims == 1 and impl == "torch" and draw.chance("many rows", 0.05):
        rows = (draw.integer("rows", 100, 400),)
    case = draw_case(draw, draw.keep("rows", rows))
    tokens = case.tokens(case.labels.reshape(-1))
    inplace = case.view is case.leaf and draw.chance("inplace_backward", 0.15)
    view = case.leaf.clone() if inplace else case.view
    logps = token_logprobs(
        view, case.labels, **case.options.keywords(), inplace_backward=inplace, impl=impl
    )
    wide = accumulation(case.leaf.dtype)
    if logps.dtype != wide:
        raise AssertionError(f"log-probabilities are {logps.dtype}")
    rows_shape = case.labels.shape
    check("log p", logps, tokens.logp.view(rows_shape), tokens.logp_error.view(rows_shape))
    upstream = draw.normal(*rows).to(wide)
    upstream = draw.tensor("upstream", upstream.masked_fill(draw.mask(0.2, *rows), 0))
    logps.backward(upstream)
    flat = upstream.double().reshape(-1)
    check_leaf_gradient(case, tokens, flat, torch.zeros_like(flat))


def draw_responses(draw: Draw, rows: int) -> tuple[Tensor, int, int | None]:
    """Responses of packed rows in any order, -1 for some, their number, and the argument for it."""
    most = draw.integer("responses", 1, 5)
    ids = draw.integers(0, most, rows)
    if draw.chance("in order", 0.5):
        ids = ids.sort().values
    ids = ids.masked_fill(draw.mask(draw.choice("share of none", (0.0, 0.25)), rows), -1)
    ids = draw.tensor("response_ids", ids.to(draw.choice("ids are", (torch.int64, torch.int32))))
    least = int(ids.max()) + 1 if rows else 0
    if draw.chance("num_responses is given", 0.6):
        count = draw.keep("num_responses", least + draw.integer("empty at the end", 0, 2))
        return ids, count, count
    return ids, least, None


def response_rewards_case(draw: Draw) -> None:
    """response_rewards, its gradient, the lengths, and equal bits in another order."""
    impl = draw_impl(draw)
    packed = draw.chance("packed", 0.5)
    most = 4 if impl == "triton" else 7
    shape = (
        (draw.integer("M", 0, 3 * most),) if packed else tuple(draw.integers(0, most, 2).tolist())
    )
    case = draw_case(draw, draw.keep("rows", shape))
    keywords: dict = {}
    if packed:
        ids, count, given = draw_responses(draw, shape[0])
        keywords = {"response_ids": ids, "num_responses": given}
    else:
        count = shape[0]
        ids = torch.arange(count).repeat_interleave(shape[1])
    x, labels = case.rows()
    own = labels.where(ids >= 0, case.options.ignore_index)
    tokens = case.tokens(own)
    mean = draw.choice("normalize", ("mean", "sum")) == "mean"
    want = reward_oracle(tokens, labels, ids, count, mean, case.options, case.leaf.dtype)
    options = {**case.options.keywords(), "normalize": draw.case["normalize"], "impl": impl}
    rewards = response_rewards(case.view, case.labels, **keywords, **options)
    check("reward", rewards, want.values, want.error)
    index = case.options.ignore_index
    lengths = response_lengths(case.labels, **keywords, ignore_index=index)
    live = (case.labels.reshape(-1) != index) & (ids >= 0) if not packed else None
    if live is not None:
        expected = torch.zeros(count, dtype=torch.int64).index_add_(0, ids, live.long())
        check_equal("lengths", lengths, expected)
    upstream = draw.tensor("upstream", draw.normal(count).to(rewards.dtype))
    rewards.backward(upstream)
    each = (
        upstream.double()[want.place] * want.weights if count else torch.zeros(len(labels)).double()
    )
    check_leaf_gradient(case, tokens, each, 2 * unit_roundoff(rewards.dtype) * each.abs())
    same_layout = case.view.stride(-1) == 1 or LAYOUT_BITS_MENDED
    if case.leaf.dtype != torch.float64 and len(labels) and same_layout:
        order = draw.shuffled(len(labels))
        again = response_rewards(
            case.view.detach().reshape(-1, x.shape[1])[order],
            case.labels.reshape(-1)[order],
            response_ids=ids[order],
            num_responses=count,
            **options,
        )
        check_equal("reward in another order", again, rewards.detach())
