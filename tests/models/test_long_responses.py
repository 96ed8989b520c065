"""64 responses of 4,096 tokens to a prompt train in the memory that one of them takes."""

from __future__ import annotations

import pytest
import torch
import transformers

from benchmarks.memory import allocated_peak
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.steps import GroupShape, Reading, TrainingOptions
from pad_fast.models.layout import PromptGroup
from pad_fast.models.output_head import head_problem
from pad_fast.models.packing import pack, split
from pad_fast.models.rewards import packed_rewards
from pad_fast.training.micro_batches import micro_batched_backward

N, PROMPT, RESPONSE, VOCABULARY = 64, 64, 4096, 200
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_model(**changes) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, **changes))
    head_problem(model)
    return model


def make_group(n: int, response: int) -> PromptGroup:
    generator = torch.Generator().manual_seed(1)
    prompt, *responses = (
        torch.randint(VOCABULARY, (size,), generator=generator).tolist()
        for size in (PROMPT, *[response] * n)
    )
    return PromptGroup(prompt, responses, list(range(n)))


def loss_of(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards * torch.linspace(-1, 1.3, len(rewards), dtype=rewards.dtype)).sum().tanh()


def backward(model, group: PromptGroup, limit: int | None) -> torch.Tensor:
    """Compute the rewards and a backward; with a ``limit`` each response is a slice."""
    n = len(group.numbers)
    slices = [pack(part, "shared") for part in split([group], limit, "shared")]
    assert len(slices) == (1 if limit is None else n)
    if limit is not None:
        return micro_batched_backward(lambda part: packed_rewards(model, part, n), slices, loss_of)[
            1
        ]
    rewards = packed_rewards(model, slices[0], n)
    loss_of(rewards).backward()
    return rewards.detach()


@pytest.mark.slow  # half a billion pairs of tokens, two forwards and a backward
def test_64_responses_of_4096_tokens_train_where_one_fits():
    model = make_model()
    peaks = {}
    for n in (1, N):
        group = make_group(n, RESPONSE)
        model.zero_grad()
        peaks[n], _ = allocated_peak(
            lambda group=group: (backward(model, group, PROMPT + RESPONSE),), torch.device("cpu")
        )
    # Slices after the first find the gradients of those before.
    gradients = sum(weight.nbytes for weight in model.parameters())
    assert peaks[N] < 1.05 * (peaks[1] + gradients)
    how, shape = (
        TrainingOptions(checkpointing=False, optimizer_bytes=0),
        GroupShape(PROMPT, RESPONSE, N),
    )
    for reading in (Reading(shared=True, gpu=True), Reading()):  # neither has masks, as a GPU
        whole = footprint.training_step(model.config, 1, shape, how, reading)
        assert peaks[N] < (whole.peak - whole.start) / 40


def test_64_responses_one_by_one_have_the_gradient_of_all_together():
    model, group, found = make_model().double(), make_group(N, 40), []
    for limit in (None, PROMPT + 40):
        model.zero_grad()
        rewards = backward(model, group, limit)
        found.append((rewards, *(weight.grad.clone() for weight in model.parameters())))
    for sliced, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-6, atol=1e-8)


def test_only_the_row_that_is_worked_on_keeps_its_masks():
    """The masks of 64 slices would take many times the memory of one slice."""
    model, group = make_model(), make_group(4, 40)
    slices = [pack(part, "shared") for part in split([group], 2 * (PROMPT + 40), "shared")]
    assert len(slices) == 2
    micro_batched_backward(lambda part: packed_rewards(model, part, 4), slices, loss_of)
    assert [len(part.layout.cache) for part in slices] == [0, 1]
