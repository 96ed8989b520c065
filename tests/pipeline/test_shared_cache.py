"""Runs that share a score cache ask the same teacher nothing twice, and another one anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import worlds
from commands import failing
from safetensors.torch import load_file, save_file

from pad_fast import cli
from pad_fast.files.checksums import HASHED_BYTES, ends_hash
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.score import model_scores
from pad_fast.pipeline.score.cache_part import NAMES


@pytest.fixture
def asked(monkeypatch) -> dict[str, int]:
    """Counts what the teacher is asked."""
    counts = {"responses": 0, "questions": 0}
    own_scores, own_letters = model_scores.score_responses, model_scores.next_token_logprobs

    def scores(model, prompts, responses, **options):
        if "teacher" in model.config.name_or_path:
            counts["responses"] += sum(map(len, responses))
        return own_scores(model, prompts, responses, **options)

    def letters(model, prompts, tokens, **options):
        counts["questions"] += len(prompts)
        return own_letters(model, prompts, tokens, **options)

    monkeypatch.setattr(model_scores, "score_responses", scores)
    monkeypatch.setattr(model_scores, "next_token_logprobs", letters)
    return counts


def scored(world: Path, folder: Path, **changes: object) -> list[dict]:
    """The scored rows of a run that is sampled and scored, in ``folder``."""
    folder.mkdir()
    config = worlds.changed_config(world, folder, **changes)
    for command in ("sample", "score"):
        assert cli.main([command, str(config)]) == 0
    return read_rows(folder / "run" / "round-01" / "scores")


def test_a_second_run_asks_nothing(world, tmp_path, asked):
    shared = str(tmp_path / "shared")
    first = scored(world, tmp_path / "first", score_cache=shared)
    assert min(asked.values()) > 0
    asked.update(responses=0, questions=0)
    copied = tmp_path / "another name of teacher"
    shutil.copytree(world / "teacher", copied)
    second = scored(world, tmp_path / "second", score_cache=shared, teacher=str(copied))
    assert asked == {"responses": 0, "questions": 0}
    assert second == first
    assert list((tmp_path / "shared").glob(NAMES))
    assert not (tmp_path / "second" / "run" / "teacher_cache").exists()


def test_shards_that_lost_parts_in_the_middle_are_scored(world, tmp_path, asked):
    """The cache vanishes between the log-probabilities and the questions."""
    whole = scored(world, tmp_path / "whole")
    own = model_scores.next_token_logprobs

    def vanishing(*arguments, **options):
        shutil.rmtree(tmp_path / "lost" / "run" / "teacher_cache", ignore_errors=True)
        return own(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_scores, "next_token_logprobs", vanishing)
        lost = scored(world, tmp_path / "lost")
    for found, expected in zip(lost, whole, strict=True):
        assert found["teacher_rewards"] == pytest.approx(expected["teacher_rewards"], abs=1e-5)


def test_one_weight_in_the_middle_makes_another_teacher(world, tmp_path, asked):
    """Names, sizes and both ends of the files are those of the first teacher."""
    shared, tuned = str(tmp_path / "shared"), tmp_path / "tuned-teacher"
    base = worlds.save_model(tmp_path / "base-teacher", 1, width=256)
    shutil.copytree(base, tuned)
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][0, 0] += 1
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    files = [folder / "model.safetensors" for folder in (base, tuned)]
    assert files[0].stat().st_size > 2 * HASHED_BYTES
    assert ends_hash(files[:1]) == ends_hash(files[1:])
    before = scored(world, tmp_path / "first", score_cache=shared, teacher=str(base))
    count = dict(asked)
    after = scored(world, tmp_path / "second", score_cache=shared, teacher=str(tuned))
    assert asked == {name: 2 * count[name] for name in count}
    assert [row["teacher_logps"] for row in after] != [row["teacher_logps"] for row in before]


def test_other_settings_of_the_teacher_ask_again(world, tmp_path, asked):
    shared = str(tmp_path / "shared")
    scored(world, tmp_path / "first", score_cache=shared)
    count = dict(asked)
    scored(world, tmp_path / "second", score_cache=shared, reward_temperature=2.0)
    assert asked["responses"] == 2 * count["responses"]
    assert asked["questions"] == count["questions"]  # the temperature is not in them
    scored(world, tmp_path / "third", score_cache=shared, dtype="bfloat16", mcq_style="none")
    assert asked["responses"] > 2 * count["responses"]


def test_a_folder_that_cannot_be_written_is_refused_first(world, tmp_path, capsys):
    (tmp_path / "file").touch()
    config = worlds.changed_config(world, tmp_path, score_cache=str(tmp_path / "file"))
    assert "score_cache: must be a folder that this run can write to" in failing(
        capsys, "run", config
    )
    assert not (tmp_path / "run").exists()
