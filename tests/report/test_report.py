"""The report on run folders that are made up here: numbers drawn to look plausible, measured by nobody."""

import base64
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_fast.report import write_report
from pad_fast.report.folder import read_run
from pad_fast.report.page import _choose, _first_place, _saturation
from pad_fast.report.plots import _global_steps, _running_mean

PROMPTS, RESPONSES, ROUNDS, STEPS = 40, 4, 3, 20
SKILLS = ("addition", "sorting", "word problems")
NASTY = "<script>alert('x')</script> & \"quotes\" 日本語 $\\alpha$"


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_evaluation(
    run: Path,
    name: str,
    skill: float,
    rng: np.random.Generator,
    teacher: np.ndarray,
    *,
    answers: bool = True,
) -> None:
    """``skill`` in 0..1 is how far this made-up model has come."""
    number = int(name[8:]) if name.startswith("student") else None
    is_teacher = name == "teacher"
    accuracy = (
        {"greedy_accuracy": 0.4 + 0.5 * skill, "sampled_accuracy": 0.25 + 0.55 * skill}
        if answers
        else {}
    )
    row = {"name": name, "round": number, "num_prompts": PROMPTS, "mean_length": 7.2 + 0.3 * skill}
    row |= {"greedy_accuracy": None, "sampled_accuracy": None} | accuracy
    row |= {
        "kendall_tau": None if is_teacher else 0.60 + 0.2 * skill,
        "top1": None if is_teacher else 0.65 + 0.15 * skill,
        "ppd_loss": None if is_teacher else 0.62 - 0.3 * skill,
        "fresh_kendall_tau": None if is_teacher else 0.61 + 0.01 * skill,
        "fresh_top1": None if is_teacher else 0.65 - 0.02 * skill,
        "duplicate_ratio": 0.2 + 0.2 * skill,
        "clipped_ratio": 0.05 * (1 - skill),
        "skills": {s: accuracy | {"count": PROMPTS // 3} for s in SKILLS} if answers else {},
    }
    write_json(run / "evaluation" / f"{name}.json", row)
    rewards = (
        teacher
        if is_teacher
        else teacher * (0.1 + 0.9 * skill) + rng.normal(0, 0.3 * (1.1 - skill), teacher.shape)
    )
    rewards = np.minimum(rewards, -0.01)
    rows = [
        {
            "prompt_id": f"p{p}",
            "greedy_text": f"greedy {name}",
            "student_rewards": rewards[p].tolist(),
            "ppd_loss": None if is_teacher else max(0.0, 0.69 - 0.5 * skill - 0.2 * rng.random()),
        }
        for p in range(PROMPTS)
    ]
    write_rows(run / "evaluation" / f"{name}.parquet", rows)


def make_groups(run: Path, rng: np.random.Generator, *, answers: bool) -> np.ndarray:
    teacher = -rng.gamma(1.0, 0.5, (PROMPTS, RESPONSES))
    rows = []
    for p in range(PROMPTS):
        content = NASTY if p % 2 else f"What is {p} + 12?"
        row = {
            "prompt_id": f"p{p}",
            "prompt": [{"role": "user", "content": content}],
            "completions": [
                f"{p} + 12 = {p + 12 + i} #### {p + 12 + i}" if i else NASTY
                for i in range(RESPONSES)
            ],
            "completion_ids": [[1] * (5 + i) for i in range(RESPONSES)],
            "finish_reasons": ["stop", "stop", "length", "stop"],
            "teacher_rewards": [
                None if p == 3 and i == 1 else float(teacher[p, i]) for i in range(RESPONSES)
            ],
            "student_rewards": [-0.5] * RESPONSES,
        }
        rows.append(row | ({"answer": str(p + 12), "skill": SKILLS[p % 3]} if answers else {}))
    write_rows(run / "heldout" / "groups" / "part-00000.parquet", rows[: PROMPTS // 2])
    write_rows(run / "heldout" / "groups" / "part-00001.parquet", rows[PROMPTS // 2 :])
    return teacher


def train_row(number: int, step: int, rng: np.random.Generator) -> dict[str, Any]:
    come = (number - 1 + step / STEPS) / ROUNDS
    return {
        "round": number,
        "step": step,
        "phase": "train",
        "loss": 0.6 - 0.3 * come + rng.normal(0, 0.03),
    } | {
        "ranking/kendall_tau": 0.6 + 0.2 * come + rng.normal(0, 0.03),
        "ranking/top1": 0.65 + 0.1 * come + rng.normal(0, 0.03),
        "rewards/accuracies": 0.8 + 0.1 * come + rng.normal(0, 0.02),
        "rewards/chosen": -0.2 - 0.2 * come,
        "rewards/rejected": -0.8 - 1.5 * come,
        "rewards/margins": 0.6 + 1.3 * come,
        "logps/mean": -0.45 - 0.8 * come,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run, for tests that only read it."""
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "made-up"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run with answers, three rounds and a SeqKD baseline."""
    return make_run(tmp_path / "made-up")


def make_run(
    run: Path, *, rounds: int = ROUNDS, answers: bool = True, baseline: bool = True, **config: Any
) -> Path:
    rng = np.random.default_rng(0)
    config = {
        "student": "./student",
        "teacher": "./teacher",
        "rounds": ROUNDS,
        "num_generations": RESPONSES,
    } | config
    config = {
        "loss": "ppd",
        "divergence": "jsd",
        "beta": 3.0,
        "teacher_beta": None,
        "learning_rate": 3e-4,
        "seed": 1,
    } | config
    write_json(
        run / "run.json",
        {
            "config": config | {"hub_token": "hf_secret"},
            "versions": {"torch": "2.13.0", "pad_fast": "0.1.0"},
            "models": {"teacher": {"fingerprint": "abc123"}},
        },
    )
    teacher = make_groups(run, rng, answers=answers)
    make_evaluation(run, "teacher", 1.0, rng, teacher, answers=answers)
    for number in range(rounds + 1):
        make_evaluation(
            run, f"student-{number:02d}", number / (ROUNDS + 1), rng, teacher, answers=answers
        )
    if baseline:
        make_evaluation(run, "seqkd", 0.7, rng, teacher, answers=answers)
    rows: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        rows += [
            {
                "round": number,
                "step": shard,
                "phase": "sample",
                "completions/mean_length": 6.0 + shard,
            }
            for shard in range(2)
        ]
        rows.append(
            {"round": number, "step": 0, "phase": "score", "calibration/position_bias": -0.03}
        )
        rows += [train_row(number, step, rng) for step in range(1, STEPS + 1)]
        ids = [[[1] * int(n) for n in rng.integers(3, 12, RESPONSES)] for _ in range(30)]
        write_rows(
            run / f"round-{number:02d}" / "samples" / "part-00000.parquet",
            [{"completion_ids": group} for group in ids],
        )
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return run


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_finished_run_has_every_part(finished: Path) -> None:
    page = read(finished)
    assert finished.parts[-3:] == ("made-up", "report", "index.html")
    for words in (
        "Before and after",
        "By skill",
        "After round 3",
        "SeqKD",
        "Training",
        "word problems",
        "calibration/position_bias",
        "abc123",
    ):
        assert words in page
    names = {
        "accuracy",
        "agreement",
        "heldout-loss",
        "loss-histogram",
        "train-loss",
        "train-agreement",
        "train-margins",
        "train-rewards",
    }
    names |= {"lengths", "shares"} | {f"preferences-{i}" for i in range(1, 7)}
    assert {picture.stem for picture in finished.parent.glob("*.png")} == names
    assert "not finished" not in page
    assert not list(finished.parent.glob(".*"))  # no temporary file is left


def test_the_page_is_self_contained_and_its_pictures_are_the_files(finished: Path) -> None:
    page = read(finished)
    assert not re.search(r"https?://|<link|<script|url\(|@import", page.replace(NASTY, ""))
    inside = {
        base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)
    }
    beside = {picture.read_bytes() for picture in finished.parent.glob("*.png")}
    assert inside == beside
    assert all(png.startswith(b"\x89PNG") for png in inside)


def test_texts_are_escaped(finished: Path) -> None:
    page = read(finished)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34; 日本語" in page
    assert "<script" not in page


def cells(page: str, label: str) -> list[str]:
    row = re.search(rf"<tr><th>{label}</th>(.*?)</tr>", page, re.DOTALL)
    assert row
    return re.findall(r"<td>(.*?)</td>", row[1])


def test_differences_are_to_the_base_student(finished: Path) -> None:
    page = read(finished)
    assert cells(page, "Base student")[:3] == ["40.0%", "25.0%", "0.600"]
    assert cells(page, "Teacher")[:3] == ["90.0%", "80.0%", "–"]
    last = cells(page, "After round 3")
    assert last[0] == '77.5%<small class="better">+37.5</small>'
    assert last[4] == '0.395<small class="better">−0.225</small>'  # a lower loss is better
    assert (
        last[6] == '63.5%<small class="worse">−1.5</small>'
    )  # top-1 on fresh samples fell, and is shown
    assert last[7] == '7.4<small class="">+0.2</small>'  # length is neither


def test_shards_are_averaged_and_a_baselines_training_is_not_the_students(
    run_dir: Path, finished: Path
) -> None:
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"round": 3, "step": STEPS, "phase": "seqkd", "loss": 9.0}) + "\n")
        file.write(
            json.dumps({"round": 3, "step": STEPS, "phase": "train", "train_runtime": 3.0}) + "\n"
        )  # adds to the step's row
    page = read(write_report(run_dir))
    assert page == read(finished)
    assert cells(page, "completions/mean_length") == ["6.5"] * ROUNDS
    assert cells(page, "calibration/position_bias") == ["−0.03"] * ROUNDS


def test_a_group_shows_ranks_before_and_after(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", rounds=1)
    row = {
        "prompt_id": "p0",
        "prompt": "Plain text prompt",
        "completions": ["good", "bad", "copy", "masked"],
    }
    row |= {"finish_reasons": ["stop"] * 4}
    row |= {"teacher_rewards": [-0.1, -2.0, -2.0000003, None], "student_rewards": [-9.0] * 4}
    for part in (run / "heldout" / "groups").glob("*"):
        part.unlink()
    write_rows(run / "heldout" / "groups" / "part-00000.parquet", [row])
    for name, rewards, loss in (
        ("student-00", [-1.5, -1.0, -1.0, -0.1], 0.6),
        ("student-01", [-0.2, -1.75, -1.75, -0.1], 0.125),
    ):
        evaluated = {
            "prompt_id": "p0",
            "greedy_text": "g",
            "student_rewards": rewards,
            "ppd_loss": loss,
        }
        write_rows(run / "evaluation" / f"{name}.parquet", [evaluated])
    page = read(write_report(run))
    shown = {
        text: re.findall(r"<td>([^<]*)<small>rank ([^<]*)</small>", rest)
        for text, rest in re.findall(r"<pre[^>]*>(\w+)</pre>(.*?)</tr>", page)
    }
    assert shown["good"] == [("−0.100", "1"), ("−1.500", "3"), ("−0.200", "1")]
    assert (
        shown["bad"] == shown["copy"] == [("−2.000", "2"), ("−1.000", "1"), ("−1.750", "2")]
    )  # tied up to rounding
    assert [rank for _, rank in shown["masked"]] == ["–", "–", "–"]
    assert list(shown) == ["good", "bad", "copy", "masked"]  # the teacher's order, masked ones last
    assert "Prompt 1, loss 0.600 → 0.125." in page
    assert "Plain text prompt" in page


def test_shown_prompts_run_from_the_largest_fall_to_the_largest_rise(run_dir: Path) -> None:
    groups = read_run(run_dir).groups
    changes = [group.loss_after - group.loss_before for group in groups]
    shown = [group.loss_after - group.loss_before for group in _choose(groups)]
    assert len(shown) == 6
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (min(changes), max(changes))
    assert len(_choose(groups[:2])) == 2
    assert _choose([]) == []


def test_without_answers_and_baseline(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "run", answers=False, baseline=False)))
    assert "<th>Greedy accuracy" not in page
    assert "By skill" not in page
    assert "SeqKD is" not in page
    assert "<th>Kendall τ" in page


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_an_unfinished_run_says_so(tmp_path: Path, rounds: int) -> None:
    page = read(write_report(make_run(tmp_path / "run", rounds=rounds, baseline=False)))
    assert f"{rounds} of 3 rounds are evaluated" in page
    assert ('class="tile"' in page) == ("Student after" in page) == (rounds > 0)


@pytest.mark.parametrize(
    "part",
    ["run.json", "metrics.jsonl", "evaluation", "heldout", "round-01", "round-02", "round-03"],
)
def test_any_part_may_be_missing(run_dir: Path, part: str) -> None:
    (run_dir / part).rename(run_dir.parent / "elsewhere")
    assert "How to read this page" in read(write_report(run_dir))


def test_only_a_manifest(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"config": {"beta": 10}})
    assert "Nothing is evaluated yet" in read(write_report(tmp_path))


def test_steps_logged_twice_and_broken_lines(run_dir: Path, finished: Path) -> None:
    before = read(finished)
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines()
    # killed in the middle of a line; the run then goes on from an earlier step
    metrics.write_text(
        "\n".join([*lines[:10], lines[10][:25], *lines[5:]]) + "\n" + lines[-1][:30],
        encoding="utf-8",
    )
    assert read(write_report(run_dir)) == before


@pytest.mark.parametrize(
    ("config", "noted"),
    [
        ({}, True),
        ({"divergence": "kl"}, False),
        ({"loss": "vpd"}, False),
        ({"group_reduction": "sum"}, False),
    ],
)
def test_a_saturated_divergence_is_pointed_out(
    tmp_path: Path, config: dict[str, str], noted: bool
) -> None:
    run = make_run(tmp_path / "run", **config)
    for name, loss in (("student-00", 0.69), ("student-03", 0.3)):
        path = run / "evaluation" / f"{name}.parquet"
        write_rows(path, [row | {"ppd_loss": loss} for row in pq.read_table(path).to_pylist()])
    assert _saturation(read_run(run)) == ({"before": 100.0, "after": 0.0} if noted else None)
    if noted:
        assert "The loss is saturated: 100% of the held-out prompts" in read(write_report(run))


def test_no_token_is_passed_on(finished: Path) -> None:
    page = read(finished)
    assert "hf_secret" not in page
    assert "(not shown)" in page


def test_the_same_run_gives_the_same_bytes(finished: Path) -> None:
    first = finished.read_bytes()
    assert write_report(str(finished.parents[1])).read_bytes() == first


def test_steps_go_on_through_the_rounds() -> None:
    again = [{"round": r, "step": s} for r in (1, 2, 3) for s in (10, 20)]
    assert _global_steps(again) == ([10, 20, 30, 40, 50, 60], [0, 20, 40])
    on = [{"round": 1, "step": 10}, {"round": 1, "step": 20}, {"round": 2, "step": 30}]
    assert _global_steps(on) == ([10, 20, 30], [0, 20])


def test_the_running_mean_is_centred_and_keeps_a_line() -> None:
    line = np.arange(9.0)
    np.testing.assert_allclose(_running_mean(line, 3)[1:-1], line[1:-1])
    np.testing.assert_allclose(_running_mean(line, 1), line)
    np.testing.assert_allclose(_running_mean(line, 4)[0], line[:3].mean())


def test_first_place_is_plackett_luces() -> None:
    reward = np.array([-1.0, -2.0, -700.0])
    found = _first_place(10.0 * reward)
    assert found.sum() == pytest.approx(1.0)
    assert found[1] / found[0] == pytest.approx(math.exp(-10.0))
    np.testing.assert_allclose(
        _first_place(np.array([-7000.0, -7000.0])), 0.5
    )  # rewards far below 0 underflow in a plain exp


def test_sums_are_not_called_per_token(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "run", rounds=1, normalize="sum")))
    assert "Rewards in nats (the" in page


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run_dir must be a run folder"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_importing_the_report_loads_no_plotting() -> None:
    code = "import sys, pad_fast.report; sys.exit(any(m in sys.modules for m in ('matplotlib', 'jinja2', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
