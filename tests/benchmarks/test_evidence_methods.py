"""What each method of the study reads and trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from groups import SCORED_ROW as ROW
from safetensors.torch import load_file

from benchmarks.evidence.methods import METHODS, members, training_rows
from benchmarks.evidence.settings import SIZES
from benchmarks.evidence.training import Plan, reading, train
from benchmarks.evidence.worlds import TINY


def test_a_method_reads_its_part_of_a_group() -> None:
    found = {reads: members(reads, ROW) for reads in ("own", "best", "pair", "teacher", "mixed")}
    assert found == {
        "own": [0, 1, 2],
        "best": [1],
        "pair": [1, 2],
        "teacher": [3],
        "mixed": [0, 1, 3],
    }
    with pytest.raises(ValueError, match="needs the teacher's answer in every group"):
        members("mixed", {**ROW, "from_teacher": [False] * 4})
    (row,) = training_rows(METHODS["dpo"], [ROW])
    assert row["teacher_rewards"] == [-1.0, -3.0]
    assert row["anchor_rewards"] == [-1.5, -2.5]
    assert reading(METHODS["dpo"], [row]).tokens == 5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, tmp_path) -> None:
    torch.set_num_threads(1)
    method, start = METHODS[name], TINY.student(tmp_path, 1, None)
    rows = training_rows(method, [ROW] * 4)
    plan = Plan(2, 2, 1e-3, 2.0 if method.has_beta else None, 1)
    done = train(method, start, TINY.teacher(tmp_path), rows, plan, tmp_path / "trained")
    assert (done.steps, done.tokens) == (2, 4 * reading(method, rows).tokens)
    assert done.loss != 0
    before, after = (load_file(folder / "model.safetensors") for folder in (start, done.folder))
    assert any((before[key] != after[key]).any() for key in before)


def test_the_real_studies_train_in_bfloat16(tmp_path) -> None:
    found = []
    for bf16 in (False, SIZES["prompted"].bf16):
        plan = Plan(2, 2, 1e-3, 2.0, 1, bf16)
        folder = tmp_path / str(bf16)
        start, teacher = TINY.student(tmp_path, 1, None), TINY.teacher(tmp_path)
        rows = training_rows(METHODS["ppd_kl"], [ROW] * 4)
        train(METHODS["ppd_kl"], start, teacher, rows, plan, folder)
        found.append(load_file(folder / "model.safetensors"))
    plain, rounded = found
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    assert any((plain[key] != rounded[key]).any() for key in plain)


def test_a_training_reads_equal_responses_once() -> None:
    copies = {**ROW, "completion_ids": [[3], [4, 5], [3], [7, 8, 9]]}
    alone = {**ROW, "completion_ids": [[3], [3], [3], [7, 8, 9]]}
    for name, tokens in {
        "ppd_kl": 2 + 3,  # the first row alone: a ranking needs two that differ
        "dpo": 2 + 3,
        "rft": (2 + 2 + 2 + 1) / 2,
        "seqkd": 2 + 3,
        "weighted_own": ((2 + 3) + (2 + 1)) / 2,
        "token_kd": (2 * 2 + 4 + 3) / 2,
    }.items():
        rows = training_rows(METHODS[name], [copies, alone])
        read = reading(METHODS[name], rows)
        assert read.tokens == pytest.approx(tokens), name
        assert read.prompts == (0.5 if name in ("ppd_kl", "dpo") else 1), name


def test_the_weight_of_the_teachers_answer() -> None:
    """softmax(10 t) over the responses that differ, the answer's copy among the samples too."""
    rewards = [-1.0, -1.1, -3.0, -0.9]
    other = {**ROW, "teacher_rewards": rewards}
    copied = {**other, "completion_ids": [[3], [7, 8, 9], [6], [7, 8, 9]]}
    own = np.exp(10 * np.array([-0.9, -1.0, -1.1]))
    shared = np.exp(10 * np.array([-1.0, -1.0]))  # the answer and its copy have a mean of -1.0
    expected = (own[0] / own.sum() + shared[0] / shared.sum()) / 2
    rows = training_rows(METHODS["weighted"], [other, copied])
    assert reading(METHODS["weighted"], rows).answer_weight == pytest.approx(expected)
    plain = training_rows(METHODS["ppd_kl"], [other, copied])
    assert reading(METHODS["ppd_kl"], plain).answer_weight is None


def test_copies_of_a_text_have_one_noise() -> None:
    rows = [{**ROW, "completion_ids": [[3], [3], [3], [7]], "teacher_rewards": [-1.0] * 4}] * 50
    for row in training_rows(METHODS["ppd_kl"], [*rows, ROW], noise=2.0)[:-1]:
        assert len(set(row["teacher_rewards"])) == 1


def test_noise_is_the_same_for_all_methods() -> None:
    rows = [{**ROW, "prompt_id": i} for i in range(2000)]
    own, best = (training_rows(METHODS[name], rows, 0.5, 3) for name in ("ppd_kl", "rft"))
    assert [max(row["teacher_rewards"]) for row in own] == [
        row["teacher_rewards"][0] for row in best
    ]
    noise = np.array([row["teacher_rewards"] for row in own]) - ROW["teacher_rewards"][:3]
    assert noise.std() == pytest.approx(0.5 * np.std([-2.0, -1.0, -3.0]), rel=0.05)
