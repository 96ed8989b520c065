"""A reward model in place of a teacher: its rewards by hand, a whole run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import worlds
from commands import failing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from pad_fast import cli
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.reward_model import RewardModel, RewardScorer

PROMPT = [{"role": "user", "content": "2+2=?"}]


def save_reward_model(folder: Path, *, pad: int | None = None, labels: int = 1) -> Path:
    """A random Llama with a head of ``labels`` logits, and its padding."""
    tokenizer = worlds.character_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        num_labels=labels,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def row(texts: list[str]) -> dict:
    return {"prompt_id": "p", "prompt": PROMPT, "completions": texts}


def rewards(folder: Path, texts: list[str], cache: Path, max_tokens: int = 4096) -> list[float]:
    model = RewardModel("reward_model", str(folder))
    (found,) = RewardScorer(model, ScoreCache(cache), max_tokens, True).scored([row(texts)])
    return found["teacher_rewards"]


def alone(folder: Path, texts: list[str]) -> list[float]:
    """Each reward by transformers, from the whole conversation without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    found = []
    for text in texts:
        turns = "".join(f"<|{m['role']}|>{m['content']}" for m in PROMPT)
        ids = worlds.character_tokenizer().encode(f"{turns}<|assistant|>{text}<end>")
        found.append(model(input_ids=torch.tensor([ids])).logits.item())
    return found


@pytest.mark.parametrize("pad", [None, 0, 1], ids=["none", "own", "the end token"])
@pytest.mark.parametrize("max_tokens", [1, 70, 4096])
def test_a_reward_is_that_of_the_conversation_alone(tmp_path, pad, max_tokens):
    """In batches of any size, also where the padding is the end token or missing."""
    folder = save_reward_model(tmp_path / "model", pad=pad)
    texts = ["4", "5 or perhaps 4", "", "44444"]
    expected = alone(folder, texts)
    assert rewards(folder, texts, tmp_path / "cache", max_tokens) == pytest.approx(
        expected, abs=1e-5
    )
    assert len(set(expected)) == 4


def test_an_encoder_may_be_one(tmp_path):
    tokenizer = worlds.character_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = rewards(tmp_path / "model", ["4", "5 or 4"], tmp_path / "cache")
    assert found == pytest.approx(alone(tmp_path / "model", ["4", "5 or 4"]), abs=1e-5)


def test_nothing_is_asked_twice_and_long_responses_are_masked(tmp_path, monkeypatch):
    folder = save_reward_model(tmp_path / "model")
    first = rewards(folder, ["4", "4" * 300, "5"], tmp_path / "cache")
    assert first[1] is None
    monkeypatch.setattr(RewardModel, "rewards", None)
    assert rewards(folder, ["5", "4", "4"], tmp_path / "cache") == [first[2], first[0], first[0]]


def test_its_bar_counts_the_responses_that_there_are(tmp_path, bars):
    rows = [
        {**row(texts), "finish_reasons": ["stop"] * len(texts)}
        for texts in (["4", "5"], ["4", "6", "7"], ["8"])
    ]
    write_rows(tmp_path / "samples" / "part-00000.parquet", rows)
    model = RewardModel("reward_model", str(save_reward_model(tmp_path / "rater")))
    scorer = RewardScorer(model, ScoreCache(tmp_path / "cache"), 4096, True)
    scorer.score_shards(tmp_path / "samples", tmp_path / "scores", 3, title="round 1/1")
    (bar,) = (bar for bar in bars if bar.total is not None)
    assert (bar.title, bar.done, bar.total) == ("round 1/1: score", 6, 6)


@pytest.mark.slow
def test_a_whole_run_with_a_report(world, tmp_path):
    model = save_reward_model(tmp_path / "judge")
    config = worlds.changed_config(
        world, tmp_path, teacher=None, reward_model=str(model), rounds=2, teacher_beta=1.0
    )
    assert cli.main(["run", str(config)]) == 0
    run = tmp_path / "run"
    rows = read_rows(run / "round-02" / "scores")
    texts = rows[0]["completions"]
    own = RewardModel("reward_model", str(model))
    expected = own.rewards([own.conversation(rows[0]["prompt"], text) for text in texts], 4096)
    assert rows[0]["teacher_rewards"] == pytest.approx(expected, abs=1e-5)
    assert rows[0]["teacher_choice_probs"] is None
    assert rows[0]["scored_by"].startswith("reward model")
    assert set(json.loads((run / "run.json").read_text())["models"]) == {"student", "reward_model"}
    page = (run / "report" / "index.html").read_text()
    assert "student against reward model" in page
    assert "Teacher" not in page
    assert not (run / "evaluation" / "teacher.json").exists()
    assert (run / "evaluation" / "student-02.json").exists()
    card = (run / "round-02" / "student" / "README.md").read_text()
    assert "scored by the reward model judge" in card


def test_what_is_no_reward_model_is_refused_by_name(world, tmp_path, capsys):
    several = save_reward_model(tmp_path / "several", labels=3)
    changes = {"teacher": None, "reward_model": str(several)}
    config = worlds.changed_config(world, tmp_path, **changes)
    message = failing(capsys, "run", config)
    assert "reward_model: must give one number" in message
    assert "has 3 labels (LABEL_0, LABEL_1, LABEL_2)" in message
    config = worlds.changed_config(
        world, tmp_path, **{**changes, "reward_model": str(world / "student")}
    )
    assert "is a LlamaForCausalLM; give a language model as teacher" in failing(
        capsys, "run", config
    )
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_head_without_weights_is_refused(tmp_path):
    folder = save_reward_model(tmp_path / "model")
    worlds.save_model(folder, 0)
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**own, "architectures": None, "id2label": {"0": "reward"}})
    )
    with pytest.raises(ValueError, match=r"holds no weights for score.weight, which would"):
        _ = RewardModel("reward_model", str(folder)).model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "./teacher"}, "reward_model: scores in place of a teacher, got both"),
        ({"teacher_response": "greedy"}, "teacher_response: needs a teacher"),
        ({"teacher_system_prompt": "Be kind."}, "teacher_system_prompt: needs a teacher"),
        ({"baseline": "seqkd"}, "baseline: seqkd needs a teacher, whose answers it trains on"),
        ({"reward_model": None}, "teacher: needed, and neither it nor a reward_model is given"),
    ],
)
def test_settings_that_do_not_go_together(world, tmp_path, capsys, changes, message):
    values = {"teacher": None, "reward_model": str(world / "teacher"), **changes}
    assert message in failing(capsys, "run", worlds.changed_config(world, tmp_path, **values))


def test_rewards_that_are_not_finite_stop_the_run(tmp_path, monkeypatch):
    folder = save_reward_model(tmp_path / "model")
    model = RewardModel("reward_model", str(folder))
    with torch.no_grad():
        model.model.score.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="in float32 gives a reward that is not finite"):
        RewardScorer(model, ScoreCache(tmp_path / "cache"), 64, True).scored([row(["4", "5"])])
    assert not (tmp_path / "cache").exists()
