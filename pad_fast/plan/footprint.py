"""Peak memory and arithmetic of a step, before there are weights: the step is taken on fake tensors, each of its true shape.

The code that is run is the code that trains, scores and samples, so that what is counted follows the architecture by itself: what
autograd saves, what checkpointing drops, grouped keys, softcapped eager attention, caches of sliding windows. Only what is opaque to
tracing needs a formula, which is here the output head's (:func:`pad_fast.linear_logprob.memory_budget.cpu_workspace`).

The fake tensors lie on a fake CPU whatever device is planned for: its fused attention saves and returns the same tensors as a GPU's
(the output and a logsumexp a row), and there autocast can be traced where no GPU is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DynamicCache, masking_utils

from pad_fast.linear_logprob import memory_budget as memory_budget_module
from pad_fast.models import output_head, prefix_attention
from pad_fast.models.layout import Group
from pad_fast.models.layout_trial import known_problem
from pad_fast.models.packing import PackedRows, pack, split
from pad_fast.models.rewards import attach_rewards_forward, packed_rewards
from pad_fast.plan.meter import Footprint, Meter


@contextmanager
def fake() -> Iterator[Meter]:
    """Everything made inside is fake and counted."""
    # transformers looks at the values of positions to find rows that hold several sequences, and where it cannot takes them for such
    unpacked = mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None)
    with FakeTensorMode(), unpacked, Meter() as meter:
        yield meter


def fake_model(config: Any, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
    """The model without its weights; called inside of :func:`fake`."""
    if attn_implementation not in (None, "eager"):
        attn_implementation = (
            "sdpa"  # fused attentions hold the same tensors, and some run on a GPU only
        )
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    output_head._disagreements[model] = None  # there is nothing to compare its logits with
    return model


def count_parameters(config: Any) -> int:
    """Weights of a causal language model, tied ones once."""
    with torch.device("meta"):
        return sum(
            weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters()
        )


@dataclass(frozen=True)
class Training:
    """How a model is trained: its weights' `dtype`, `optimizer_bytes` a weight, at most `max_tokens` in one forward and backward."""

    dtype: torch.dtype = torch.float32
    bf16: bool = False  # autocast
    checkpointing: bool = True
    accumulating: bool = False  # gradients of an earlier micro-batch are there
    optimizer_bytes: float = 8.0
    max_tokens: int | None = None
    memory_budget: memory_budget_module.MemoryBudget = "auto"  # of the output head


@dataclass(frozen=True)
class Reading:
    """How rows are read: `shared` prompts or a padded row for each response, by the `attention` that transformers is told of. On a
    `gpu`, shared rows go through FlexAttention."""

    shared: bool = False
    gpu: bool = False
    attention: str | None = None
    memory: int | None = (
        None  # of the device that is planned for, of which the output head keeps a part; this one's if not given
    )

    @property
    def layout(self) -> str:
        return "shared" if self.shared else "padded"


Shape = tuple[int, int, int]  # tokens of a prompt, tokens of each response, responses


def training_step(
    config: Any, prompts: int, shape: Shape, how: Training, reading: Reading = Reading()
) -> Footprint:
    """Forward and backward of `prompts` prompts of one shape, in as many slices as `how` asks for."""
    with fake() as meter, _device(reading):
        model = fake_model(config, how.dtype, reading.attention)
        if how.checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        attach_rewards_forward(model.train(), memory_budget=how.memory_budget)
        count = sum(weight.numel() for weight in model.parameters())
        state = torch.empty(round(how.optimizer_bytes * count), dtype=torch.uint8)
        slices = _slices(prompts, shape, how.max_tokens, reading)
        for weight in model.parameters() if how.accumulating or len(slices) > 1 else ():
            weight.grad = torch.empty_like(weight)

        def rewards_of(part: Sequence[Group]) -> Tensor:
            packed = _packed(part, meter, reading)
            with torch.autocast("cpu", torch.bfloat16, enabled=how.bf16):
                return model(**packed._asdict(), num_responses=prompts * shape[2])

        meter.restart()
        flops = 0
        for part, times in _alike(slices):
            before = meter.flops
            if len(slices) > 1:
                with torch.no_grad():
                    rewards_of(part)
            rewards_of(part).sum().backward()
            flops += times * (meter.flops - before)
        del state
        return replace(meter.footprint(), flops=flops)


def scoring_batch(
    config: Any,
    prompts: int,
    shape: Shape,
    dtype: torch.dtype,
    max_tokens: int,
    reading: Reading = Reading(),
) -> Footprint:
    """Rewards of the responses to `prompts` prompts of one shape, as score_responses takes them."""
    with fake() as meter, _device(reading), torch.no_grad():
        model = fake_model(config, dtype, reading.attention).eval()
        meter.restart()
        flops = 0
        for part, times in _alike(_slices(prompts, shape, max_tokens, reading)):
            before = meter.flops
            packed_rewards(model, _packed(part, meter, reading), prompts * shape[2])
            flops += times * (meter.flops - before)
        return replace(meter.footprint(), flops=flops)


def sharing_problem(config: Any, attn_implementation: str | None) -> str | None:
    """Why prompts cannot be shared, as far as it is known without weights; None where it is not."""
    if attn_implementation not in (None, *prefix_attention.REPLACED):
        return f"its attention is {attn_implementation}"
    with fake():
        return known_problem(fake_model(config, torch.float32, attn_implementation), "shared")


def _slices(
    prompts: int, shape: Shape, max_tokens: int | None, reading: Reading
) -> list[list[Group]]:
    prompt, response, n = shape
    groups = [
        Group([0] * prompt, [[0] * response] * n, range(p * n, (p + 1) * n)) for p in range(prompts)
    ]
    return split(groups, max_tokens, reading.layout)


def _alike(slices: Sequence[Sequence[Group]]) -> list[tuple[Sequence[Group], int]]:
    """A slice of each shape, and how many have it."""
    by_shape: dict[Any, list[Sequence[Group]]] = {}
    for part in slices:
        by_shape.setdefault(
            tuple((len(group.prompt), len(group.responses)) for group in part), []
        ).append(part)
    return [(parts[0], len(parts)) for parts in by_shape.values()]


def _packed(groups: Sequence[Group], meter: Meter, reading: Reading) -> PackedRows:
    packed = pack(groups, reading.layout, bucketed=reading.gpu)
    if packed.layout is not None:
        seen = sum(
            s.prompt**2 + sum(y * (s.prompt + y) for y in s.responses)
            for s in packed.layout.whole()
        )
        meter.seen[packed.layout.length] = seen / packed.layout.length**2
    return packed


@contextmanager
def _device(reading: Reading) -> Iterator[None]:
    """What the code would find on the device that is planned for."""
    with _attending(reading):
        if reading.memory is None:
            yield
        else:
            with mock.patch.object(
                memory_budget_module,
                "auto_bytes",
                return_value=reading.memory // memory_budget_module.SHARE,
            ):
                yield


def _attending(reading: Reading) -> AbstractContextManager:
    """FlexAttention is opaque and is stood in for by fused attention, which holds the same tensors; the flops of that are scaled to the
    pairs that see each other."""
    return (
        mock.patch.object(prefix_attention, "prefix_attention", _fused)
        if reading.gpu
        else nullcontext()
    )


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Any,
    *,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    return nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, **options
    ).transpose(1, 2)


def sampling_batch(
    config: Any,
    responses: int,
    prompt: int,
    response: int,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> tuple[Footprint, Footprint]:
    """The prompt's pass and the last token's, whose caches are longest, as generate() takes them."""
    with fake() as meter, torch.no_grad():
        model = fake_model(config, dtype, attn_implementation).eval()
        meter.restart()
        cache = _next_token(model, responses, prompt, 0, None)
        first = meter.footprint()
        shapes = [(layer.keys.shape, layer.values.shape) for layer in cache.layers]
        del cache
        longer = DynamicCache(config=config)
        for index, shape in enumerate(shapes):
            keys, values = (
                torch.empty(*part[:2], prompt + response - 1, part[3], dtype=dtype)
                for part in shape
            )
            longer.update(keys, values, index)
            layer: Any = longer.layers[index]
            layer.keys, layer.values = (
                layer.keys.clone(),
                layer.values.clone(),
            )  # a sliding window's are a part of what was given
            del keys, values
        meter.restart()
        _next_token(model, responses, 1, prompt + response - 1, longer)
        return first, meter.footprint()


def _next_token(model: Any, responses: int, new: int, seen: int, cache: Any) -> Any:
    """Logits of the last of `new` tokens, and the probabilities that are drawn from."""
    ids, mask = (
        torch.zeros(responses, new, dtype=torch.long),
        torch.ones(responses, seen + new, dtype=torch.long),
    )
    cache = DynamicCache(config=model.config) if cache is None else cache
    name = (
        "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    )  # transformers 5.23 renamed it
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **{name: cache}
    ).logits
    scores = logits[:, -1].to(torch.float32, copy=True)
    tempered = scores / 0.5
    probs = tempered.softmax(-1)
    (probs / torch.empty_like(probs).exponential_()).argmax(-1)  # what multinomial does inside
    return cache
