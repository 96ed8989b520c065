"""Responses, their distribution, and the shards that hold them."""

from __future__ import annotations

import contextlib
import shutil

import pytest
import torch
import worlds
from students import long_rope
from transformers import AutoModelForCausalLM, GenerationConfig
from worlds import run_config

from pad_fast.conversation.encoding import TextEncoder
from pad_fast.models.neighbour_effects import ONE_SIDE, Sides, sides_of
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.sample import transformers_engine
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.sample.generate import Sampler, columns
from pad_fast.pipeline.sample.metrics import sampling_metrics
from pad_fast.pipeline.sample.shards import sample_shards
from pad_fast.pipeline.sample.transformers_engine import (
    TransformersEngine,
    batches,
    generated_ids,
)
from pad_fast.pipeline.score.model_scores import ModelScores


def test_responses_end_at_the_first_of_several_ends():
    tokenizer = worlds.character_tokenizer()
    a, b = tokenizer.encode("ab")
    sampled = [[a, b, 1, 0, 0], [a, a, a, a, b], [a, b, 3, b, 1]]
    group = [transformers_engine.until_end(tokens, [1, 3]) for tokens in sampled]
    cut = columns(group, [1, 3], TextEncoder(tokenizer))
    assert cut["completion_ids"] == [[a, b, 1], [a, a, a, a, b], [a, b, 3]]
    assert cut["finish_reasons"] == ["stop", "length", "stop"]
    assert cut["completions"] == ["ab", "aaaab", "ab"]


def test_prompts_on_both_sides_of_a_switch_are_sampled_apart():
    """LongRoPE picks its factors by the longest sequence of a batch; here beyond 20 tokens."""
    lengths = [4, 30, 14, 15, 17, 15, 21, 5]  # and up to 6 new tokens
    [together] = batches(lengths, 2, 6, 10_000, ONE_SIDE)
    assert sorted(together) == list(range(8))
    apart = list(batches(lengths, 2, 6, 10_000, Sides(switches=(20,))))
    assert apart == [[1, 6], [4], [3, 5], [2, 7, 0]]
    found = list(batches(lengths, 2, 6, 80, ONE_SIDE))
    assert found == [[1], [6], [4], [3], [5], [2, 7], [0]]


def test_long_rope_samples_what_each_prompt_gets_alone():
    model = long_rope(12).eval()
    model.generation_config = GenerationConfig(
        max_new_tokens=6, eos_token_id=[1], pad_token_id=0, do_sample=False
    )
    g = torch.Generator().manual_seed(1)
    lengths = (4, 20, 8, 11, 8, 25, 5)
    prompts = [torch.randint(3, 40, (length,), generator=g).tolist() for length in lengths]
    alone = [generated_ids(model, [prompt], 1)[0] for prompt in prompts]
    assert generated_ids(model, prompts, 1) != alone
    for batch in batches(lengths, 1, 6, 65536, sides_of(model)):
        found = generated_ids(model, [prompts[i] for i in batch], 1)
        for i, [ids] in zip(batch, found, strict=True):
            assert until_end(ids) == until_end(alone[i][0])


def test_a_batch_reports_responses_and_tokens_while_it_is_sampled(world, monkeypatch):
    def sampled(look, responses, tokens):
        monkeypatch.setattr(transformers_engine, "LOOK", look)
        with contextlib.closing(TransformersEngine(student, scores)) as engine:
            return engine.sample(prompts, 3, Sampling(6), 7, responses.append, tokens.append)

    student = Checkpoint("student", str(world / "student"), None, "float32")
    scores = ModelScores(run_config(world, sample_batch_tokens=10_000), "mean")
    prompts, seen, tokens = [[5, 6, 7], [8, 9], [5, 9, 6, 6]], [], []
    found = sampled(0.0, seen, tokens)
    assert 1 < len(tokens) <= 7  # after each token, and at the end of the one batch
    assert sum(seen) == 3 * len(prompts)
    assert sum(tokens) == sum(len(one.ids) for group in found for one in group)
    assert tokens[0] == 3 * len(prompts)
    assert all(count >= 0 for count in (*seen, *tokens))
    assert sampled(1e9, [], []) == found


def until_end(ids):
    return ids[: ids.index(1)] if 1 in ids else ids


def test_sampling_metrics_by_hand():
    rows = [
        {"completion_ids": [[5], [5], [6, 7], [5]], "finish_reasons": ["stop"] * 4},
        {
            "completion_ids": [[5], [8], [9], [7]],
            "finish_reasons": ["length", "stop", "stop", "stop"],
        },
    ]
    found = sampling_metrics(rows)
    assert found["completions/duplicate_ratio"] == 2 / 8
    assert found["completions/clipped_ratio"] == 1 / 8
    assert found["completions/mean_length"] == 9 / 8


def test_sampled_distribution_is_the_models(world, tmp_path):
    """First tokens follow the model's own probabilities.

    The checkpoint's generation config, which asks for something else, has no effect.
    """
    student = Checkpoint("student", str(world / "student"))
    student.model.generation_config.repetition_penalty = 5.0
    student.model.generation_config.top_k = 1
    config = run_config(world, num_generations=4000, max_new_tokens=1, temperature=2.0)
    rows = [
        {"prompt_id": "p", "prompt_ids": student.prompt_ids([{"role": "user", "content": "1+1=?"}])}
    ]
    engine = TransformersEngine(student, ModelScores(config, "mean"))
    sample_shards(engine, rows, tmp_path, Sampler(config, 4000), seed=3, title="")
    drawn = torch.tensor([ids[0] for ids in read_rows(tmp_path)[0]["completion_ids"]])
    logits = AutoModelForCausalLM.from_pretrained(world / "student")(
        torch.tensor([rows[0]["prompt_ids"]])
    ).logits[0, -1]
    expected = (logits.detach() / 2.0).softmax(-1)
    measured = drawn.bincount(minlength=len(expected)) / len(drawn)
    assert (measured - expected).abs().sum() < 0.15
    assert (expected > 0.01).sum() > 5


@pytest.mark.parametrize("limit", [{"top_k": 2}, {"top_p": 0.5}])
def test_top_k_and_top_p_keep_the_likeliest(world, tmp_path, limit):
    student = Checkpoint("student", str(world / "student"))
    config = run_config(world, max_new_tokens=1, temperature=1.3, **limit)
    ids = student.prompt_ids([{"role": "user", "content": "1+1=?"}])
    engine = TransformersEngine(student, ModelScores(config, "mean"))
    rows = [{"prompt_id": "p", "prompt_ids": ids}]
    sample_shards(engine, rows, tmp_path, Sampler(config, 500), seed=3, title="")
    drawn = {response[0] for response in read_rows(tmp_path)[0]["completion_ids"]}
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(world / "student")
        logits = model(torch.tensor([ids])).logits[0, -1]
    probs, order = (logits / 1.3).softmax(-1).sort(descending=True)
    nucleus = int((probs.cumsum(0) < 0.5).sum()) + 1  # the fewest tokens with half of the mass
    assert 2 < nucleus < 12
    assert drawn == set(order[: limit.get("top_k", nucleus)].tolist())


def test_shards_do_not_depend_on_which_were_there(finished, tmp_path):
    student = Checkpoint("student", str(finished / "student"))
    rows = read_rows(finished / "run" / "prompts.parquet")[:6]
    config = run_config(finished)
    engine = TransformersEngine(student, ModelScores(config, "mean"))
    sampler = Sampler(config, 3, rewards=True)
    sample_shards(engine, rows, tmp_path / "a", sampler, seed=3, title="")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "part-00001.parquet", tmp_path / "b")
    sample_shards(engine, rows, tmp_path / "b", sampler, seed=3, title="")
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")
    sample_shards(engine, rows, tmp_path / "c", sampler, seed=4, title="")
    assert read_rows(tmp_path / "c") != read_rows(tmp_path / "a")
