"""The pipeline's parts against counts and values by hand: stores, sampling, scoring, and a whole run."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import worlds
import yaml
from transformers import AutoModelForCausalLM

from pad_fast import cli
from pad_fast.evaluation.evaluated import RewardPair
from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.evaluate.losses import prompt_losses
from pad_fast.pipeline.files import read_rows, replacing, write_rows
from pad_fast.pipeline.phases import ENTERS, FREE, first_phase
from pad_fast.pipeline.run_folder import Metrics
from pad_fast.pipeline.sample import shards
from pad_fast.pipeline.score import cache
from pad_fast.pipeline.score import scorer as scorer_module
from pad_fast.training.config import PADConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with models, prompts and a finished run of two rounds with the baseline."""
    folder = tmp_path_factory.mktemp("world")
    assert cli.main(["run", str(worlds.write_config(folder, rounds=2, baseline="seqkd"))]) == 0
    return folder


def config_of(world: Path, **changes) -> RunConfig:
    values = {
        "student": str(world / "student"),
        "teacher": str(world / "teacher"),
        "prompts": "x",
        "output_dir": "y",
        "disable_tqdm": True,
    }
    return RunConfig(
        **{**values, "num_generations": 3, "max_new_tokens": 6, "shard_size": 2, **changes}
    )


# stores


def test_nothing_half_written_carries_a_name(tmp_path):
    def fail():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    (tmp_path / "folder" / ".part-00000.parquet.tmp").write_text("half a shard")
    assert read_rows(tmp_path / "folder") == []


def test_metrics_lines_are_told_once_and_mended(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.add(1, 2, "train", {"loss": 1.0})
    metrics.add(1, 2, "train", {"runtime": 1.0})
    metrics.add(1, 4, "train", {"loss": 3.0})
    with metrics.path.open("a") as file:
        file.write('{"round": 1, "st')
    again = Metrics(metrics.path)
    again.add(1, 4, "train", {"loss": 9.0})
    again.add(2, 1, "train", {"loss": 5.0})
    assert [json.loads(line).get("loss") for line in metrics.path.read_text().splitlines()] == [
        1.0,
        None,
        3.0,
        5.0,
    ]
    assert again.last_step(1, "train") == 4
    assert again.last_step(3, "train") == 0
    assert again.means(1, "train") == {"loss": 2.0, "runtime": 1.0}


# sampling


def test_responses_end_at_the_first_of_several_ends():
    tokenizer = worlds.character_tokenizer()
    a, b = tokenizer.encode("ab")
    cut = shards._responses([[a, b, 1, 0, 0], [a, a, a, a, b], [a, b, 3, b, 1]], [1, 3], tokenizer)
    assert cut["completion_ids"] == [[a, b, 1], [a, a, a, a, b], [a, b, 3]]
    assert cut["finish_reasons"] == ["stop", "length", "stop"]
    assert cut["completions"] == ["ab", "aaaab", "ab"]


def test_sampling_metrics_by_hand():
    rows = [
        {"completion_ids": [[5], [5], [6, 7], [5]], "finish_reasons": ["stop"] * 4},
        {
            "completion_ids": [[5], [8], [9], [7]],
            "finish_reasons": ["length", "stop", "stop", "stop"],
        },
    ]
    found = shards.sampling_metrics(rows)
    assert found["completions/duplicate_ratio"] == 2 / 8
    assert found["completions/clipped_ratio"] == 1 / 8
    assert found["completions/mean_length"] == 9 / 8


def test_sampled_distribution_is_the_models(world, tmp_path):
    """First tokens of many samples against the model's own probabilities, whatever the checkpoint's generation config asks for."""
    student = Checkpoint("student", str(world / "student"))
    student.model.generation_config.repetition_penalty = 5.0
    student.model.generation_config.top_k = 1
    config = config_of(world, num_generations=4000, max_new_tokens=1, temperature=2.0)
    rows = [
        {"prompt_id": "p", "prompt_ids": student.prompt_ids([{"role": "user", "content": "1+1=?"}])}
    ]
    sampler = shards.Sampler(config, 4000)
    shards.sample_shards(student, rows, tmp_path, sampler, seed=3, title="")
    drawn = torch.tensor([ids[0] for ids in read_rows(tmp_path)[0]["completion_ids"]])
    logits = AutoModelForCausalLM.from_pretrained(world / "student")(
        torch.tensor([rows[0]["prompt_ids"]])
    ).logits[0, -1]
    expected = (logits.detach() / 2.0).softmax(-1)
    measured = drawn.bincount(minlength=len(expected)) / len(drawn)
    assert (measured - expected).abs().sum() < 0.15
    assert (expected > 0.01).sum() > 5


def test_shards_do_not_depend_on_which_were_there(world, tmp_path):
    student = Checkpoint("student", str(world / "student"))
    rows = read_rows(world / "run" / "prompts.parquet")[:6]
    sampler = shards.Sampler(config_of(world), 3, "mean")
    shards.sample_shards(student, rows, tmp_path / "a", sampler, seed=3, title="")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "part-00001.parquet", tmp_path / "b")
    shards.sample_shards(student, rows, tmp_path / "b", sampler, seed=3, title="")
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")
    shards.sample_shards(student, rows, tmp_path / "c", sampler, seed=4, title="")
    assert read_rows(tmp_path / "c") != read_rows(tmp_path / "a")


# scoring


def by_hand(model, prompt: list[int], response: list[int]) -> float:
    """log pi(response | prompt) from whole logits in float64."""
    logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(response))


def sampled_row(student: Checkpoint, prompt: str, texts: list[str], reasons: list[str]) -> dict:
    messages = [{"role": "user", "content": prompt}]
    ids = [
        student.tokenizer.encode(text) + [1] * (reason == "stop")
        for text, reason in zip(texts, reasons, strict=True)
    ]
    row = {"prompt_id": prompt, "prompt": messages, "prompt_ids": student.prompt_ids(messages)}
    return {**row, "completions": texts, "completion_ids": ids, "finish_reasons": reasons}


def score(
    world: Path, folder: Path, rows: list[dict], teacher: Path | None = None, **changes
) -> list[dict]:
    config = config_of(world, **changes)
    if not (folder / "samples").exists():
        write_rows(folder / "samples" / "part-00000.parquet", rows)
    checkpoints = (
        Checkpoint("teacher", str(teacher or world / "teacher")),
        Checkpoint("student", str(world / "student")),
    )
    scorer = scorer_module.Scorer(*checkpoints, config, "mean", cache.ScoreCache(folder / "cache"))
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
    (row,) = score(world, tmp_path, [three], mcq_weight=0.25, mcq_floor=1e-3)
    letters = torch.tensor(teacher.tokenizer.encode("AB"))
    for i, ids in enumerate(three["completion_ids"]):
        logp = by_hand(teacher.model, three["prompt_ids"], ids)
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
    own_scores, own_letters = scorer_module.score_responses, scorer_module.next_token_logprobs

    def scores(model, prompts, responses, **options):
        asked["responses"] += sum(map(len, responses))
        return own_scores(model, prompts, responses, **options)

    def letters(model, prompts, tokens, **options):
        asked["questions"] += len(prompts)
        return own_letters(model, prompts, tokens, **options)

    monkeypatch.setattr(scorer_module, "score_responses", scores)
    monkeypatch.setattr(scorer_module, "next_token_logprobs", letters)
    student = Checkpoint("student", str(world / "student"))
    repeated = sampled_row(student, "2+2=?", ["4", "4", "5 or 4"], ["stop", "length", "stop"])
    first = score(world, tmp_path, [three, repeated])
    # new in the second row: "4" cut off as a response, and "4" against itself as a question
    assert asked == {"responses": 4, "questions": 6 + 1}
    shutil.rmtree(tmp_path / "scores")
    assert score(world, tmp_path, [three, repeated]) == first
    assert asked == {"responses": 4, "questions": 7}
    probs = first[1]["teacher_choice_probs"]
    assert probs[0] == pytest.approx(probs[1])


@pytest.fixture(scope="module")
def foreign_teacher(world, tmp_path_factory) -> Path:
    """The same teacher under a tokenizer with the characters in another order, and with another end of turn."""
    folder = tmp_path_factory.mktemp("foreign")
    order = random.Random(1).sample(range(len(worlds.CHARACTERS)), len(worlds.CHARACTERS))
    tokenizer = worlds.character_tokenizer([worlds.CHARACTERS[i] for i in order])
    model = AutoModelForCausalLM.from_pretrained(world / "teacher")
    rows = torch.tensor([*range(6), *(6 + i for i in order)])
    with torch.no_grad():
        for weight in {model.model.embed_tokens.weight, model.lm_head.weight}:
            weight.copy_(weight[rows])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def test_questions_beyond_the_window_are_told_once(world, tmp_path, three, monkeypatch, caplog):
    student = Checkpoint("student", str(world / "student"))
    two = sampled_row(student, "1+1=?", ["2", "3"], ["stop", "stop"])
    longest = len(
        student.prompt_ids(
            [{"role": "user", "content": multiple_choice.choice_question("2+2=?", ["4", "4"])}]
        )
    )
    monkeypatch.setattr(
        Checkpoint, "window", longest + 1
    )  # room for a question about two short responses, not about "5 or 4"
    found = score(world, tmp_path, [three, two, three])
    assert [row["teacher_choice_probs"] is None for row in found] == [True, False, True]
    assert [record.getMessage() for record in caplog.records if record.name == "pad_fast"] == [
        f": 2 of 3 prompts keep uncalibrated rewards, as a question about them is longer than the teacher's window of {longest + 1} tokens"
    ]


# a whole run


def test_run_folder_holds_what_it_promises(world):
    run = world / "run"
    for round, count in ((1, 8), (2, 8)):
        rows = read_rows(run / f"round-{round:02d}" / "scores")
        assert len(rows) == count
        assert all(
            len(row[name]) == 3
            for row in rows
            for name in ("completions", "completion_ids", "student_rewards", "teacher_rewards")
        )
        assert {row["finish_reasons"][0] for row in rows} <= {"stop", "length"}
        assert (
            Checkpoint(
                "student", str(run / f"round-{round:02d}" / "student")
            ).tokenizer.chat_template
            == worlds.TEMPLATE
        )
        assert not (run / f"round-{round:02d}" / "trainer").exists()
        card = (run / f"round-{round:02d}" / "student" / "README.md").read_text()
        assert f"round {round} of a run; in each 3 responses a prompt" in card
        assert str(world) not in card
    assert len({row["prompt_id"] for row in read_rows(run / "round-01" / "scores")}) == 8
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["config"]["learning_rate"] == 0.01
    assert set(manifest["phases"]) == {
        f"round-{r:02d}/{p}" for r in (1, 2) for p in ("sample", "score", "train", "evaluate")
    } | {"report"}
    assert manifest["models"]["student"]["sha256"] != manifest["models"]["teacher"]["sha256"]
    phases = {
        (record["round"], record["phase"]) for record in Metrics(run / "metrics.jsonl").records
    }
    assert phases >= {(r, p) for r in (1, 2) for p in ("sample", "score", "train", "evaluate")} | {
        (0, "score"),
        (2, "seqkd"),
    }
    assert not list(run.rglob(".*.tmp"))


def test_student_rewards_are_those_at_sampling_time(world):
    base = Checkpoint("student", str(world / "student"))
    row = read_rows(world / "run" / "round-01" / "scores")[0]
    for ids, reward in zip(row["completion_ids"], row["student_rewards"], strict=True):
        assert reward == pytest.approx(
            by_hand(base.model, row["prompt_ids"], ids) / len(ids), abs=1e-4
        )
    student = AutoModelForCausalLM.from_pretrained(world / "run" / "round-01" / "student")
    assert not torch.equal(base.model.lm_head.weight, student.lm_head.weight)


def test_evaluations_against_the_rows(world):
    folder = world / "run" / "evaluation"
    names = ["seqkd", "student-00", "student-01", "student-02", "teacher"]
    assert sorted(path.stem for path in folder.glob("*.json")) == names
    groups = read_rows(world / "run" / "heldout" / "groups")
    for name in names:
        summary, rows = (
            json.loads((folder / f"{name}.json").read_text()),
            read_rows(folder / f"{name}.parquet"),
        )
        assert summary["num_prompts"] == len(rows) == len(groups) == 4
        assert set(summary["skills"]) == {"odd", "even"}
        assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in groups]
        if name == "teacher":
            assert summary["kendall_tau"] is None
            continue
        assert summary["ppd_loss"] == pytest.approx(
            statistics.fmean(row["ppd_loss"] for row in rows)
        )
        assert 0 <= summary["ppd_loss"] <= math.log(2)
        pair = RewardPair(
            [row["student_rewards"] for row in rows], [row["teacher_rewards"] for row in groups]
        )
        assert summary["kendall_tau"] == pair.agreement("kendall_tau")
    base = json.loads((folder / "student-00.json").read_text())
    assert (base["fresh_kendall_tau"], base["fresh_top1"]) == (base["kendall_tau"], base["top1"])
    last = Checkpoint("student", str(world / "run" / "round-02" / "student"))
    reward = read_rows(folder / "student-02.parquet")[3]["student_rewards"][2]
    ids = groups[3]["completion_ids"][2]
    assert reward == pytest.approx(
        by_hand(last.model, groups[3]["prompt_ids"], ids) / len(ids), abs=1e-4
    )


def test_masked_prompts_have_no_loss(world):
    args = parse_settings("run", [str(world / "config.yaml")]).pad_config(world / "unused")
    rewards = RewardPair([[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [None, 1.0]])
    found = prompt_losses(rewards, args)
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert found[1] is None


def test_seqkd_learns_the_teachers_answer_alone(world):
    from pad_fast.pipeline.train.seqkd import example

    student = Checkpoint("student", str(world / "student"))
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completions": ["ok"],
        "finish_reasons": ["stop"],
    }
    found = example(student, row)
    assert student.tokenizer.decode(found["input_ids"]) == "<|user|>hi<|assistant|>ok<end>"
    assert (
        student.tokenizer.decode([token for token in found["labels"] if token != -100]) == "ok<end>"
    )
    steps = [
        record["step"]
        for record in Metrics(world / "run" / "metrics.jsonl").records
        if record["phase"] == "seqkd"
    ]
    assert max(steps) == 4  # two rounds of eight prompts in batches of four


def test_rounds_pass_over_all_prompts_before_any_returns(world):
    from pad_fast.pipeline.run import Run

    run = Run(parse_settings("run", [str(world / "config.yaml"), "--prompts_per_round", "3"]))
    drawn = [row["prompt_id"] for round in range(1, 9) for row in run.round_rows(round)]
    assert len(set(drawn[:8])) == len(set(drawn[8:16])) == 8
    assert drawn[:8] != drawn[8:16]


def test_every_setting_is_read_by_something():
    source = "".join(path.read_text() for path in (ROOT / "pad_fast" / "pipeline").rglob("*.py"))
    unread = [
        field.name
        for field in dataclasses.fields(RunConfig)
        if not re.search(rf"\b(config|run|self)\.{field.name}\b", source)
    ]
    assert unread == []


def test_every_setting_has_a_phase():
    known = {field.name for kind in (RunConfig, PADConfig) for field in dataclasses.fields(kind)}
    renamed = {
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
    }
    assert (
        FREE.union(*ENTERS.values())
    ) - known <= renamed  # as the release of transformers has them
    assert sum(map(len, ENTERS.values())) == len(frozenset().union(*ENTERS.values()) - FREE)
    found = [
        first_phase(name)
        for name in ("student", "seed", "top_p", "mcq_floor", "beta", "learning_rate", "report_to")
    ]
    assert found == ["prepare", "prepare", "sample", "score", "train", "train", None]


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "recipes").glob("*.yaml")), ROOT / "pad_fast" / "tiny_world" / "tiny.yaml"],
    ids=lambda path: path.stem,
)
def test_every_recipe_parses(path):
    settings = parse_settings("run", [str(path)])
    assert set(yaml.safe_load(path.read_text())) <= set(settings.flat()) | set(
        vars(settings.pad_config(path.parent))
    )
