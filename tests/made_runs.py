"""Made-up run folders: their numbers were drawn to look plausible, not measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pad_fast.evaluation.choice import ChoiceEffect
from pad_fast.evaluation.intervals import mean_interval
from pad_fast.files.own_files import write_table

PROMPTS, RESPONSES, ROUNDS, STEPS = 40, 4, 3, 20
SKILLS = ("addition", "sorting", "word problems")
NASTY = "<script>alert('x')</script> & \"quotes\" 日本語 $\\alpha$"


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(path, pa.Table.from_pylist(rows))


def make_evaluation(
    run: Path,
    name: str,
    skill: float,
    rng: np.random.Generator,
    teacher: np.ndarray,
    *,
    answers: bool = True,
    intervals: bool = False,
) -> None:
    """Write the evaluation of a made-up model, which is as good as ``skill`` in 0..1."""
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
        "teacher_reward": -1.0 + 0.5 * skill,
        "duplicate_ratio": 0.2 + 0.2 * skill,
        "clipped_ratio": 0.05 * (1 - skill),
        "skills": {s: accuracy | {"count": PROMPTS // 3} for s in SKILLS} if answers else {},
    }
    values = {
        key: (row[key] + rng.normal(0, 0.2, PROMPTS)).tolist()
        for key in ("kendall_tau", "top1", "greedy_accuracy", "teacher_reward")
        if intervals and row[key] is not None
    }
    if intervals:
        ends = {key: mean_interval(np.array(found)) for key, found in values.items()}
        row["intervals"] = ends
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
            **{f"metric/{key}": found[p] for key, found in values.items()},
        }
        for p in range(PROMPTS)
    ]
    write_rows(run / "evaluation" / f"{name}.parquet", rows)


def make_groups(run: Path, rng: np.random.Generator, *, answers: bool) -> np.ndarray:
    """Write the fixed groups in two shards. Returns the teacher's rewards (P, N)."""
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
    """The line that training logs for a step of a round."""
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


def metric_rows(rounds: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    for number in range(1, rounds + 1):
        for shard in range(2):
            lengths = {"completions/mean_length": 6.0 + shard}
            yield {"round": number, "step": shard, "phase": "sample", **lengths}
        bias = {"calibration/position_bias": -0.03}
        effect = ChoiceEffect(12.0, 1.64, 0.09, 1.6, 0.4, 0.02).metrics()
        yield {"round": number, "step": 0, "phase": "score", **bias, **effect}
        yield from (train_row(number, step, rng) for step in range(1, STEPS + 1))


def make_run(
    run: Path,
    *,
    rounds: int = ROUNDS,
    answers: bool = True,
    baseline: bool = True,
    intervals: bool = False,
    **config: Any,
) -> Path:
    """Write a run folder.

    Args:
        run: the folder.
        rounds: the rounds that are evaluated, of three that are planned.
        answers: whether the held-out prompts have answers and skills.
        baseline: whether SeqKD was evaluated.
        intervals: whether the metrics have intervals, and there were validation prompts.
        config: options of the run, to change the defaults below.
    """
    rng = np.random.default_rng(0)
    options = {
        "student": "./student",
        "teacher": "./teacher",
        "rounds": ROUNDS,
        "num_generations": RESPONSES,
        "loss": "ppd",
        "divergence": "jsd",
        "beta": 3.0,
        "teacher_beta": None,
        "learning_rate": 3e-4,
        "seed": 1,
    }
    manifest = {
        "config": options | config | {"hub_token": "hf_secret"},
        "versions": {"torch": "2.13.0", "pad_fast": "0.1.0"},
        "models": {"teacher": {"fingerprint": "abc123"}},
    }
    write_json(run / "run.json", manifest)
    teacher = make_groups(run, rng, answers=answers)
    skills = {"teacher": 1.0}
    skills |= {f"student-{number:02d}": number / (ROUNDS + 1) for number in range(rounds + 1)}
    skills |= {"seqkd": 0.7} if baseline else {}
    for name, skill in skills.items():
        make_evaluation(run, name, skill, rng, teacher, answers=answers, intervals=intervals)
    for number in range(rounds + 1) if intervals else ():
        row = {"round": number, "metric": "greedy_accuracy" if answers else "teacher_reward"}
        value = (0.4 if answers else -1.0) + 0.1 * number
        row |= {"value": value, "interval": [value - 0.05, value + 0.05], "num_prompts": 64}
        write_json(run / "validation" / f"student-{number:02d}.json", row)
    if intervals and rounds:
        write_json(run / "best.json", {"round": rounds, "num_prompts": 64})
    lines = [json.dumps(row) + "\n" for row in metric_rows(rounds, rng)]
    (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    for number in range(1, rounds + 1):
        ids = [[[1] * int(n) for n in rng.integers(3, 12, RESPONSES)] for _ in range(30)]
        path = run / f"round-{number:02d}" / "samples" / "part-00000.parquet"
        write_rows(path, [{"completion_ids": group} for group in ids])
    return run


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
