"""Which layout a model can take: known by its config, or tried on a few real rows against each response alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pad_fast.models import prefix_attention
from pad_fast.models.causal_lm import causal_lm, evaluating, input_embedding, vocabulary_size
from pad_fast.models.layout import PAD_ID, Group, check_share_prefix
from pad_fast.models.output_head import head_problem
from pad_fast.models.packing import PackedRows, pack
from pad_fast.models.rewards import packed_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("pad_fast")

STATEFUL = {  # what they carry from token to token cannot be cut off at a response's end
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "mamba", "mamba2", "minimax",
    "nemotron_h", "olmo_hybrid", "plamo2", "qwen3_5", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
}  # fmt: skip
ATTENTION_LAYERS = ("full_attention", "sliding_attention")
# of each of the two groups that are tried, so that the trial fits wherever a step does
TRIED_RESPONSES, TRIED_PROMPT, TRIED_RESPONSE = 3, 256, 64

_problems: WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = WeakKeyDictionary()
_told: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def choose_layout(
    model: nn.Module,
    groups: Sequence[Group],
    share_prefix: str | bool = "auto",
    *,
    gradients: bool = True,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> str:
    """The best of the layouts (see :mod:`pad_fast.models.layout`) that gives the rewards, and with ``gradients`` the gradients, that
    each response has alone, up to rounding: "shared" unless ``share_prefix`` is False, then "packed", then "padded".

    It is tried on the first groups, for this model, its attention, its dtype and ``precision`` (such as autocast), once; why a layout
    does not serve is told, once. Without groups there is nothing to try, and nothing is packed.

    Raises ValueError if ``share_prefix`` is True and the model cannot.
    """
    lm, share_prefix = causal_lm(model), check_share_prefix(share_prefix)
    tried = _cut(groups, lm)
    if not tried:
        return "padded"
    if share_prefix is not False:
        problem = _problem(lm, tried, "shared", gradients, precision)
        if problem is None:
            return "shared"
        if share_prefix is True:
            raise ValueError(
                f"share_prefix=True, but {type(lm).__name__} cannot share a prompt among its responses: {problem}"
            )
        _tell(lm, f"shares no prompt among its responses: {problem}")
    problem = _problem(lm, tried, "packed", gradients, precision)
    if problem is None:
        return "packed"
    _tell(lm, f"takes a padded row for each response: {problem}")
    return "padded"


def _tell(lm: nn.Module, message: str) -> None:
    told = _told.setdefault(lm, set())
    if message not in told:
        told.add(message)
        logger.warning("%s %s", type(lm).__name__, message)


def takes_one_row(model: nn.Module) -> bool:
    """Whether the model's attention is told where sequences end, as flash-attn's is, so that one row holds them all."""
    return "flash" in prefix_attention.own_attention(causal_lm(model))


def _problem(
    lm: PreTrainedModel, groups: Sequence[Group], layout: str, gradients: bool, precision: Callable
) -> str | None:
    device = input_embedding(lm).device
    with precision():
        cast = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else None
        )
    case = (layout, gradients, prefix_attention.own_attention(lm), lm.dtype, device, cast)
    known = _problems.setdefault(lm, {})
    if case not in known:
        known[case] = known_problem(lm, layout) or _tried_problem(
            lm, groups, layout, gradients, precision
        )
    return known[case]


def known_problem(lm: PreTrainedModel, layout: str) -> str | None:
    """Why a layout does not serve, as far as the config tells; None where it may."""
    config = lm.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS))
    if config.model_type in STATEFUL:
        return f"{config.model_type} carries a state from token to token"
    if others:
        return f"it has layers of type {', '.join(others)}"
    if any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in lm.parameters()):
        return "its weights are not all here, so that it cannot be tried"
    if layout != "shared":
        return None
    own = prefix_attention.own_attention(lm)
    if own not in prefix_attention.REPLACED:
        return f"its attention is {own}; sdpa, eager and flex_attention can"
    if any(
        "sink" in name for name, _ in lm.named_parameters()
    ):  # gpt_oss, granite_swa, deepseek_v4, ...
        return f"{config.model_type} has attention sinks"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is cut into chunks"
    rope = getattr(config, "rope_parameters", None) or {}
    if any("mrope_section" in part for part in (rope, *rope.values()) if isinstance(part, dict)):
        return "its positions have several dimensions"
    return None


def _cut(groups: Sequence[Group], lm: PreTrainedModel) -> list[Group]:
    """Two groups that have something to share, with the end of their prompts and the beginning of their responses."""
    found: list[Group] = []
    for prompt, responses, _ in islice((group for group in groups if len(group.responses) > 1), 2):
        start = sum(len(group.numbers) for group in found)
        some = [list(response[:TRIED_RESPONSE]) for response in responses[:TRIED_RESPONSES]]
        found.append(
            Group(list(prompt[-TRIED_PROMPT:]), some, list(range(start, start + len(some))))
        )
    return found


def _tried_problem(
    lm: PreTrainedModel, groups: Sequence[Group], layout: str, gradients: bool, precision: Callable
) -> str | None:
    try:
        with evaluating(lm), prefix_attention.installed(lm), precision():
            return _difference(lm, groups, layout, gradients)
    except Exception as error:  # whatever a model does with what it was not written for
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _difference(
    lm: PreTrainedModel, groups: Sequence[Group], layout: str, gradients: bool
) -> str | None:
    head_problem(lm)  # now: it calls the model too
    device = input_embedding(lm).device
    options = {"one_row": takes_one_row(lm), "bucketed": device.type != "cpu"}
    together = pack(groups, layout, **options).on(device)
    alone = [
        pack([Group(x, [y], [i])], "padded").on(device)
        for x, ys, numbers in groups
        for y, i in zip(ys, numbers, strict=True)
    ]
    wanted, wanted_gradient = _rewards(lm, alone, groups, gradients)
    found, found_gradient = _rewards(lm, [together], groups, gradients)
    if not wanted.isfinite().all():
        return "its log-probabilities are not finite"
    tolerance, size = _rounding(lm) ** 0.5, wanted.abs().max().item()
    if not (difference := (found - wanted).abs().max().item()) <= tolerance * size:
        return f"rewards differ by {difference:.3g} of {size:.3g} from those of each response alone"
    others = torch.tensor(
        [place > 0 for group in groups for place in range(len(group.numbers))], device=device
    )
    changed = pack([_changed(group, vocabulary_size(lm)) for group in groups], layout, **options)
    moved = (
        (_rewards(lm, [changed.on(device)], groups, False)[0] - found)[others].abs().max().item()
    )
    if not moved <= (tolerance / 8 if _routes(lm) else 1e-6) * size:
        return f"a response moves by {moved:.3g} of {size:.3g} when another one is changed"
    if gradients:
        difference, size = (
            (found_gradient - wanted_gradient).norm().item(),
            wanted_gradient.norm().item(),
        )
        if not difference <= 2 * tolerance * size:
            return f"gradients differ by {difference:.3g} of {size:.3g} from those of each response alone"
    return _missing_window(lm, together) if layout == "shared" else None


def _rounding(lm: PreTrainedModel) -> float:
    """Of the coarsest of the dtypes in use; norms and softmaxes are float32 whatever the model is."""
    device = input_embedding(lm).device.type
    cast = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    return max(torch.finfo(dtype).eps for dtype in (torch.float32, lm.dtype, *cast))


def _routes(lm: PreTrainedModel) -> bool:
    """Whether tokens are sent to experts: other tokens then change how many stand in one product, and so its rounding."""
    config = lm.config.get_text_config()
    return any(
        getattr(config, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _changed(group: Group, vocabulary: int) -> Group:
    """The group with other tokens in its first response."""
    first = [(token + 1) % vocabulary for token in group.responses[0]]
    return group._replace(responses=[first, *group.responses[1:]])


def _rewards(
    lm: PreTrainedModel, batches: Sequence[PackedRows], groups: Sequence[Group], gradients: bool
) -> tuple[Tensor, Tensor]:
    """Rewards, detached, and the gradient of a weighted sum of them in what each token id is embedded as, (ids, D) in order of ids.

    It is that of the embedding table, and it passes through every layer; the table itself need not require a gradient.
    """
    count, device = sum(len(group.numbers) for group in groups), input_embedding(lm).device
    weights = torch.linspace(-1, 1.5, count, device=device)
    tokens = {
        PAD_ID,
        *(
            token
            for prompt, responses, _ in groups
            for ids in (prompt, *responses)
            for token in ids
        ),
    }
    ids = torch.tensor(sorted(tokens), device=device)
    total, gradient = torch.zeros(count, device=device), torch.zeros((), device=device)
    for batch in batches:
        with torch.set_grad_enabled(gradients), _embeddings(lm) as embedded:
            rewards = packed_rewards(lm, batch, count).to(device)
        if gradients:
            (found,) = torch.autograd.grad((rewards * weights).sum(), embedded)
            table = found.new_zeros(
                len(ids),
                found.shape[-1],
                dtype=torch.float64 if found.dtype == torch.float64 else torch.float32,
            )
            places = torch.searchsorted(ids, batch.input_ids.flatten())
            gradient = gradient + table.index_add_(0, places, found.flatten(0, 1).to(table.dtype))
        total = total + rewards.detach()
    return total, gradient


@contextmanager
def _embeddings(lm: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the model's embedding gives inside, as leaves."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return found[-1]

    handle = lm.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _missing_window(lm: PreTrainedModel, packed: PackedRows) -> str | None:
    """A window that its config speaks of and that its attention was not told is longer than what was tried."""
    config = lm.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    assert packed.layout is not None
    if (
        isinstance(window, int)
        and window not in packed.layout.windows
        and (kinds is None or "sliding_attention" in kinds)
    ):
        return f"its sliding window of {window} tokens does not reach its attention"
    return None
