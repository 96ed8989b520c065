"""Peak memory and arithmetic of a step before any weights exist, from the step on fake tensors.

The code that trains, scores and samples runs on tensors of the true shapes that hold no values, and
:class:`~pad_fast.footprint.meter.Meter` counts. Only operations that tracing cannot see into
need a formula: the output head (:func:`pad_fast.linear_logprob.memory_budget.cpu_workspace`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pad_fast.device import planning_for
from pad_fast.footprint.fakes import fake, fake_model
from pad_fast.footprint.meter import Footprint, Meter
from pad_fast.linear_logprob.memory_budget import MemoryBudget, frozen_head_bytes
from pad_fast.models.attention_inputs import AttentionInputs
from pad_fast.models.auto import recompute_activations
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.layout import PromptGroup
from pad_fast.models.neighbour_effects import sides_of
from pad_fast.models.packing import PackedRows, pack, split
from pad_fast.models.rewards import attach_rewards_forward, packed_rewards

ADAM_MOMENTS = 2  # each as large as the weights


@dataclass(frozen=True)
class TrainingOptions:
    """How a training step is taken.

    Attributes:
        dtype: of the weights.
        bf16: whether the forward pass is under bfloat16 autocast.
        checkpointing: whether activations are checkpointed.
        accumulating: whether an earlier micro-batch has left gradients.
        optimizer_bytes: bytes of the optimizer's state for each trained weight; None for AdamW's,
            two moments in the weight's data type.
        max_tokens: the most tokens of one forward and backward; None for no limit.
        memory_budget: bytes of the output head, or "auto".
        prepared: makes of the whole model what is trained, such as one with an adapter.
        buckets: where DDP averages gradients, how those of several micro-batches lie in its
            buckets: "in" them or "beside" them; None without DDP.
    """

    dtype: torch.dtype = torch.float32
    bf16: bool = False
    checkpointing: bool = True
    accumulating: bool = False
    optimizer_bytes: float | None = None
    max_tokens: int | None = None
    memory_budget: MemoryBudget = "auto"
    prepared: Callable[[Any], Any] | None = None
    buckets: str | None = None

    def model(self, config: Any, attention: str | None = None) -> Any:
        """What is trained, without values. Call it inside :func:`fake`."""
        whole = fake_model(config, self.dtype, attention)
        return (whole if self.prepared is None else self.prepared(whole)).train()


@dataclass(frozen=True)
class Reading:
    """How a model reads rows, and on what device.

    Attributes:
        shared: whether responses share their prompt; otherwise each has a padded row.
        gpu: whether the device that is planned for is a GPU.
        attention: the name that transformers is given for the attention; None for its choice.
        memory: bytes of the device that is planned for, a part of which the output head's "auto"
            budget takes; None for this machine's.
    """

    shared: bool = False
    gpu: bool = False
    attention: str | None = None
    memory: int | None = None

    @property
    def layout(self) -> str:
        return "shared" if self.shared else "padded"


class GroupShape(NamedTuple):
    """The size of a prompt with its responses."""

    prompt: int  # tokens
    response: int  # tokens of each response
    responses: int

    def groups(self, prompts: int) -> list[PromptGroup]:
        """Groups of this shape, for so many prompts. Fake tensors make the token ids irrelevant."""
        n = self.responses
        return [
            PromptGroup([0] * self.prompt, [[0] * self.response] * n, range(p * n, (p + 1) * n))
            for p in range(prompts)
        ]


def training_step(
    config: Any,
    prompts: int,
    shape: GroupShape,
    options: TrainingOptions,
    reading: Reading = Reading(),
) -> Footprint:
    """Forward and backward of so many prompts of one shape, in slices of ``max_tokens``."""
    with fake() as meter, planning_for(reading.memory):
        if reading.gpu:
            meter.gradient_bytes = frozen_head_bytes(options.memory_budget)
        model = options.model(config, reading.attention)
        recompute_activations(model, options.checkpointing)
        attach_rewards_forward(model, memory_budget=options.memory_budget)
        sides = sides_of(causal_lm(model))
        slices = split(shape.groups(prompts), options.max_tokens, reading.layout, sides)
        several = options.accumulating or len(slices) > 1
        state = _between_steps(model, options, several)

        def rewards_of(part: Sequence[PromptGroup]) -> Tensor:
            packed = _packed(part, meter, reading)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                return model(**packed._asdict(), num_responses=prompts * shape.responses)

        def step(part: Sequence[PromptGroup]) -> None:
            if len(slices) > 1:  # the forward that gives the loss all rewards
                with torch.no_grad():
                    rewards_of(part)
            rewards_of(part).sum().backward()

        found = _of_slices(meter, slices, step)
        del state
        return _with_new_buckets(found, model, options, several)


class Held(NamedTuple):
    """Bytes of weights, gradients and the optimizer's state, all but a training's activations."""

    weights: int
    gradients: int
    state: int


def held_by_training(config: Any, options: TrainingOptions) -> Held:
    """What a training of whole weights, or of an adapter beside them, holds."""
    with fake():
        return _held(options.model(config), options)


def _held(model: Any, options: TrainingOptions) -> Held:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    weights, gradients = _bytes(model.parameters()), _bytes(trained)
    each, count = options.optimizer_bytes, sum(weight.numel() for weight in trained)
    state = ADAM_MOMENTS * gradients if each is None else round(each * count)
    return Held(weights + _bytes(model.buffers()), gradients, state)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _between_steps(model: Any, options: TrainingOptions, several: bool) -> list[Tensor]:
    """What is held before a forward: the optimizer's state, and gradients where they are.

    Args:
        model: whose trained weights are given gradients that are held.
        options: of the training.
        several: whether several backwards add gradients up.
    """
    held = _held(model, options)
    if several or options.buckets:
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    beside = held.gradients if several and options.buckets == "beside" else 0
    return [torch.empty(size, dtype=torch.uint8) for size in (held.state, beside)]


def _with_new_buckets(
    found: Footprint, model: Any, options: TrainingOptions, several: bool
) -> Footprint:
    """DDP cuts its buckets anew before its second forward, and then holds new and old ones."""
    if not (several and options.buckets):
        return found
    return replace(found, peak=max(found.peak, found.start + _held(model, options).gradients))


def answers_step(config: Any, rows: int, tokens: int, options: TrainingOptions) -> Footprint:
    """Forward and backward of so many sequences with transformers' own loss, whole logits and all.

    Args:
        config: the model's.
        rows: sequences of a micro-batch.
        tokens: of each.
        options: of the training.
    """
    with fake() as meter:
        model = options.model(config)
        recompute_activations(model, options.checkpointing)
        state = _between_steps(model, options, options.accumulating)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        meter.restart()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                labels=ids,
                num_items_in_batch=torch.ones(()),
            ).loss
        loss.backward()
        del state
        return _with_new_buckets(meter.footprint(), model, options, options.accumulating)


def scoring_batch(
    config: Any,
    prompts: int,
    shape: GroupShape,
    dtype: torch.dtype,
    max_tokens: int,
    reading: Reading = Reading(),
) -> Footprint:
    """Rewards of the responses to so many prompts of one shape, as score_responses takes them."""
    with fake() as meter, planning_for(reading.memory), torch.no_grad():
        model = fake_model(config, dtype, reading.attention).eval()
        slices = split(shape.groups(prompts), max_tokens, reading.layout, sides_of(model))

        def step(part: Sequence[PromptGroup]) -> None:
            packed_rewards(model, _packed(part, meter, reading), prompts * shape.responses)

        return _of_slices(meter, slices, step)


def _of_slices(
    meter: Meter,
    slices: Sequence[Sequence[PromptGroup]],
    step: Callable[[Sequence[PromptGroup]], None],
) -> Footprint:
    """The footprint of a step on each slice, of which those of one shape are counted once."""
    meter.restart()
    flops, operations = 0, Counter[tuple[int, int]]()
    for part, times in _distinct(slices):
        before, known = meter.flops, Counter(meter.operations)
        step(part)
        flops += times * (meter.flops - before)
        for kind, count in meter.operations.items():
            operations[kind] += times * (count - known[kind])
    return replace(meter.footprint(), flops=flops, operations=dict(operations))


def _distinct(
    slices: Sequence[Sequence[PromptGroup]],
) -> list[tuple[Sequence[PromptGroup], int]]:
    """One slice of each shape, and how many slices have that shape."""
    by_shape: dict[Any, list[Sequence[PromptGroup]]] = {}
    for part in slices:
        shape = tuple((len(group.prompt), len(group.responses)) for group in part)
        by_shape.setdefault(shape, []).append(part)
    return [(parts[0], len(parts)) for parts in by_shape.values()]


def _packed(groups: Sequence[PromptGroup], meter: Meter, reading: Reading) -> PackedRows:
    packed = pack(groups, reading.layout, bucketed=reading.gpu)
    if packed.layout is not None:
        visible = sum(
            s.prompt**2 + sum(y * (s.prompt + y) for y in s.responses)
            for s in packed.layout.segments_and_padding()
        )
        meter.visible[packed.layout.length] = visible / packed.layout.length**2
        if reading.gpu:
            packed.layout.attention = _stand_in_for_flex
    return packed


def _stand_in_for_flex(inputs: AttentionInputs) -> Tensor:
    """Fused attention in place of FlexAttention, which cannot be traced.

    It saves the same tensors. The meter scales its flops to the pairs of tokens that are visible.
    """
    return nn.functional.scaled_dot_product_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        is_causal=True,
        scale=inputs.scale,
        enable_gqa=inputs.group_size > 1,
    ).transpose(1, 2)


def sampling_batch(
    config: Any,
    shape: GroupShape,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> tuple[Footprint, Footprint]:
    """The pass over the prompts and the last token's, whose caches are longest, in generate().

    The shape's ``responses`` are all those of the batch, each with a row of its own.
    """
    prompt, response, rows = shape
    with fake() as meter, torch.no_grad():
        model = fake_model(config, dtype, attn_implementation).eval()
        meter.restart()
        cache = _next_token(model, rows, prompt, 0, None)
        first = meter.footprint()
        longest = _full_cache(config, cache, prompt + response - 1, dtype)
        del cache
        meter.restart()
        _next_token(model, rows, 1, prompt + response - 1, longest)
        return first, meter.footprint()


def _full_cache(config: Any, short: Any, length: int, dtype: torch.dtype) -> DynamicCache:
    """A cache of so many tokens, like a shorter one, which is emptied.

    A state-space layer keeps its state, whose size does not grow.
    """
    cache = DynamicCache(config=config)
    layers, short.layers = list(short.layers), []
    for index in range(len(layers)):
        before, layers[index] = layers[index], None
        keys, values = (getattr(before, name, None) for name in ("keys", "values"))
        if keys is None or values is None:
            cache.layers[index:] = [before, *cache.layers[index + 1 :]]
            continue
        sizes = keys.shape, values.shape
        del before, keys, values
        keys, values = (torch.empty(*part[:2], length, part[3], dtype=dtype) for part in sizes)
        cache.update(keys, values, index)
        layer: Any = cache.layers[index]
        # A sliding window's keys are a view of the given ones; the clone has its own size.
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        del keys, values
    return cache


def _next_token(model: Any, rows: int, new: int, seen: int, cache: Any) -> Any:
    """Draw a token after ``new`` tokens that follow ``seen`` tokens in the cache; the new cache."""
    ids = torch.zeros(rows, new, dtype=torch.long)
    mask = torch.ones(rows, seen + new, dtype=torch.long)
    cache = DynamicCache(config=model.config) if cache is None else cache
    # transformers 5.23 renamed the argument
    accepted = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **{name: cache}
    ).logits
    scores = logits[:, -1].to(torch.float32, copy=True)
    tempered = scores / 0.5
    probs = tempered.softmax(-1)
    (probs / torch.empty_like(probs).exponential_()).argmax(-1)  # as torch.multinomial does
    return cache
