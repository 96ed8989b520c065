"""`pad-fast plan`: what it prints, what its estimates depend on, and that its advice helps."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import asdict

import pytest
import torch
from commands import failing
from planned_runs import BY_RATES, config_of, estimator, piece, planned
from safetensors.torch import save_file
from worlds import contents

from pad_fast import cli
from pad_fast.pipeline.train import adapter as adapter_module
from pad_fast.plan import machine as machines
from pad_fast.plan.case import Lengths
from pad_fast.plan.command import duration
from pad_fast.plan.machine import Machine, parse_bytes
from pad_fast.plan.work import Work


def test_plan_reads_no_weights_and_leaves_no_trace(world, tmp_path, capsys):
    students = tmp_path / "student"
    students.mkdir()
    for file in (world / "student").iterdir():
        if file.suffix == ".safetensors":
            save_file({}, students / file.name)
        else:
            (students / file.name).write_bytes(file.read_bytes())
    path = config_of(world, tmp_path, student=str(students), benchmarks=["mt_bench"])
    before = contents(tmp_path)
    assert cli.main(["plan", str(path), *BY_RATES]) == 0
    output = capsys.readouterr().out
    assert "as it is set, the run fits" in output
    for word in (
        "held-out · sample",
        "round 1/1 · sample",
        "calibrate",
        "1/1 · train",
        "evaluate",
        "load student",
        "GiB",
        "gradient_checkpointing",
        "TFLOP/s",
        "measured on this machine",
        "mt_bench is not in these times",
    ):
        assert word in output
    assert contents(tmp_path) == before


def test_plan_as_json(world, tmp_path, capsys):
    path = config_of(world, tmp_path, sample_batch_tokens=256, score_batch_tokens=256)
    tight = ["--json", "--device_memory", "200KiB", "--num_processes", "2"]
    assert cli.main(["plan", str(path), *tight]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] is False
    assert said["machine"]["memory"] == 200 * 2**10
    assert {"load", "sample", "score", "ask", "train"} == {one["kind"] for one in said["pieces"]}
    assert all(one["peak"] > 0 and one["seconds"] > 0 for one in said["pieces"] + said["training"])
    assert said["seconds"] == pytest.approx(sum(one["seconds"] for one in said["pieces"]))
    assert said["device_hours"] == pytest.approx(2 * said["seconds"] / 3600)
    assert said["counts"] == {**said["counts"], "train": 8, "heldout": 4, "validation": 0}
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
    by_memory = estimator(path, "--device_memory", "1GiB", "--bf16", "false")
    least = by_memory.step(gradient_checkpointing=True, max_tokens_per_step=60).peak
    flags = ["--device_memory", str(3 * least), "--bf16", "false"]
    tight = planned(path, *flags)
    assert not tight.fits
    taken = [
        word
        for line in tight.advice
        if line.startswith("set ")
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
    assert not any(line.startswith("set ") for line in followed.advice)
    budget = next(int(line.split(": ")[1]) for line in tight.advice if "score_batch_tokens" in line)
    whole = estimator(path, *flags)
    work = [
        one
        for one in Work(whole.config, whole.case.counts).pieces()
        if one.kind in ("score", "ask")
    ]
    assert not all(tight.machine.fits(whole.piece(one, 2 * budget).peak) for one in work)


def test_advice_where_nothing_helps(world, tmp_path):
    hopeless = planned(config_of(world, tmp_path), "--device_memory", "1KiB")
    advice = [line for line in hopeless.advice if "log-probabilities" not in line]
    assert len(advice) > 4
    assert all("smaller" in line for line in advice)


def test_an_adapter_is_planned(world, tmp_path):
    """Its gradients and moments alone are held beside the weights, which 4 bits make smaller."""
    path = config_of(world, tmp_path, lora_r=1)
    flags = ("--device_memory", "1MiB", "--memory_budget", "0")
    whole, adapter, packed = (
        estimator(path, *flags, *more)
        for more in ((), ("--use_peft", "true"), ("--use_peft", "true", "--load_in_4bit", "true"))
    )
    held = adapter.peaks.held
    assert held.gradients < 0.5 * whole.peaks.held.gradients
    assert held.state == 2 * held.gradients
    assert packed.peaks.held.weights < held.weights
    # A step of the adapter's training has room for more tokens, as the trainer finds.
    tokens = [one.case.max_tokens(one.case.train_settings) for one in (whole, adapter, packed)]
    assert tokens == sorted(set(tokens))
    saved = whole.peaks.held.gradients + whole.peaks.held.state - held.gradients - held.state
    options = {"gradient_accumulation_steps": 2, "max_tokens_per_step": 10**6}
    assert whole.step(**options).peak - adapter.step(**options).peak > 0.9 * saved
    assert whole.speeds.step({}) > adapter.speeds.step({})


def test_advice_for_an_adapter_names_no_adapter(world, tmp_path):
    path = config_of(world, tmp_path, use_peft=True, lora_r=1)
    for more, named in (((), True), (("--load_in_4bit", "true"), False)):
        hopeless = planned(path, "--device_memory", "1KiB", *more)
        [advice] = [line for line in hopeless.advice if line.startswith("train:")]
        assert "use_peft" not in advice
        assert ("load_in_4bit: true" in advice) == named
        assert "adapter of rank 1" in hopeless.models["student"]


def test_an_adapter_needs_peft(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adapter_module, "find_spec", lambda name: None)
    path = config_of(world, tmp_path, use_peft=True)
    assert "use_peft: needs PEFT" in failing(capsys, "plan", path, *BY_RATES)


def test_where_gradients_are_on_several_processes(world, tmp_path):
    """DDP has them in its buckets; FSDP splits them; ZeRO-2 has a way of its own."""
    path = config_of(world, tmp_path)
    several = ("--num_processes", "2")

    def buckets(*flags):
        return estimator(path, *flags).case.training_options.buckets

    assert buckets() is None
    assert buckets(*several) == "in"
    assert buckets(*several, "--ddp_find_unused_parameters", "true") == "beside"
    for config in ("fsdp2", "zero2"):
        assert buckets(*several, "--accelerate_config", config) is None


def test_settings_that_peaks_depend_on(world, tmp_path):
    def peak(phase: str, **changes) -> int:
        base = {"max_new_tokens": 48, "score_batch_tokens": 512, "sample_batch_tokens": 512}
        base["shard_size"] = 256  # a batch is of one shard
        return piece(estimator(config_of(world, tmp_path, **{**base, **changes})), phase).peak

    usual = peak("train")
    assert peak("train", max_length=20) < usual
    assert peak("train", optim="sgd") < usual
    assert peak("train", train_dtype="bfloat16") < usual
    assert peak("train", gradient_accumulation_steps=4) > usual
    assert peak("train", num_generations=6) > usual
    for budget in ("0", "4096"):
        given = estimator(config_of(world, tmp_path), "--memory_budget", budget)
        assert given.case.training_options.memory_budget == int(budget)
    few = {"score_batch_tokens": 16}  # the student's own rewards of its samples are read too
    assert peak("sample", sample_batch_tokens=2048, **few) > peak("sample", **few)
    assert peak("sample", score_batch_tokens=2048) > peak("sample", **few)
    assert peak("score", score_batch_tokens=2048) > peak("score")
    assert peak("score", share_prefix="false", score_batch_tokens=4096) != peak(
        "score", score_batch_tokens=4096
    )
    assert peak("train", share_prefix="false") != usual
    assert peak("ask", mcq_style="listwise", max_new_tokens=60) > peak("ask", max_new_tokens=60)


@pytest.mark.usefixtures("paper_machine")
def test_times_scale(world, tmp_path):
    path = config_of(world, tmp_path, max_new_tokens=64)
    slow, fast = estimator(path), estimator(path, "--response_length", "16")
    for kind in ("score", "ask", "train"):
        long, short = piece(slow, kind), piece(fast, kind)
        assert long.seconds > 1.5 * short.seconds
        assert long.peak == short.peak  # the peak is that of the longest responses
    faster = estimator(path, "--device_tflops", "0.002", "--device_bandwidth", "0.2")
    for kind in ("sample", "train"):
        assert piece(faster, kind).seconds == pytest.approx(piece(slow, kind).seconds / 2)
    double = estimator(path, "--gradient_accumulation_steps", "2")
    assert double.step().seconds < 2 * slow.step().seconds  # there is one optimizer's step
    assert (slow.case.steps(8), double.case.steps(8)) == (2, 1)
    one_order = piece(estimator(path, "--mcq_every_place", "false"), "ask")
    assert piece(slow, "ask").seconds == pytest.approx(2 * one_order.seconds, rel=0.1)
    wordy = config_of(
        world, tmp_path, max_new_tokens=64, mcq_template="{query} {options}" + 200 * " x"
    )
    assert piece(estimator(wordy), "ask").seconds > 1.5 * piece(slow, "ask").seconds
    # slices cost one more forward
    sliced = slow.step(max_tokens_per_step=71)
    assert sliced.seconds > 1.2 * slow.step(per_device_train_batch_size=1).seconds
    assert sliced.peak < slow.step(per_device_train_batch_size=1).peak * 1.01


@pytest.mark.usefixtures("paper_machine")
def test_checksums_of_trained_students_take_their_time(world, tmp_path):
    assert machines.hash_rate(2**10) > 0
    fast = estimator(config_of(world, tmp_path, rounds=2))
    slow = copy.copy(fast)
    slow.case = dataclasses.replace(fast.case, machine=Machine("slow", 2**40, 1e9, 1e8, hashed=1e3))
    load, *_ = Work(fast.config, fast.case.counts).pieces()
    more = load.trained * fast.case.trained_bytes * (1 / 1e3 - 1 / machines.HASHED)
    assert load.trained > 1
    assert slow.piece(load).seconds - fast.piece(load).seconds == pytest.approx(more)


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
    machine = Machine("a", 100, 4.0, 2.0, others={"bfloat16": 8.0})
    operations = {(4, 4): 1, (0, 0): 2, (16, 2): 3}
    started = 2 * machines.STARTED
    assert machine.time_of(operations) == 2.0 + started + 3 * 4.0
    assert machine.time_of(operations, torch.bfloat16) == 2.0 + started + 3 * 2.0
