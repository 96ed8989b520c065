"""The planner's peaks of trainings of an adapter against measured ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from planning import CPU, N, group_row, near, setting, two_steps
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.memory import allocated_peak
from pad_fast import PADTrainer
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.fakes import fake, with_fake_part
from pad_fast.footprint.four_bits import pack_in_4_bits
from pad_fast.footprint.steps import GroupShape, Held, Reading, TrainingOptions
from pad_fast.pipeline.train.adapter import with_adapter

# PEFT's own use of a name that transformers will drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LORA = SimpleNamespace(
    lora_target_modules=["all-linear"], lora_r=16, lora_alpha=32, lora_dropout=0.0
)
LARGER = {"tie_word_embeddings": True, "hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def adapted(model):
    return with_fake_part(model, lambda whole: with_adapter(whole, LORA, low_cpu_mem_usage=True))


def packed(model):
    pack_in_4_bits(model)
    return adapted(model)


@pytest.mark.parametrize(
    ("name", "dtype", "bf16", "checkpointing", "micro", "responses"),
    [
        ("llama-long", torch.float32, False, False, 1, 1),
        ("llama-long", torch.float32, True, True, 1, 1),
        ("llama-long", torch.bfloat16, True, False, 2, 1),
        ("llama-vocabulary", torch.float32, False, True, 2, 1),
        ("gemma2-vocabulary", torch.float32, False, False, 1, 2),  # two chunks of the head
    ],
)
def test_peak_of_the_trainer(name, dtype, bf16, checkpointing, micro, responses, tmp_path):
    """From the trainer's creation to the second step, beside the weights."""
    config, prompt, response = setting(name, **LARGER)
    response *= responses
    row = group_row(prompt, response)
    args = two_steps(tmp_path, checkpointing, micro, bf16=bf16, learning_rate=1e-5)
    model = with_adapter(AutoModelForCausalLM.from_config(config, dtype=dtype), LORA)

    def train():
        PADTrainer(model, args, [row] * 4 * micro).train()
        return ()

    measured, _ = allocated_peak(train, CPU)
    how = TrainingOptions(
        dtype, bf16, checkpointing=checkpointing, accumulating=micro > 1, prepared=adapted
    )
    found = footprint.training_step(config, 2, GroupShape(prompt, response, N), how)
    weights = [*model.parameters(), *model.buffers()]
    near(found.peak, measured + sum(weight.nbytes for weight in weights))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.dtype == torch.float32 for weight in trained)  # whatever the others have
    assert footprint.held_by_training(config, how) == Held(
        sum(weight.nbytes for weight in weights),
        sum(weight.nbytes for weight in trained),
        sum(2 * weight.nbytes for weight in trained),
    )


def test_weights_in_4_bits():
    """They take 4 bits and the scales, and are whole only while a layer is used."""
    config, prompt, response = setting("llama-long", **LARGER, vocab_size=64)
    shape = GroupShape(prompt, response, N)
    how = TrainingOptions(bf16=True, checkpointing=False, prepared=adapted)
    four = TrainingOptions(bf16=True, checkpointing=False, prepared=packed)
    with fake():
        model = TrainingOptions().model(config)
        head = model.get_output_embeddings()
        linear = sum(
            layer.weight.numel()
            for layer in model.modules()
            if isinstance(layer, nn.Linear) and layer is not head
        )
    whole, small = (footprint.held_by_training(config, each) for each in (how, four))
    assert whole.weights - small.weights == linear * 4 - linear // 2 - linear // 64 * 4
    assert (small.gradients, small.state) == (whole.gradients, whole.state)
    peaks = [footprint.training_step(config, 1, shape, each) for each in (how, four)]
    saved = [found.peak - found.start for found in peaks]
    # Autocast's copies of frozen weights live until the backward; unpacked ones do not.
    assert saved[0] - saved[1] > linear
    assert peaks[0].start - peaks[1].start == whole.weights - small.weights


@pytest.mark.parametrize("buckets", ["in", "beside"])
def test_gradients_under_ddp(buckets):
    """Buckets are held from the start; what lies beside them is another set of gradients."""
    config, prompt, response = setting("llama-long")
    shape = GroupShape(prompt, response, N)

    def found(options):
        return footprint.training_step(config, 1, shape, options, Reading())

    held = footprint.held_by_training(config, TrainingOptions())
    several, one = TrainingOptions(accumulating=True), TrainingOptions()
    alone, ddp = found(several), found(TrainingOptions(accumulating=True, buckets=buckets))
    assert ddp.peak - alone.peak == (held.gradients if buckets == "beside" else 0)
    # A step of one backward has its gradients in the buckets, which are there before it.
    alone, ddp = found(one), found(TrainingOptions(buckets=buckets))
    assert ddp.start - alone.start == held.gradients


def test_new_buckets_under_ddp_are_there_beside_the_old_ones():
    """Where activations take less than one set of gradients."""
    config, *_ = setting("llama-vocabulary", hidden_size=512)
    options = TrainingOptions(accumulating=True, buckets="in", memory_budget=0)
    held = footprint.held_by_training(config, options)
    found = footprint.answers_step(config, 1, 4, TrainingOptions(accumulating=True))
    ddp = footprint.answers_step(config, 1, 4, options)
    assert ddp.peak == ddp.start + held.gradients > found.peak
