"""Which models a run's batches have to fit, and what quantised weights count."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, LlamaConfig
from worlds import run_config

from pad_fast.footprint.classifiers import classified_batch
from pad_fast.footprint.packed_weights import saved_bytes
from pad_fast.pipeline import batch_sizes, chosen_batches
from pad_fast.pipeline.batch_sizes import LEAST, MOST, SAMPLED, SCORED, BatchTokens

GIB = 2**30
SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "dtype": "bfloat16",
}
PACKED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
}


def llama(**changes) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **changes})


def checkpoint(config, role: str = "teacher", path: str = "org/model"):
    return SimpleNamespace(config=config, role=role, path=path)


def roles(world, name: str, **changes) -> list[str]:
    """The roles of the models that a run's process samples or scores with."""
    config = run_config(world, **changes)
    teacher, student = checkpoint(llama()), checkpoint(llama(), "student")
    judge = teacher if config.teacher else checkpoint(llama(), "reward_model")
    run = SimpleNamespace(config=config, student=lambda round: student, teacher=teacher)
    run.judge = judge if config.has_judge else None
    return [model.role for model in chosen_batches.models_of(run, name)]


def test_batches_of_scoring_fit_the_judge(world):
    assert roles(world, SCORED) == ["student", "teacher"]
    reward_model = {"teacher": None, "reward_model": "org/reward", "mcq_style": "none"}
    assert roles(world, SCORED, **reward_model) == ["student", "reward_model"]
    served = {"student_server": ["http://localhost:1"]}
    assert roles(world, SCORED, **reward_model, **served) == ["reward_model"]


def test_batches_of_sampling_fit_those_that_sample(world):
    idle = {"heldout_size": 0, "teacher_response": "none", "baseline": "none"}
    assert roles(world, SAMPLED) == ["student", "teacher"]  # it is evaluated
    assert roles(world, SAMPLED, **idle) == ["student"]
    assert roles(world, SAMPLED, **{**idle, "teacher_response": "greedy"})[-1] == "teacher"
    assert roles(world, SAMPLED, **{**idle, "baseline": "seqkd"})[-1] == "teacher"


def test_a_reward_models_batch_is_counted_as_it_is_read(world):
    """Its peak grows with the batch; an encoder cannot be built as a language model."""
    encoder = {name: value for name, value in SIZES.items() if name != "dtype"}
    for config in (llama(num_labels=1), BertConfig(**encoder, num_labels=1)):
        pad, peaks = config.pad_token_id, []
        for rows in (1, 16):
            peaks.append(classified_batch(config, rows, 256, torch.bfloat16).peak)
        assert peaks[1] - peaks[0] > 15 * 256 * 2 * SIZES["intermediate_size"]
        assert config.pad_token_id == pad
    config, room = run_config(world, max_new_tokens=128), 2 * (peaks[1] + GIB)
    model = checkpoint(config=llama(num_labels=1), role="reward_model")
    found = batch_sizes.tokens_that_fit(SCORED, config, [model], int(room / 2), gpu=True)
    assert LEAST < found < MOST[True][SCORED]


@pytest.mark.parametrize("name", PACKED)
def test_quantised_weights_count_as_they_are_stored(world, name, tmp_path):
    whole = checkpoint(llama())
    packed = checkpoint(llama(quantization_config=PACKED[name]))
    largest = 2 * SIZES["hidden_size"] * SIZES["intermediate_size"]
    full = batch_sizes.held_bytes(whole, torch.bfloat16)
    embeddings = 2 * 2 * SIZES["vocab_size"] * SIZES["hidden_size"]
    held = batch_sizes.held_bytes(packed, torch.bfloat16)
    assert held - embeddings - largest == pytest.approx(4.5 / 16 * (full - embeddings), rel=0.01)
    stored = tmp_path / "model.safetensors"
    with stored.open("wb") as stream:
        stream.truncate(GIB // 4)
    packed.path = str(tmp_path)
    assert batch_sizes.held_bytes(packed, torch.bfloat16) == GIB // 4 + largest


def test_a_teacher_of_4_bits_gets_the_room_that_it_leaves(world, monkeypatch):
    config = run_config(world, max_new_tokens=128)
    whole, packed = (llama(hidden_size=4096, num_attention_heads=32) for _ in range(2))
    packed.quantization_config = PACKED["gptq"]
    memory = int(batch_sizes.held_bytes(checkpoint(whole), torch.bfloat16) / 0.8)
    counted = []
    monkeypatch.setattr(batch_sizes, "scoring_batch", _counting(counted))
    found = [
        batch_sizes.tokens_that_fit(SCORED, config, [checkpoint(each)], memory, gpu=True)
        for each in (whole, packed)
    ]
    assert found[0] == LEAST
    assert found[1] > LEAST
    assert counted  # and nothing was counted for the one that does not fit in any batch
    assert all(each.quantization_config for each in counted)


def _counting(counted):
    def count(config, *arguments):
        counted.append(config)
        return real(config, *arguments)

    real = batch_sizes.scoring_batch
    return count


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "compressed-tensors"])
def test_weights_that_may_be_unpacked_count_in_full(method):
    config = llama(quantization_config={"quant_method": method, "bits": 4})
    assert saved_bytes("org/model", config, torch.bfloat16) == 0


def test_a_served_model_in_this_process_gets_batches_of_its_own(world):
    limits, model = BatchTokens(64, 4096), checkpoint(llama(dtype="float32"))
    config = run_config(world, max_new_tokens=128)
    found = batch_sizes.with_fitting_scores(limits, config, model, 2 * GIB, gpu=False)
    assert found == replace(limits, score=LEAST)
    given = run_config(world, max_new_tokens=128, score_batch_tokens=512)
    assert batch_sizes.with_fitting_scores(limits, given, model, 2 * GIB, gpu=False) == limits
