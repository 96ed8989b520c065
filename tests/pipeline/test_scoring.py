"""The teacher's scores against values by hand, across tokenizers and beyond its window."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from worlds import response_logp, run_config

from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_metrics, read_rows, write_rows
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score import model_scores
from pad_fast.pipeline.score.asked_questions import make_quiz
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.score.scorer import Scorer
from pad_fast.pipeline.score.teacher_rewards import in_unit_of
from pad_fast.pipeline.score.teacher_view import teacher_view


def sampled_row(student: Checkpoint, prompt: str, texts: list[str], reasons: list[str]) -> dict:
    messages = [{"role": "user", "content": prompt}]
    ids = [
        student.tokenizer.encode(text) + [1] * (reason == "stop")
        for text, reason in zip(texts, reasons, strict=True)
    ]
    row = {"prompt_id": prompt, "prompt": messages, "prompt_ids": student.prompt_ids(messages)}
    return {**row, "completions": texts, "completion_ids": ids, "finish_reasons": reasons}


def score(
    world: Path,
    folder: Path,
    rows: list[dict],
    teacher: Path | None = None,
    normalize: str = "mean",
    **changes,
) -> list[dict]:
    config = run_config(world, **changes)
    if not (folder / "samples").exists():
        write_rows(folder / "samples" / "part-00000.parquet", rows)
    checkpoints = (
        Checkpoint("teacher", str(teacher or world / "teacher")),
        Checkpoint("student", str(world / "student")),
    )
    engine = TransformersEngine(checkpoints[0], ModelScores(config, normalize))
    scorer = Scorer(*checkpoints, config, engine, ScoreCache(folder / "cache"))
    scorer.score_shards(
        folder / "samples", folder / "scores", len(rows[0]["completions"]), title=""
    )
    return read_rows(folder / "scores")


@pytest.fixture
def three(world):
    return sampled_row(
        Checkpoint("student", str(world / "student")),
        "2+2=?",
        ["4", "5 or 4", "44"],
        ["stop", "stop", "length"],
    )


def test_scores_are_the_teachers_own(world, tmp_path, three):
    teacher = Checkpoint("teacher", str(world / "teacher"))
    (row,) = score(world, tmp_path, [three], mcq_preset="paper", mcq_weight=0.25, mcq_floor=1e-3)
    letters = torch.tensor(teacher.tokenizer.encode("AB"))
    for i, ids in enumerate(three["completion_ids"]):
        logp = response_logp(teacher.model, three["prompt_ids"], ids)
        shares = []
        for j in {0, 1, 2} - {i}:
            for first, second, place in ((i, j, 0), (j, i, 1)):
                text = multiple_choice.choice_question(
                    "2+2=?", [three["completions"][first], three["completions"][second]]
                )
                question = teacher.prompt_ids([{"role": "user", "content": text}])
                shares.append(
                    teacher.model(torch.tensor([question]))
                    .logits[0, -1, letters]
                    .softmax(-1)[place]
                    .item()
                )
        chosen = statistics.fmean(shares)
        assert row["teacher_logps"][i] == pytest.approx(logp, abs=1e-4)
        assert row["teacher_choice_probs"][i] == pytest.approx(chosen, abs=1e-5)
        assert row["teacher_rewards"][i] == pytest.approx(
            0.75 * logp / len(ids) + 0.25 * math.log(max(chosen, 1e-3)), abs=1e-4
        )
    assert row["teacher_num_tokens"] == [2, 7, 2]


def test_the_released_preset_by_hand(world, tmp_path, three):
    """Each pair once, the lower index as A, letters as likely as they are, no log-probability."""
    teacher = Checkpoint("teacher", str(world / "teacher"))
    floor = 0.002
    (row,) = score(world, tmp_path, [three], mcq_preset="released", mcq_floor=floor)
    letters, shares = torch.tensor(teacher.tokenizer.encode("AB")), [[], [], []]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = [three["completions"][i], three["completions"][j]]
        text = multiple_choice.choice_question("2+2=?", pair)
        question = teacher.prompt_ids([{"role": "user", "content": text}])
        probs = teacher.model(torch.tensor([question])).logits[0, -1].softmax(-1)[letters]
        for place, share in zip((i, j), probs.tolist(), strict=True):
            shares[place].append(share)
    chosen = [statistics.fmean(found) for found in shares]
    assert row["teacher_choice_probs"] == pytest.approx(chosen, abs=1e-6)
    assert min(chosen) < floor < max(chosen)  # one is raised to it, one is not
    wanted = [math.log(max(share, floor)) for share in chosen]
    assert row["teacher_rewards"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("preset", ["debiased", "paper", "released"])
def test_rewards_in_another_unit_are_those_of_a_run_with_it(world, tmp_path, three, preset):
    student = Checkpoint("student", str(world / "student"))
    long = sampled_row(student, "2+2=?", ["4", "5", "6" * 300], ["stop", "stop", "length"])
    found = {
        normalize: score(
            world, tmp_path / normalize, [three, long], normalize=normalize, mcq_preset=preset
        )
        for normalize in ("mean", "sum")
    }
    config = run_config(world, mcq_preset=preset)
    for one, other in (("mean", "sum"), ("sum", "mean")):
        for row, wanted in zip(found[one], found[other], strict=True):
            changed = in_unit_of({**row, "student_rewards": None}, config, other)
            assert changed == {**wanted, "student_rewards": None}
            lengths = [len(ids) for ids in row["completion_ids"]]
            rewards = {"mean": [-0.5] * 3, "sum": [-0.5 * length for length in lengths]}
            rated = {**row, "student_rewards": rewards[one], "teacher_logps": None}
            changed = in_unit_of(rated, config, other)
            assert changed["student_rewards"] == rewards[other]
            assert changed["teacher_rewards"] == row["teacher_rewards"]  # a rating has no tokens


def test_without_questions_the_reward_is_the_log_probability(world, tmp_path, three):
    (row,) = score(world, tmp_path, [three], mcq_style="none")
    assert row["teacher_choice_probs"] is None
    assert row["teacher_rewards"] == [
        logp / n for logp, n in zip(row["teacher_logps"], row["teacher_num_tokens"], strict=True)
    ]


def test_listwise_question_asks_for_all_letters(world, tmp_path, three):
    (row,) = score(world, tmp_path, [three], mcq_style="listwise")
    assert sum(row["teacher_choice_probs"]) == pytest.approx(1.0)


def test_nothing_is_computed_twice(world, tmp_path, three, monkeypatch):
    asked = {"responses": 0, "questions": 0}
    own_scores, own_letters = model_scores.score_responses, model_scores.next_token_logprobs

    def scores(model, prompts, responses, **options):
        asked["responses"] += sum(map(len, responses))
        return own_scores(model, prompts, responses, **options)

    def letters(model, prompts, tokens, **options):
        asked["questions"] += len(prompts)
        return own_letters(model, prompts, tokens, **options)

    monkeypatch.setattr(model_scores, "score_responses", scores)
    monkeypatch.setattr(model_scores, "next_token_logprobs", letters)
    student = Checkpoint("student", str(world / "student"))
    repeated = sampled_row(student, "2+2=?", ["4", "4", "5 or 4"], ["stop", "length", "stop"])
    first = score(world, tmp_path, [three, repeated])
    # New in the second row are "4" as a response that was cut, and "4" compared with itself.
    assert asked == {"responses": 4, "questions": 6 + 1}
    shutil.rmtree(tmp_path / "scores")
    assert score(world, tmp_path, [three, repeated]) == first
    assert asked == {"responses": 4, "questions": 7}
    probs = first[1]["teacher_choice_probs"]
    assert probs[0] == pytest.approx(probs[1])


def test_text_is_the_interface_between_tokenizers(world, tmp_path, three, foreign_teacher):
    """The teacher sees the same characters under other ids, so every score must be the same."""
    (own,) = score(world, tmp_path / "own", [three])
    (foreign,) = score(world, tmp_path / "foreign", [three], teacher=foreign_teacher)
    assert foreign["teacher_num_tokens"] == own["teacher_num_tokens"] == [2, 7, 2]
    assert foreign["teacher_logps"] == pytest.approx(own["teacher_logps"], abs=1e-5)
    assert foreign["teacher_rewards"] == pytest.approx(own["teacher_rewards"], abs=1e-5)
    assert foreign["completion_ids"] == three["completion_ids"]


def test_what_the_teacher_cannot_see_is_masked(world, tmp_path, foreign_teacher):
    student = Checkpoint("student", str(world / "student"))
    row = sampled_row(
        student, "2+2=?", ["", "4", "5", "6" * 300], ["length", "stop", "stop", "length"]
    )
    (found,) = score(world, tmp_path, [row], teacher=foreign_teacher)
    assert [reward is None for reward in found["teacher_rewards"]] == [True, False, False, True]
    assert [probability is None for probability in found["teacher_choice_probs"]] == [
        True,
        False,
        False,
        True,
    ]
    assert sum(found["teacher_choice_probs"][1:3]) == pytest.approx(1.0)
    long = sampled_row(student, "2+2=?", ["4" * 210, "5"], ["stop", "stop"])
    (uncalibrated,) = score(world, tmp_path / "long", [long])
    assert uncalibrated["teacher_choice_probs"] is None
    assert uncalibrated["teacher_rewards"][1] == pytest.approx(uncalibrated["teacher_logps"][1] / 2)


@pytest.mark.parametrize(
    ("columns", "changes", "bias"),
    [
        ({}, {}, -0.225),  # as if "7" were one of four draws, which happens to be the last
        ({"from_teacher": [False] * 3 + [True]}, {}, 0.0),
        ({"from_teacher": [False] * 3 + [True]}, {"mcq_every_place": True}, 0.0),
        (
            {"from_teacher": [False] * 3 + [True]},
            {"mcq_style": "listwise", "num_generations": 4},
            None,
        ),
        ({"sampled_by": "given"}, {}, None),
        ({"sampled_by": "given"}, {"mcq_every_place": True}, 0.0),
    ],
)
def test_a_preference_for_its_own_answer_is_no_preference_for_a_place(
    world, tmp_path, monkeypatch, columns, changes, bias
):
    """A teacher without a preference for a place likes the answer 7 at 0.95, and others alike."""
    teacher = Checkpoint("teacher", str(world / "teacher"))

    def liking_7(model, prompts, tokens, **_):
        texts = [teacher.tokenizer.decode(ids) for ids in prompts]
        shares = [
            [19.0 if f"{letter}. 7" in text else 1.0 for letter in "ABCD"[: len(tokens)]]
            for text in texts
        ]
        return [[math.log(share / sum(each)) for share in each] for each in shares]

    monkeypatch.setattr(model_scores, "next_token_logprobs", liking_7)
    student = Checkpoint("student", str(world / "student"))
    row = sampled_row(student, "2+2=?", ["4", "5", "6", "7"], ["stop"] * 4) | columns
    score(world, tmp_path, [row], mcq_preset="released", **changes)
    metrics = read_metrics(tmp_path / "scores" / "part-00000.parquet")
    assert metrics.get("mcq/position_bias") == (None if bias is None else pytest.approx(bias))
    assert metrics["mcq/letter_mass"] == pytest.approx(1.0)


def test_what_just_fits_the_window_is_read(world, three, monkeypatch):
    teacher, config = Checkpoint("teacher", str(world / "teacher")), run_config(world)
    view = teacher_view(teacher, three, reuse_ids=True)
    longest = len(view.prompt) + len(view.responses[1])
    question = max(map(len, make_quiz(teacher, config, three, view).prompts))
    for window, readable in ((longest, [0, 1, 2]), (longest - 1, [0, 2])):
        monkeypatch.setattr(Checkpoint, "window", window)
        assert teacher_view(teacher, three, reuse_ids=True).readable == readable
    # The letter is one more token.
    for window, asks in ((question + 1, True), (question, False)):
        monkeypatch.setattr(Checkpoint, "window", window)
        assert bool(make_quiz(teacher, config, three, view).prompts) == asks


def test_questions_beyond_the_window_are_reported_once(world, tmp_path, three, monkeypatch, caplog):
    student = Checkpoint("student", str(world / "student"))
    two = sampled_row(student, "1+1=?", ["2", "3"], ["stop", "stop"])
    longest = len(
        student.prompt_ids(
            [{"role": "user", "content": multiple_choice.choice_question("2+2=?", ["4", "4"])}]
        )
    )
    # There is room for a question about two short responses, but not for one about "5 or 4".
    monkeypatch.setattr(Checkpoint, "window", longest + 1)
    found = score(world, tmp_path, [three, two, three])
    assert [row["teacher_choice_probs"] is None for row in found] == [True, False, True]
    assert [record.getMessage() for record in caplog.records if record.name == "pad_fast"] == [
        ": 2 of 3 prompts keep uncalibrated rewards, as a question about them is longer than the "
        f"teacher's window of {longest + 1} tokens"
    ]
