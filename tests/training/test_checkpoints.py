"""Checkpoints are ordinary, resuming changes nothing, and the model card describes the training."""

import json
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

from pad_fast.training.resumed_log import KEY, ResumableLog
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
        "logging_steps": 3,  # a checkpoint cuts the line of step 6 in two
        **options,
    }

    def make(folder):
        return PADTrainer(make_model(attention_dropout=0.1), make_args(folder, **options), rows)

    whole = make(tmp_path / "whole")
    wanted = whole.train()
    assert whole.state.global_step == 9
    for step in (4, 6, 8):  # one of them resumes what was resumed
        resumed = make(tmp_path / "whole")
        found = resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same(parameters(resumed.model), parameters(whole.model), rtol=0, atol=0)
        assert found.training_loss == pytest.approx(wanted.training_loss, rel=1e-12)
        for line, same in zip(resumed.state.log_history, whole.state.log_history, strict=True):
            assert known(line) == pytest.approx(known(same), rel=1e-12)


def known(line):
    """What a line of the log says about the training, and not about the machine."""
    of_the_machine = ("perf/", "train_runtime", "train_samples", "train_steps", "total_flos")
    return {name: value for name, value in line.items() if not name.startswith(of_the_machine)}


@pytest.mark.parametrize("forgets", [False, True])
def test_any_trainer_keeps_its_log(forgets, tmp_path):
    """A checkpoint of an earlier release holds no sums, and its lines are Trainer's."""

    class Log(ResumableLog):
        def compute_loss(self, model, inputs, **_):
            return model(inputs["input_ids"], labels=inputs["input_ids"]).loss

    rows = [{"input_ids": torch.tensor([3, n, 5])} for n in range(1, 13)]
    options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    args = make_args(tmp_path, per_device_train_batch_size=2, **options)
    whole = Log(make_model(), args, train_dataset=rows)
    wanted = whole.train().training_loss
    path = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert state["stateful_callbacks"].keys() >= {KEY}
    if forgets:
        del state["stateful_callbacks"][KEY]
        path.write_text(json.dumps(state))
    resumed = Log(make_model(), args, train_dataset=rows)
    found = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")).training_loss
    same = [
        known(a) == pytest.approx(known(b), rel=1e-6)
        for a, b in zip(resumed.state.log_history, whole.state.log_history, strict=True)
    ]
    assert same == ([True, False, False] if forgets else [True] * 3)
    assert (found == pytest.approx(wanted, rel=1e-6)) is not forgets


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
