"""Which layout a model can take: from its config, or by a trial on a few real rows.

The trial compares the rewards and gradients of the rows in a layout with those of each response
alone, and checks that no response changes when another one does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pad_fast.device import (
    autocast_dtype,
    compiles_attention,
    product_rounding,
    release_unused_memory,
)
from pad_fast.device_errors import (
    INSTALL_COMPILER,
    is_of_the_device,
    is_out_of_memory,
    lacks_compiler,
    lacks_shared_memory,
)
from pad_fast.files.system_errors import first_line
from pad_fast.models import prefix_attention
from pad_fast.models.causal_lm import causal_lm, evaluating, input_embedding, vocabulary_size
from pad_fast.models.layout import PAD_ID, PromptGroup, check_share_prefix
from pad_fast.models.neighbour_effects import place_problem, sides_of
from pad_fast.models.output_head import forget_head, head_problem
from pad_fast.models.packing import PackedRows, pack, split
from pad_fast.models.rewards import RewardOptions, packed_rewards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("pad_fast")

# These carry a state from token to token, which cannot be cut at the end of a response.
STATEFUL = {
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "plamo2",
    "qwen3_5",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
}
ATTENTION_LAYERS = ("full_attention", "sliding_attention")
# Two groups are tried, each cut to this size, so that the trial fits in memory if a step does.
# Where memory runs out all the same, shorter ones are.
TRIED_RESPONSES = 3
TRIED_TOKENS = ((256, 64), (64, 16), (16, 4))  # in a prompt, in a response

_problems: WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = WeakKeyDictionary()
_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def choose_layout(
    model: nn.Module,
    groups: Sequence[PromptGroup],
    share_prefix: str | bool = "auto",
    *,
    gradients: bool = True,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    impl: str = "auto",
    trial: bool = True,
) -> str:
    """The best layout that gives each response, up to rounding, the reward that it has alone.

    The order is "shared", "packed", "padded". Each is tried on the first groups, once for a model
    with its attention, its dtype and these options. Why a layout is not taken is logged once.

    Args:
        model: a causal language model, in any wrappers.
        groups: prompts with their responses. Without two responses to a prompt there is nothing to
            try, and the answer is "padded".
        share_prefix: False leaves "shared" out; True allows nothing else.
        gradients: compare the gradients too.
        precision: returns a context for the forward passes, such as autocast.
        impl: the implementation of the reward operations.
        trial: False goes by the model's config alone, where it cannot be run.

    Returns:
        A name from :data:`pad_fast.models.layout.LAYOUTS`.

    Raises:
        ValueError: ``share_prefix`` is True and the model cannot share prompts, or there is no
            memory to try a layout.
        RuntimeError: the GPU failed in the trial.
    """
    lm, share_prefix = causal_lm(model), check_share_prefix(share_prefix)
    tried = _shortened(groups)
    if not tried:
        return "padded"
    options = RewardOptions(impl=impl)
    case = _Trial(lm, tried, gradients, precision, options) if trial else None
    if share_prefix is not False:
        problem = _problem(lm, case, "shared")
        if problem is None:
            return "shared"
        if share_prefix is True:
            raise ValueError(
                f"share_prefix=True, but {type(lm).__name__} cannot share a prompt "
                f"among its responses: {problem}"
            )
        _warn(lm, f"shares no prompt among its responses: {problem}")
    problem = _problem(lm, case, "packed")
    if problem is None:
        return "packed"
    _warn(lm, f"takes a padded row for each response: {problem}")
    return "padded"


def forget_trials(model: nn.Module) -> None:
    """Try the output head and the layouts of a model anew when they are asked for next."""
    forget_head(model)
    _problems.pop(causal_lm(model), None)


def takes_one_row(model: nn.Module) -> bool:
    """Whether one packed row can hold all sequences, since the attention takes their ends."""
    return prefix_attention.takes_sequence_ends(causal_lm(model))


def pack_for(
    model: PreTrainedModel, groups: Sequence[PromptGroup], layout: str, row_tokens: int = 0
) -> PackedRows:
    """Pack the groups as suits the model's attention and device, on that device."""
    device = input_embedding(model).device
    options = {"one_row": takes_one_row(model), "bucketed": compiles_attention(device)}
    return pack(groups, layout, **options, row_tokens=row_tokens).on(device)


def _warn(lm: nn.Module, message: str) -> None:
    warned = _warned.setdefault(lm, set())
    if message not in warned:
        warned.add(message)
        logger.warning("%s %s", type(lm).__name__, message)


@dataclass(frozen=True)
class _Trial:
    """What is tried: a model, the groups, and how their rewards are computed."""

    lm: PreTrainedModel
    groups: list[PromptGroup]
    gradients: bool
    precision: Callable[[], AbstractContextManager]
    options: RewardOptions

    @property
    def device(self) -> torch.device:
        return input_embedding(self.lm).device

    @property
    def count(self) -> int:
        """The number of responses."""
        return sum(len(group.numbers) for group in self.groups)


def _problem(lm: PreTrainedModel, trial: _Trial | None, layout: str) -> str | None:
    if trial is None:
        return known_problem(lm, layout)
    with trial.precision():
        cast = autocast_dtype(trial.device)
        rounding = _rounding(trial)
    own, impl = prefix_attention.own_attention(lm), trial.options.impl
    case = (layout, trial.gradients, own, lm.dtype, trial.device, cast, rounding, impl)
    known = _problems.setdefault(lm, {})
    if case not in known:
        known[case] = known_problem(lm, layout) or _tried_problem(trial, layout)
    return known[case]


def known_problem(lm: PreTrainedModel, layout: str) -> str | None:
    """Why a model cannot take a layout, from its config; None where only a trial can say."""
    config = lm.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS))
    if config.model_type in STATEFUL:
        return f"{config.model_type} carries a state from token to token"
    if others:
        return f"it has layers of type {', '.join(others)}"
    if any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in lm.parameters()):
        return "its weights are not all here, so that it cannot be tried"
    if problem := place_problem(lm):
        return problem
    if layout != "shared":
        return None
    own = prefix_attention.own_attention(lm)
    if own not in prefix_attention.REPLACED:
        return f"its attention is {own}; sdpa, eager and flex_attention can"
    # gpt_oss, granite_swa, deepseek_v4, ...
    if any("sink" in name for name, _ in lm.named_parameters()):
        return f"{config.model_type} has attention sinks"
    rope = getattr(config, "rope_parameters", None) or {}
    if any("mrope_section" in part for part in (rope, *rope.values()) if isinstance(part, dict)):
        return "its positions have several dimensions"
    return None


def _shortened(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """Two groups of several responses, with the ends of prompts and the beginnings of responses."""
    found: list[PromptGroup] = []
    for prompt, responses, _ in islice((group for group in groups if len(group.responses) > 1), 2):
        start = sum(len(group.numbers) for group in found)
        some = responses[:TRIED_RESPONSES]
        numbers = list(range(start, start + len(some)))
        found.append(_cut(PromptGroup(prompt, some, numbers), *TRIED_TOKENS[0]))
    return found


def _cut(group: PromptGroup, prompt: int, response: int) -> PromptGroup:
    """The group with at most so many tokens of its prompt's end and its responses' beginnings."""
    responses = [list(tokens[:response]) for tokens in group.responses]
    return group._replace(prompt=list(group.prompt[-prompt:]), responses=responses)


def _tried_problem(trial: _Trial, layout: str) -> str | None:
    """What keeps the model from a layout.

    Raises:
        ValueError: memory runs out on the shortest rows too, which is no property of the model.
        RuntimeError: the GPU failed, which is none either.
    """
    for tokens in TRIED_TOKENS:
        shorter = replace(trial, groups=[_cut(group, *tokens) for group in trial.groups])
        try:
            with evaluating(trial.lm), trial.precision():
                return _difference(shorter, layout)
        except Exception as error:  # models fail in any way on rows they were not written for
            if not is_out_of_memory(error):
                return _described(error, trial.device)
            said = first_line(error)
        release_unused_memory()
    raise ValueError(
        f"there is no memory on {trial.device} to try the layout {layout!r} with "
        f"{type(trial.lm).__name__}, even with {tokens[0]} tokens of a prompt ({said}); end other "
        "programs there or take a smaller model or data type"
    )


def _described(error: Exception, device: torch.device) -> str:
    """An error as the model's problem.

    Raises:
        RuntimeError: it is the GPU's.
    """
    if is_of_the_device(error):
        raise RuntimeError(
            f"{device} failed while a layout was tried, which says nothing of the model: "
            f"{first_line(error)}; start again, and see `dmesg` if it fails again"
        ) from error
    said = f"{type(error).__name__}: {first_line(error)}"
    if lacks_compiler(error):
        return f"a kernel cannot be compiled ({said}); {INSTALL_COMPILER}"
    if lacks_shared_memory(error):
        return f"a kernel needs more shared memory than {device} has ({said})"
    return said


def _difference(trial: _Trial, layout: str) -> str | None:
    """How the layout's rewards or gradients differ from those of each response alone."""
    lm = trial.lm
    together = _packed_together(trial, trial.groups, layout)
    alone = [
        pack([PromptGroup(x, [y], [i])], "padded").on(trial.device)
        for x, ys, numbers in trial.groups
        for y, i in zip(ys, numbers, strict=True)
    ]
    with prefix_attention.installed(lm, "padded"):
        head_problem(lm)  # looked up now, since it calls the model too
        wanted, wanted_gradient = _rewards(trial, alone)
    with prefix_attention.installed(lm, layout):
        found, found_gradient = _rewards(trial, together)
    if not wanted.isfinite().all():
        return "its log-probabilities are not finite"
    tolerance, size = _rounding(trial) ** 0.5, wanted.abs().max().item()
    if not (difference := (found - wanted).abs().max().item()) <= tolerance * size:
        return f"rewards differ by {difference:.3g} of {size:.3g} from those of each response alone"
    moved = _influence(trial, layout, found)
    if not moved <= (tolerance / 8 if _routes(lm) else 1e-6) * size:
        return f"a response moves by {moved:.3g} of {size:.3g} when another one is changed"
    if trial.gradients:
        difference = (found_gradient - wanted_gradient).norm().item()
        size = wanted_gradient.norm().item()
        if not difference <= 2 * tolerance * size:
            return (
                f"gradients differ by {difference:.3g} of {size:.3g} "
                "from those of each response alone"
            )
    return _missing_window(lm, together[0]) if layout == "shared" else None


def _packed_together(trial: _Trial, groups: Sequence[PromptGroup], layout: str) -> list[PackedRows]:
    """The groups in a layout, in one batch for each side that the model tells apart.

    A packed row has room for two sequences of any length, so that the trial packs some.
    """
    longest = max(len(group.prompt) + max(map(len, group.responses)) - 1 for group in groups)
    return [
        pack_for(trial.lm, part, layout, row_tokens=2 * longest)
        for part in split(groups, None, layout, sides_of(trial.lm))
    ]


def _influence(trial: _Trial, layout: str, before: Tensor) -> float:
    """The most that a reward moves when the first response of each group gets other tokens."""
    lm, groups = trial.lm, trial.groups
    others = [place > 0 for group in groups for place in range(len(group.numbers))]
    changed_groups = [_changed(group, vocabulary_size(lm)) for group in groups]
    changed = _packed_together(trial, changed_groups, layout)
    with prefix_attention.installed(lm, layout):
        after, _ = _rewards(trial, changed, gradients=False)
    return (after - before)[torch.tensor(others, device=trial.device)].abs().max().item()


def _rounding(trial: _Trial) -> float:
    """The coarsest rounding of its products; any model has norms and softmaxes in float32."""
    cast = autocast_dtype(trial.device)
    dtypes = (torch.float32, trial.lm.dtype, *([] if cast is None else [cast]))
    return max(product_rounding(trial.device, dtype) for dtype in dtypes)


def _routes(lm: PreTrainedModel) -> bool:
    """Whether tokens are routed to experts.

    Other tokens then change the number of rows in an expert's product, and so its rounding.
    """
    config = lm.config.get_text_config()
    return any(
        getattr(config, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _changed(group: PromptGroup, vocabulary: int) -> PromptGroup:
    """The group with other tokens in its first response."""
    first = [(token + 1) % vocabulary for token in group.responses[0]]
    return group._replace(responses=[first, *group.responses[1:]])


def _rewards(
    trial: _Trial, batches: Sequence[PackedRows], gradients: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Detached rewards (R,), and the gradient of a weighted sum of them (ids, D).

    The gradient is that of the rows of the embedding table, in order of token ids. It passes
    through every layer, and the table itself need not require a gradient.
    """
    gradients = trial.gradients if gradients is None else gradients
    lm, device = trial.lm, trial.device
    weights = torch.linspace(-1, 1.5, trial.count, device=device)
    ids = torch.tensor(_tokens(trial.groups), device=device)
    total, gradient = torch.zeros(trial.count, device=device), torch.zeros((), device=device)
    for batch in batches:
        with torch.set_grad_enabled(gradients), _embeddings(lm) as embedded:
            rewards = packed_rewards(lm, batch, trial.count, trial.options).to(device)
        if gradients:
            (found,) = torch.autograd.grad((rewards * weights).sum(), embedded)
            wide = torch.float64 if found.dtype == torch.float64 else torch.float32
            table = found.new_zeros(len(ids), found.shape[-1], dtype=wide)
            places = torch.searchsorted(ids, batch.input_ids.flatten())
            gradient = gradient + table.index_add_(0, places, found.flatten(0, 1).to(wide))
        total = total + rewards.detach()
    return total, gradient


def _tokens(groups: Sequence[PromptGroup]) -> list[int]:
    """All token ids of the groups and of padding, in order."""
    found = {PAD_ID}
    for prompt, responses, _ in groups:
        found.update(prompt, *responses)
    return sorted(found)


@contextmanager
def _embeddings(lm: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The outputs of the model's embedding inside, as leaves of the graph."""
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
    """A sliding window in the config that no layer passed to the attention.

    It may be longer than the rows that were tried, so that rewards do not show it.
    """
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
