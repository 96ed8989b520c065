"""The plan gives a number or a sentence for every kind of model."""

from __future__ import annotations

import pytest
import torch
import transformers
import worlds
from commands import failing
from wrappers import wrapper

from pad_fast import cli
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.steps import GroupShape
from pad_fast.models.auto import build_model
from pad_fast.models.layout_trial import known_problem
from pad_fast.models.scoring import score_responses

SIZE = len(worlds.character_tokenizer())
ENDS = {"eos_token_id": 1, "bos_token_id": 1}
LLAMA = {
    **ENDS,
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS = {
    "experts": lambda: transformers.MixtralConfig(**LLAMA, num_local_experts=4),
    "states": lambda: transformers.MambaConfig(
        vocab_size=SIZE, hidden_size=16, num_hidden_layers=1, state_size=4, **ENDS
    ),
    "alibi": lambda: transformers.MptConfig(
        vocab_size=SIZE, d_model=16, n_layers=1, n_heads=2, max_seq_len=256, eos_token_id=1
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=SIZE, hidden_size=16, n_layer=1, n_head=2, **ENDS
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=SIZE,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256,
        **ENDS,
    ),
    "wrapper": lambda: wrapper("gemma3", vocabulary=SIZE, window=256),
    # Its cache has no attention whose length it could ask for.
    "recurrent": lambda: transformers.RecurrentGemmaConfig(**LLAMA, lru_width=16),
}


def planned(world, folder, name):
    torch.manual_seed(0)
    model = build_model(CONFIGS[name]())
    model.generation_config = transformers.GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder / "model")
    worlds.character_tokenizer().save_pretrained(folder / "model")
    small = {"score_batch_tokens": 64, "sample_batch_tokens": 64, "max_new_tokens": 4}
    return worlds.changed_config(
        world, folder, student="./model", teacher="./model", mcq_style="none", **small
    )


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "recurrent"])
def test_a_number(world, tmp_path, capsys, name):
    assert cli.main(["plan", str(planned(world, tmp_path, name)), "--trials", "false"]) == 0
    said = capsys.readouterr()
    assert "GiB" in said.out
    assert "failed while attempting" not in said.err


def test_a_sentence(world, tmp_path, capsys):
    said = failing(capsys, "plan", planned(world, tmp_path, "recurrent"), "--trials", "false")
    assert f"student: a step of {tmp_path / 'model'} (RecurrentGemmaConfig) cannot be " in said
    assert "`pad-fast doctor` tries both models on a few prompts" in said


def test_products_with_experts_count():
    shape, dtype = GroupShape(8, 4, 2), torch.float32
    found = [
        footprint.scoring_batch(
            transformers.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=each),
            1,
            shape,
            dtype,
            64,
        ).flops
        for each in (1, 2, 3)
    ]
    rows = 2 * 11  # two responses, each with its prompt and without its last token
    assert found[2] - found[1] == found[1] - found[0] == 2 * rows * 3 * 16 * 16


def test_a_model_whose_mask_ends_at_its_window_packs_no_rows():
    model = build_model(CONFIGS["gpt_neo"]()).eval()
    for layout in ("shared", "packed"):
        assert "masks by the place in a row" in (known_problem(model, layout) or "")
    prompts = [[3] * 100] * 3
    found = score_responses(model, prompts, [[[4, 5], [6]]] * 3, max_tokens_per_batch=1000)
    assert found[0] == pytest.approx(found[2])


def test_a_reward_model_is_no_language_model(tmp_path, capsys):
    """DeBERTa has no causal class, and its batches are padded rows."""
    sizes = {**LLAMA, "max_position_embeddings": 256, "num_labels": 1}
    del sizes["num_key_value_heads"]
    config = transformers.DebertaV2Config(**sizes)
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    worlds.character_tokenizer().save_pretrained(tmp_path / "reward")
    settings = {"teacher": None, "reward_model": str(tmp_path / "reward"), "mcq_style": "none"}
    config = worlds.write_config(tmp_path, **settings)
    assert cli.main(["plan", str(config)]) == 0
    assert "load reward_model" in capsys.readouterr().out
