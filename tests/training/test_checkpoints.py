"""Checkpoints are ordinary, resuming changes nothing, and the model card describes the training."""

from functools import partial

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from students import (
    RENAMED,
    assert_same,
    make_args,
    make_model,
    make_rows,
    parameters,
    trained,
)

from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


def test_tied_weights_are_not_missing_from_a_checkpoint(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", warnings.append)
    model = partial(make_model, tie_word_embeddings=True)
    trained(tmp_path, make_rows(4), model=model(), save_strategy="steps", save_steps=1, max_steps=1)
    trainer = PADTrainer(model(), make_args(tmp_path, max_steps=2), make_rows(4))
    trainer.train(resume_from_checkpoint=True)
    assert not [text for text in warnings if "missing keys" in str(text)]
    assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "options", [{}, {"method": "sampled", "num_samples": 8, "disable_dropout": False}]
)
def test_resuming_changes_no_bit(options, tmp_path):
    """Data order, optimizer, dropout and sampled rankings go on from the middle of an epoch."""
    rows = make_rows(10)
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        **options,
    }

    def make(folder):
        return PADTrainer(make_model(attention_dropout=0.1), make_args(folder, **options), rows)

    whole = make(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 9
    halved = make(tmp_path / "whole")
    halved.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same(parameters(halved.model), parameters(whole.model), rtol=0, atol=0)


def test_checkpoints_are_ordinary(tokenizer, tmp_path):
    """A student given by name, trained on texts, is saved as transformers loads it."""
    make_model().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    rows = [
        {
            "prompt": [{"role": "user", "content": "one"}],
            "completions": ["two", "three"],
            "teacher_rewards": [0.0, 1.0],
        },
        {
            "prompt": [{"role": "user", "content": "two"}],
            "completions": ["one", "three"],
            "teacher_rewards": [1.0, 0.0],
        },
    ]
    trainer = PADTrainer(str(tmp_path / "student"), make_args(tmp_path / "out", max_steps=2), rows)
    trainer.train()
    trainer.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(parameters(again), parameters(trainer.model), rtol=0, atol=0)
    assert again.config.use_cache is True
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
        == tokenizer.chat_template
    )
    half = PADTrainer(
        str(tmp_path / "student"),
        make_args(tmp_path / "out", model_init_kwargs={"dtype": "bfloat16"}),
        rows,
    )
    assert half.model.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", ["ppd", "vpd"])
def test_the_model_card_describes_the_training(loss, tmp_path):
    trainer = trained(tmp_path / "mine", make_rows(4), loss=loss, max_steps=1, logging_steps=1)
    for _ in range(2):  # the second time over the first card
        trainer.create_model_card(tags="own", language="en")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = ModelCard(text)
    assert {"own", "pad", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.language == ["en"]
    assert "| beta | 2.0 |" in text
    assert ("| divergence | jsd |" in text) == (loss == "ppd")
    assert "| ranking/kendall_tau | " in text
    assert text.count("@inproceedings{gu-etal-2025-capturing") == 1
    assert "None" not in text
    assert "from scratch" not in text
