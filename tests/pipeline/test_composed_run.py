"""Runs with the teacher's own responses, an anchor, a system prompt and other losses."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from commands import failing
from datasets import Dataset
from worlds import changed_config, response_logp

from pad_fast import cli, reference
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.sample.teacher_answers import sampled_alone
from pad_fast.pipeline.train.scored_rows import with_anchor
from pad_fast.preference.loss_kinds import LOSSES

pytestmark = pytest.mark.usefixtures("no_report")


def run(world, folder, *phases, **changes):
    """Do phases, or all, of a run in ``folder``; returns the run folder."""
    folder.mkdir(exist_ok=True)
    config = changed_config(world, folder, **changes)
    for phase in phases or ("run",):
        assert cli.main([phase, str(config)]) == 0
    return folder / "run"


def test_the_teachers_answer_is_one_more_response(world, tmp_path) -> None:
    folder = run(
        world,
        tmp_path,
        rounds=2,
        teacher_response="true",
        likelihood_weight=5.0,
        likelihood_on="teacher",
        mask_truncated_completions=False,
    )
    teacher = Checkpoint("teacher", str(world / "teacher"))
    answers = {row["prompt_id"]: row for row in read_rows(folder / "round-01" / "answers")}
    for round in ("round-01", "round-02"):
        scored = read_rows(folder / round / "scores")
        assert len(scored) == 8
        for row in scored:
            assert row["from_teacher"] == [False, False, False, True]
            assert row["completions"][-1] == answers[row["prompt_id"]]["completions"][0]
            assert len(row["student_rewards"]) == len(row["teacher_rewards"]) == 4
            greedy = teacher.prompt_ids(row["prompt"])
            assert answers[row["prompt_id"]]["prompt_ids"] == greedy
        alone = sampled_alone(scored)
        assert all(len(row["completions"]) == 3 for row in alone)
    assert not (folder / "round-02" / "answers").exists()  # made once a prompt
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(line["phase"] == "train" and line.get("logps/chosen") for line in lines)
    # Nothing is missing, and nothing is done again.
    assert cli.main(["run", str(tmp_path / "config.yaml")]) == 0


def test_tokenizers_are_compared_once_for_a_shards_answers(world, tmp_path, monkeypatch) -> None:
    compared, compare = [], Checkpoint.same_tokenizer
    monkeypatch.setattr(
        Checkpoint, "same_tokenizer", lambda *of: compared.append(of) or compare(*of)
    )
    counts = []
    for size in (8, 4):  # one shard, and two
        compared.clear()
        folder = tmp_path / str(size)
        run(world, folder, "sample", teacher_response="greedy", heldout_size=0, shard_size=size)
        counts.append(len(compared))
    assert counts[1] == counts[0] + 1


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in ("ppd", "vpd")])
def test_every_loss_trains_in_a_run(loss, scored, world, tmp_path) -> None:
    needs = {"anchor": "start"} if LOSSES[loss].needs_anchor else {}
    folder = scored(tmp_path, loss=loss, **needs)
    state = json.loads((folder / "round-01" / "student" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert losses[0] != 0
    if needs and loss == "dpo":
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # the stored rewards are the start's


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory):
    """A function that trains in a copy of one scored run, with other settings."""
    import shutil

    made = tmp_path_factory.mktemp("scored")
    config = changed_config(world, made, mask_truncated_completions=False)
    for phase in ("sample", "score"):
        assert cli.main([phase, str(config)]) == 0

    def train(folder, **changes):
        shutil.copytree(made / "run", folder / "run")  # makes the folder too
        return run(world, folder, "train", **changes)

    return train


DPO = {"loss": "dpo", "anchor": "start"}


def losses_of(student) -> list[float]:
    """The losses that a training logged, by the folder of its student."""
    log = json.loads((student / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in log if "loss" in line]


@pytest.mark.parametrize(
    "changes",
    [{"compare": {"mean": DPO, "sum": {**DPO, "normalize": "sum"}}}, {"max_completion_length": 3}],
    ids=["own unit", "cut"],
)
def test_an_anchor_is_that_of_what_is_trained(changes, scored, tmp_path) -> None:
    folder = scored(tmp_path, **DPO, **changes)
    students = [path.parent for path in folder.rglob("trainer_state.json")]
    first = [losses_of(student)[0] for student in students if student.name == "student"]
    assert first == pytest.approx([math.log(2)] * (1 + len(changes.get("compare", ()))), abs=1e-4)


@pytest.mark.parametrize("in_4bit", [False, True])
def test_weights_in_4_bits_are_not_those_that_sampled(in_4bit) -> None:
    known = SimpleNamespace(config=SimpleNamespace(load_in_4bit=in_4bit))
    rows = Dataset.from_dict({"student_rewards": [[-1.0, -2.0]]})
    found = with_anchor(known, rows, SimpleNamespace(anchor="start"))
    assert found.column_names == ([] if in_4bit else ["anchor_rewards"])


def test_a_compared_method_is_trained_as_a_run_of_its_own_would(scored, world, tmp_path) -> None:
    """The prompts come in the same order, and the rewards of both models are in its own unit."""
    both = scored(tmp_path / "both", compare={"same": {}, "sums": {"normalize": "sum"}})
    alone = run(world, tmp_path / "alone", "sample", "score", "train", normalize="sum")
    for method, own in (("same", both), ("sums", alone)):
        found, wanted = (
            folder / "student" / "model.safetensors"
            for folder in (both / "compare" / method, own / "round-01")
        )
        assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [(DPO, {}, 6), ({"compare": {"DPO": DPO}}, {}, 6), ({}, {"compare": {"DPO": DPO}}, 2)],
    ids=["own", "compared", "compared later"],
)
def test_given_responses_have_an_anchor(world, tmp_path, before, after, known) -> None:
    """The run computes them where it knows, and PADTrainer where an anchor is asked for later."""
    rows = [{"prompt": f"{n}+1=?", "completions": ["1", "23"], "scores": [n, 9]} for n in range(6)]
    (tmp_path / "given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"responses": str(tmp_path / "given.jsonl"), "num_generations": 2, "heldout_size": 0}
    given |= dict.fromkeys(("prompts", "heldout", "teacher"))
    run(world, tmp_path, "sample", "score", **given, **before)
    changes = before | after
    folder = run(world, tmp_path, "train", **given, **changes)
    found = read_rows(folder / "round-01" / "scores")
    assert sum(row["student_rewards"] is not None for row in found) == known
    student = folder / ("compare/DPO" if "compare" in changes else "round-01") / "student"
    assert losses_of(student)[0] == pytest.approx(math.log(2), abs=1e-4)


def test_rewards_are_made_at_their_own_temperature(world, tmp_path) -> None:
    options = {"reward_temperature": 2.0, "mcq_style": "none", "heldout": None}
    folder = run(world, tmp_path, "sample", "score", "train", **DPO, **options)
    rows = read_rows(folder / "round-01" / "scores")[:2]
    for role in ("student", "teacher"):
        model = Checkpoint(role, str(world / role)).model
        for row in rows:
            ids = row["completion_ids"]
            logps = [response_logp(model, row["prompt_ids"], each, 2.0) for each in ids]
            rewards = [logp / len(each) for logp, each in zip(logps, ids, strict=True)]
            assert row[f"{role}_rewards"] == pytest.approx(rewards, abs=1e-5)
    student = folder / "round-01" / "student"
    assert losses_of(student)[0] == pytest.approx(math.log(2), abs=1e-4)  # the training's too


def test_teacher_beta_is_chosen_once(world, tmp_path) -> None:
    folder = run(world, tmp_path, rounds=2, beta=50.0, anchor="start")
    manifest = json.loads((folder / "run.json").read_text())
    chosen = manifest["chosen"]["teacher_beta"]
    assert 0 < chosen < 50.0
    for round in ("round-01", "round-02"):
        card = (folder / round / "student" / "README.md").read_text()
        assert f"| teacher_beta | {chosen} |" in card
    _check_heldout_losses(folder, 50.0, chosen)


def _check_heldout_losses(folder, beta: float, teacher_beta: float) -> None:
    """The last student's are those of its rewards less the base student's, by enumeration."""
    groups = read_rows(folder / "heldout" / "groups")
    for group, row in zip(
        groups, read_rows(folder / "evaluation" / "student-02.parquet"), strict=True
    ):
        student, start, teacher = (
            torch.tensor(values, dtype=torch.float64)
            for values in (
                row["student_rewards"],
                group["student_rewards"],
                group["teacher_rewards"],
            )
        )
        by_hand = reference.jsd(beta * (student - start), teacher_beta * teacher)
        assert row["ppd_loss"] == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-6)


def test_a_system_prompt_is_the_teachers_alone(world, tmp_path) -> None:
    text = "be brief"
    plain = run(world, tmp_path / "plain", "sample", "score")
    told = run(
        world,
        tmp_path / "told",
        "sample",
        "score",
        teacher_system_prompt=text,
        teacher_response="greedy",
    )
    teacher = Checkpoint("teacher", str(world / "teacher"), system_prompt=text)
    before, after = (read_rows(folder / "round-01" / "scores") for folder in (plain, told))
    for one, other in zip(before, after, strict=True):
        assert other["prompt_ids"] == one["prompt_ids"]  # what the student reads
        assert other["completion_ids"][:3] == one["completion_ids"]
        assert other["teacher_logps"][:3] != one["teacher_logps"]
    for row in read_rows(told / "round-01" / "answers"):
        shown = teacher.tokenizer.decode(row["prompt_ids"])
        assert shown.replace(" ", "").startswith("<|system|>bebrief<|user|>")
    held = (read_rows(folder / "heldout" / "groups")[0] for folder in (plain, told))
    one, other = held
    assert (one["prompt_ids"], one["completion_ids"]) == (
        other["prompt_ids"],
        other["completion_ids"],
    )
    assert one["teacher_logps"] != other["teacher_logps"]


def test_a_system_prompt_precedes_a_conversations_own(world) -> None:
    teacher = Checkpoint("teacher", str(world / "teacher"), system_prompt="one")
    own = [{"role": "system", "content": "two"}, {"role": "user", "content": "x"}]
    assert teacher.messages(own) == [{"role": "system", "content": "one\n\ntwo"}, own[1]]
    plain = Checkpoint("student", str(world / "teacher"))
    assert teacher.same_tokenizer(plain)
    assert not teacher.reads_prompts_as(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"likelihood_weight": 1.0, "likelihood_on": "teacher"},
            "likelihood_on: teacher needs the teacher's own responses; set teacher_response",
        ),
        ({"loss": "dpo"}, "anchor must be start for loss='dpo'"),
        ({"teacher_response": "best"}, "teacher_response: must be one of none, greedy, sampled"),
        (
            {"num_generations": 10, "method": "exact", "teacher_response": "sampled"},
            "at most 10 responses a group for divergence='jsd', got 11",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_sampled(
    changes, message, world, tmp_path, capsys
) -> None:
    assert message in failing(capsys, "run", changed_config(world, tmp_path, **changes))
    assert not (tmp_path / "run").exists()
