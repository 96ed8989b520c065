"""Batches that fit the device: how many tokens, and that a run keeps what it began with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig
from worlds import changed_config, run_config

from pad_fast import cli
from pad_fast.pipeline import batch_sizes, chosen_batches
from pad_fast.pipeline.batch_sizes import MOST, SAMPLED, SCORED, BatchTokens, tokens_that_fit
from pad_fast.pipeline.parquet_rows import read_rows

SMALL = LlamaConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=4,
    num_attention_heads=8,
    dtype="float32",
)
GIB = 2**30


def fitting(world, name: str, memory: int, *, gpu: bool = False, **changes) -> int:
    model = SimpleNamespace(config=SMALL, role="student", path="small")
    config = run_config(world, max_new_tokens=128, **changes)
    return tokens_that_fit(name, config, [model], memory, gpu=gpu)


@pytest.mark.parametrize("name", [SAMPLED, SCORED])
def test_the_largest_batch_whose_peak_fits(world, name):
    whole = [fitting(world, name, 1024 * GIB, gpu=gpu) for gpu in (False, True)]
    assert whole == [MOST[False][name], MOST[True][name]]
    memory = {SAMPLED: GIB, SCORED: 5 * GIB // 9}[name]
    tokens = fitting(world, name, memory)
    assert batch_sizes.LEAST < tokens < MOST[False][name]
    peaks = {SAMPLED: batch_sizes._sampled_peak, SCORED: batch_sizes._scored_peak}
    model = SimpleNamespace(config=SMALL, role="student", path="small")
    config = run_config(world, max_new_tokens=128)
    reading = batch_sizes.Reading(memory=memory // 2)
    assert peaks[name](config, model, tokens, reading) < memory / 2
    assert peaks[name](config, model, 2 * tokens, reading) > memory / 2


def test_a_small_model_is_not_looked_at_closely(world, monkeypatch):
    """The quick bound is above the counted peak, so that it lets nothing through that is not so."""
    model = SimpleNamespace(config=SMALL, role="student", path="small")
    config = run_config(world, max_new_tokens=128)
    for tokens in (1024, 8192, 65_536):
        bound = batch_sizes._at_most(SMALL, tokens, 128)
        for peak in (batch_sizes._sampled_peak, batch_sizes._scored_peak):
            assert peak(config, model, tokens, batch_sizes.Reading()) < bound


def test_settings_come_first(world):
    given = run_config(world, sample_batch_tokens=64, score_batch_tokens=32)
    assert BatchTokens.of(given) == BatchTokens(64, 32)
    assert BatchTokens.of(run_config(world)) == BatchTokens(65_536, 4096)


def test_a_run_keeps_the_batches_that_it_began_with(world, tmp_path, monkeypatch):
    """On a machine with less memory it goes on with batches of the same size."""
    config = changed_config(world, tmp_path, validation_size=0)
    monkeypatch.setattr(chosen_batches, "tokens_that_fit", lambda name, *_, gpu: 4096)
    assert cli.main(["sample", str(config)]) == 0
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["batches"] == {SAMPLED: 4096}
    shard = tmp_path / "run" / "round-01" / "samples" / "part-00001.parquet"
    before = read_rows(shard)
    shard.unlink()
    monkeypatch.setattr(chosen_batches, "tokens_that_fit", lambda name, *_, gpu: 16)
    assert cli.main(["sample", str(config)]) == 0
    assert read_rows(shard) == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["batches"] == {SAMPLED: 4096}
