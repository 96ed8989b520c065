"""`pad-fast plan`: what it prints, what its estimates depend on, and that its advice helps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import worlds
from safetensors.torch import save_file
from worlds import contents

from pad_fast import cli
from pad_fast.pipeline.arguments import parse_with
from pad_fast.plan import machine as machines
from pad_fast.plan.command import Forecast, PlanOptions, duration, make_estimator, make_forecast
from pad_fast.plan.estimate import Estimator, Lengths
from pad_fast.plan.machine import Machine, parse_bytes


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch):
    monkeypatch.setattr(machines, "SECONDS", 0.01)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    worlds.write_config(folder)
    return folder


def config_of(world: Path, folder: Path, **changes: object) -> Path:
    given = {role: str(world / role) for role in ("student", "teacher")}
    given |= {"prompts": str(world / "train.jsonl"), "heldout": str(world / "heldout.jsonl")}
    return worlds.write_config(folder, **{**given, **changes}, models=False)


def planned(path: Path, *flags: str) -> Forecast:
    return make_forecast(*parse_with("plan", [str(path), *flags], PlanOptions))


def test_plan_reads_no_weights_and_leaves_no_trace(world, tmp_path, capsys):
    students = tmp_path / "student"
    students.mkdir()
    for file in (world / "student").iterdir():
        if file.suffix == ".safetensors":
            save_file({}, students / file.name)
        else:
            (students / file.name).write_bytes(file.read_bytes())
    path = config_of(world, tmp_path, student=str(students))
    before = contents(tmp_path)
    assert cli.main(["plan", str(path)]) == 0
    output = capsys.readouterr().out
    assert "as it is set, the run fits" in output
    for word in (
        "sample",
        "score",
        "choose",
        "train",
        "GiB",
        "gradient_checkpointing",
        "TFLOP/s",
        "measured on this machine",
    ):
        assert word in output
    assert contents(tmp_path) == before


def test_plan_as_json(world, tmp_path, capsys):
    path = config_of(world, tmp_path, sample_batch_tokens=256, score_batch_tokens=256)
    assert cli.main(["plan", str(path), "--json", "--device_memory", "200KiB"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] is False
    assert said["machine"]["memory"] == 200 * 2**10
    assert [phase["name"] for phase in said["phases"]] == ["sample", "score", "choose"]
    assert all(
        phase["peak"] > 0 and phase["seconds"] > 0 for phase in said["phases"] + said["training"]
    )
    # 5 or 6 characters and the marks of the roles make 7.0 tokens, shared by 3 responses of 6
    assert said["prompt_lengths"]["student"] == {"prompts": 8, "mean": 7, "longest": 7}
    assert said["sharing_saves"] == pytest.approx(3 * (7 + 6) / (7 + 3 * 6))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("device_memory", "much"),
        ("device_memory", "0GiB"),
        ("response_length", "0"),
        ("num_prompts", "0"),
        ("device_tflops", "0"),
    ],
)
def test_bad_flags(world, tmp_path, capsys, flag, value):
    assert cli.main(["plan", str(config_of(world, tmp_path)), f"--{flag}", value]) == 2
    assert f"{flag}: must be" in capsys.readouterr().err


def test_following_the_advice_makes_it_fit(world, tmp_path):
    """In a memory that the run's settings do not fit, the next plan fits with all advice taken."""
    settings = {
        "gradient_checkpointing": False,
        "max_new_tokens": 48,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
    }
    settings["max_tokens_per_step"] = 10**6  # otherwise the trainer slices its batches by itself
    path = config_of(
        world, tmp_path, **settings, sample_batch_tokens=2**12, score_batch_tokens=2**12
    )
    least = estimator(path).train(gradient_checkpointing=True, max_tokens_per_step=60).peak
    flags = ["--device_memory", str(3 * least), "--bf16", "false"]
    tight = planned(path, *flags)
    assert not tight.fits
    taken = [
        word
        for line in tight.advice
        for pair in line.removeprefix("set ").split(", ")
        for word in ("--" + pair).split(": ")
    ]
    assert "--score_batch_tokens" in taken
    assert {
        "--max_tokens_per_step",
        "--per_device_train_batch_size",
        "--gradient_checkpointing",
    } & set(taken)
    followed = planned(path, *flags, *taken)
    assert followed.fits, (tight.advice, followed)
    assert not followed.advice
    budget = next(int(line.split(": ")[1]) for line in tight.advice if "score_batch_tokens" in line)
    machine, phases = tight.machine, estimator(path, *flags)
    assert not all(
        machine.fits(phase.peak) for phase in (phases.score(2 * budget), phases.choose(2 * budget))
    )


def test_advice_where_nothing_helps(world, tmp_path):
    hopeless = planned(config_of(world, tmp_path), "--device_memory", "1KiB")
    assert len(hopeless.advice) == 4
    assert all("smaller" in line for line in hopeless.advice)


def estimator(path: Path, *flags: str) -> Estimator:
    return make_estimator(*parse_with("plan", [str(path), *flags], PlanOptions))


def test_settings_that_peaks_depend_on(world, tmp_path):
    def peak(phase: str, **changes) -> int:
        base = {"max_new_tokens": 48, "score_batch_tokens": 512, "sample_batch_tokens": 512}
        return getattr(estimator(config_of(world, tmp_path, **{**base, **changes})), phase)().peak

    usual = peak("train")
    assert peak("train", max_length=20) < usual
    assert peak("train", optim="sgd") < usual
    assert peak("train", train_dtype="bfloat16") < usual
    assert peak("train", gradient_accumulation_steps=4) > usual
    assert peak("train", num_generations=6) > usual
    assert (
        estimator(config_of(world, tmp_path, memory_budget=0))._training_options.memory_budget == 0
    )
    assert (
        estimator(
            config_of(world, tmp_path), "--memory_budget", "4096"
        )._training_options.memory_budget
        == 4096
    )
    assert peak("sample", sample_batch_tokens=2048) > peak("sample")
    assert peak("score", score_batch_tokens=2048) > peak("score")
    assert peak("score", share_prefix="false", score_batch_tokens=4096) != peak(
        "score", score_batch_tokens=4096
    )
    assert peak("train", share_prefix="false") != usual
    assert peak("choose", mcq_style="listwise", max_new_tokens=60) > peak(
        "choose", max_new_tokens=60
    )
    assert estimator(config_of(world, tmp_path, mcq_style="none")).choose() is None


def test_times_scale(world, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pad_fast.plan.command.this_machine",
        lambda dtype, memory: Machine("paper", memory or 2**40, 1e12, 1e11),
    )
    path = config_of(world, tmp_path, max_new_tokens=64)
    slow, fast = estimator(path), estimator(path, "--response_length", "16")
    for phase in ("sample", "choose", "train"):
        long, short = getattr(slow, phase)(), getattr(fast, phase)()
        assert long.seconds > 1.5 * short.seconds
        assert long.peak == short.peak  # the peak is that of the longest responses
    faster = estimator(path, "--device_tflops", "2", "--device_bandwidth", "200")
    assert all(
        getattr(faster, phase)().seconds == pytest.approx(getattr(slow, phase)().seconds / 2)
        for phase in ("sample", "train")
    )
    double = estimator(path, "--gradient_accumulation_steps", "2")
    assert double.train().seconds == pytest.approx(2 * slow.train().seconds)
    assert (slow.steps, double.steps) == (2, 1)
    assert slow.choose().seconds == pytest.approx(
        2 * estimator(path, "--mcq_every_place", "false").choose().seconds
    )
    wordy = config_of(
        world, tmp_path, max_new_tokens=64, mcq_template="{query} {options}" + 200 * " x"
    )
    assert estimator(wordy).choose().seconds > 1.5 * slow.choose().seconds
    # four micro-batches of one prompt cost as much as one of four; slices cost one more forward
    one = slow.train(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert one.seconds == pytest.approx(slow.train().seconds)
    sliced = slow.train(max_tokens_per_step=71)
    assert sliced.seconds > 1.2 * one.seconds
    assert sliced.peak < one.peak


def test_texts():
    assert [duration(value) for value in (86400 * 1.5, 7200, 90, 2.345, 0.0123, 1e-5)] == [
        "1.5 d",
        "2 h",
        "1.5 min",
        "2.35 s",
        "12.3 ms",
        "10 µs",
    ]
    assert [parse_bytes("x", text) for text in ("80GiB", "24 GB", "1.5mib", "100")] == [
        80 * 2**30,
        24 * 10**9,
        3 * 2**19,
        100,
    ]
    lengths = Lengths((5, 1, 3, 2, 4))
    assert (lengths.mean, lengths.longest, lengths.quantile(0.5), lengths.quantile(0.95)) == (
        3,
        5,
        3,
        5,
    )
    assert asdict(Machine("a", 100, 1.0, 2.0))["memory"] == 100
    assert Machine("a", 100, 1.0, 2.0).fits(90)
    assert not Machine("a", 100, 1.0, 2.0).fits(91)
    assert Machine("a", 100, 4.0, 2.0).seconds(4.0, 4.0) == 2.0
