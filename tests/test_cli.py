"""The command line as its user meets it: phases in a row, flags over YAML, and one clear line for whatever is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import worlds
from worlds import contents

from pad_fast import cli
from pad_fast.pipeline import files, rounds, run_folder
from pad_fast.pipeline.arguments import parse_settings, suggestion


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    worlds.write_config(folder)
    return folder


def failing(capsys, *arguments: object) -> str:
    """The one line of a command that must be bad input."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pad-fast: ")
    assert error.count("\n") == 1
    return error


def changed(world: Path, folder: Path, **changes: object) -> Path:
    """A config in `folder` on the models and prompts of `world`."""
    given = {
        "student": str(world / "student"),
        "teacher": str(world / "teacher"),
        "prompts": str(world / "train.jsonl"),
    }
    return worlds.write_config(
        folder, **{**given, "heldout": str(world / "heldout.jsonl"), **changes}, models=False
    )


def test_phases_in_a_row_equal_run(world, tmp_path, capsys):
    config = changed(world, tmp_path, output_dir="./phases", baseline="seqkd")
    assert "not sampled yet" in failing(capsys, "score", config)
    for phase in ("sample", "score", "train", "evaluate", "report"):
        assert cli.main([phase, str(config)]) == 0
    assert "SeqKD" in capsys.readouterr().out
    assert cli.main(["sample", str(config)]) == 0
    assert "all 1 rounds are finished" in capsys.readouterr().out
    assert cli.main(["run", str(config), "--output_dir", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "phases") == contents(tmp_path / "run")
    assert (tmp_path / "phases" / "report" / "index.html").exists()
    # a run's folder stands for its config
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    # raising the rounds would make the baseline's steps wrong, so that is another run
    assert "rounds: " in failing(capsys, "run", config, "--rounds", "2")


@pytest.fixture
def no_report(monkeypatch):
    """Its pictures take longer than all else; another test has them."""
    monkeypatch.setattr("pad_fast.report.write_report", lambda root: root / "report" / "index.html")


@pytest.mark.usefixtures("no_report")
def test_rounds_can_be_added(world, tmp_path, capsys):
    config = changed(world, tmp_path, num_generations=2)
    assert cli.main(["run", str(config)]) == 0
    before = contents(tmp_path / "run")
    assert cli.main(["run", str(config), "--rounds", "2"]) == 0
    after = contents(tmp_path / "run")
    assert before.items() <= after.items()
    assert (tmp_path / "run" / "round-02" / "student").exists()
    assert "after round 2" in capsys.readouterr().out
    assert "learning_rate: " in failing(
        capsys, "run", config, "--rounds", "2", "--learning_rate", "0.5"
    )
    assert "got 5" in failing(capsys, "run", config, "--rounds", "2", "--seed", "5")


@pytest.mark.usefixtures("no_report")
def test_a_run_that_died_for_memory_goes_on_with_smaller_batches(
    world, tmp_path, capsys, monkeypatch
):
    """A setting may change until something is kept of the phase that it enters first; the manifest tells what changed."""
    config = changed(world, tmp_path, num_generations=2, save_strategy="no")
    free = [
        "--score_batch_tokens",
        "64",
        "--max_tokens_per_step",
        "32",
        "--gradient_checkpointing",
        "false",
        "--dataloader_num_workers",
        "0",
    ]
    monkeypatch.setattr(
        rounds, "PHASES", {"sample": lambda run, round: None}
    )  # it died before anything was kept
    assert (
        cli.main(["run", str(config), "--sample_batch_tokens", "9999", "--temperature", "2"]) == 0
    )
    monkeypatch.undo()
    monkeypatch.setattr("pad_fast.report.write_report", lambda root: root)
    assert cli.main(["sample", str(config), "--sample_batch_tokens", "64"]) == 0
    assert "sample_batch_tokens: " in failing(capsys, "run", config)
    assert "has begun to sample with 64, got 128" in failing(
        capsys, "run", config, "--sample_batch_tokens", "128"
    )
    kept = ["--sample_batch_tokens", "64", *free]
    assert (
        cli.main(["score", str(config), *kept, "--mcq_weight", "0.3", "--mcq_style", "listwise"])
        == 0
    )
    assert "has begun to score with 0.3, got 0.2" in failing(
        capsys, "train", config, *kept, "--mcq_style", "listwise", "--mcq_weight", "0.2"
    )
    kept += ["--mcq_style", "listwise", "--mcq_weight", "0.3"]
    assert "max_length: must be more than the 7 tokens" in failing(
        capsys, "train", config, *kept, "--max_length", "7"
    )
    own = rounds.train_round
    monkeypatch.setattr(
        rounds,
        "train_round",
        lambda run, round: (run.metrics.add(1, 1, "train", {"loss": 99.0}), 1 / 0),
    )
    assert cli.main(["train", str(config), *kept]) == 1
    monkeypatch.setattr(rounds, "train_round", own)
    smaller = [
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "2",
        "--beta",
        "3",
        "--train_dtype",
        "bfloat16",
    ]
    assert cli.main(["train", str(config), *kept, *smaller]) == 0
    losses = [
        json.loads(line).get("loss")
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert 99.0 not in losses
    assert "has begun to train with 3.0, got 4.0" in failing(
        capsys, "run", config, *kept, *smaller, "--beta", "4"
    )
    assert cli.main(["run", str(config), *kept, *smaller, "--score_batch_tokens", "4096"]) == 0
    changes = json.loads((tmp_path / "run" / "run.json").read_text())["changes"]
    assert changes[0]["from"] == {"sample_batch_tokens": 9999, "temperature": 2.0}
    assert changes[0]["to"] == {"sample_batch_tokens": 64, "temperature": 1.0}
    assert changes[-1]["to"] == {"score_batch_tokens": 4096}
    assert (changes[2]["from"]["beta"], changes[2]["to"]["beta"]) == (None, 3.0)


def test_a_checkpoint_holds_the_training(world, tmp_path, capsys):
    config = changed(world, tmp_path, num_generations=2)
    assert cli.main(["sample", str(config)]) == 0
    state = tmp_path / "run" / "round-01" / "trainer" / "checkpoint-1" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    assert (
        cli.main(["sample", str(config), "--learning_rate", "0.5"]) == 0
    )  # killed within the first: there is none
    state.write_text("{}")
    assert "has begun to train with 0.5, got 0.01" in failing(capsys, "sample", config)


@pytest.mark.usefixtures("no_report")
def test_prompts_without_answers_and_without_heldout(world, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text(
        '{"prompt": "1+1=?"}\n{"prompt": "2+2=?"}\n{"prompt": "3+3=?"}\n'
    )
    config = changed(world, tmp_path, prompts="./mine.jsonl", heldout=None, num_generations=2)
    assert cli.main(["run", str(config)]) == 0
    summary = json.loads((tmp_path / "run" / "evaluation" / "student-01.json").read_text())
    assert summary["greedy_accuracy"] is None
    assert summary["num_prompts"] == 1
    assert not (tmp_path / "run" / "evaluation" / "teacher.json").exists()
    assert (
        cli.main(
            ["run", str(config), "--output_dir", str(tmp_path / "blind"), "--heldout_size", "0"]
        )
        == 0
    )
    assert (tmp_path / "blind" / "round-01" / "student").exists()
    assert not (tmp_path / "blind" / "evaluation").exists()


def test_flags_override_the_yaml(world, tmp_path):
    config = changed(
        world,
        tmp_path,
        beta=3.0,
        mcq_weight="0.25",
        chat_template_kwargs={"a": 1},
        teacher_beta=None,
    )
    settings = parse_settings(
        "run", [str(config), "--beta=5", "--num-generations", "6", "--mcq_both_orders", "false"]
    )
    assert settings.training["beta"] == 5.0
    assert (
        settings.run.num_generations,
        settings.run.mcq_weight,
        settings.run.mcq_both_orders,
    ) == (6, 0.25, False)
    assert settings.run.chat_template_kwargs == {"a": 1}
    assert settings.run.output_dir == str(tmp_path / "run")
    args = settings.pad_config(tmp_path / "x", seed=5, max_steps=3)
    assert (args.beta, args.seed, args.max_steps, args.temperature) == (5.0, 5, 3, 1.0)
    assert not (tmp_path / "x").exists()


def test_flags_alone_are_enough(world, tmp_path):
    given = {
        "student": world / "student",
        "teacher": world / "teacher",
        "prompts": world / "train.jsonl",
        "output_dir": tmp_path / "run",
    }
    settings = parse_settings(
        "run", [word for key, value in given.items() for word in (f"--{key}", str(value))]
    )
    assert {key: str(value) for key, value in given.items()}.items() <= settings.flat().items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--num_genrations", "3"],
            "unknown argument --num_genrations; did you mean --num_generations?",
        ),
        (
            ["--num_generations", "1"],
            "num_generations: must be at least 2, a ranking needs two, got 1",
        ),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--mcq_style", "pairs"], "argument --mcq_style"),
        (["--beta", "-1"], "beta must be a positive finite number, got -1.0"),
        (["--loss", "dpo"], "loss must be one of ppd, vpd, got 'dpo'"),
        (["--mcq_style", "listwise", "--num_generations", "27"], "at most 26 responses, got 27"),
        (["--mcq_floor", "0"], "mcq_floor: must be above 0 and below 1, got 0.0"),
        (["--mcq_template", "{query}"], "template: must hold the fields"),
        (["--chat_template_kwargs", "[1]"], "chat_template_kwargs: must be a JSON object"),
        (
            ["--student", "nowhere/at-all"],
            "student: nowhere/at-all is neither a folder nor a model that the hub gives",
        ),
        (["--prompts", "missing.jsonl"], "prompts: no such file, missing.jsonl"),
        (
            ["--max_new_tokens", "256"],
            "max_new_tokens: must leave room for a prompt in the student's window of 256 tokens, got 256",
        ),
        (["--max_prompt_length", "4"], "line 1: the prompt has"),
        (["--max_length", "6"], "line 1: the prompt has"),
        (
            ["--num_generations", "12", "--method", "exact"],
            "at most 10 responses a group for divergence='jsd', got 12",
        ),
        (
            ["--heldout_num_generations", "17", "--method", "exact", "--divergence", "kl"],
            "at most 16 responses a group",
        ),
        (["--num_samples", "2", "--num_generations", "9"], "num_samples must be at least 4, got 2"),
        (["--eval_strategy", "epoch"], "eval_strategy: must be no"),
        (["--max_prompt_length", "4", "--long_prompts", "drop"], "every one of them is too long"),
    ],
)
def test_bad_flags(world, tmp_path, capsys, flags, message):
    assert message in failing(capsys, "run", changed(world, tmp_path), *flags)
    assert not list((tmp_path / "run").glob("round-*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roundz: 3\n", "unknown key 'roundz'; did you mean rounds?"),
        ("temprature: 3\n", "did you mean temperature?"),
        ("rounds: [\n", "is not YAML"),
        ("just words\n", "must hold keys and values"),
        ("rounds: 2\n", "student: needed, and not given"),
        ("rounds: 1.5\n", "invalid int value: '1.5'"),
    ],
)
def test_bad_yaml(tmp_path, capsys, text, message):
    (tmp_path / "config.yaml").write_text(text)
    error = failing(capsys, "run", tmp_path / "config.yaml")
    assert message in error


def test_bad_commands(tmp_path, capsys):
    assert "did you mean evaluate?" in failing(capsys, "evalute")
    assert "no such file" in failing(capsys, "run", tmp_path / "none.yaml")
    assert "without a run.json" in failing(capsys, "report", tmp_path)
    assert "student: needed, and not given" in failing(capsys, "run")
    assert suggestion("zzz", ["rounds"]) == ""


def test_bad_models(world, tmp_path, capsys):
    def broken(name: str, *missing: str) -> Path:
        shutil.copytree(world / "student", tmp_path / name)
        for file in missing:
            (tmp_path / name / file).unlink()
        return tmp_path / name

    config = changed(world, tmp_path)
    plain = broken("plain", "chat_template.jinja")
    assert "has no chat template" in failing(capsys, "run", config, "--student", plain)
    assert "teacher: the tokenizer" in failing(capsys, "run", config, "--teacher", plain)
    untold = broken("untold", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    assert "student: " in failing(capsys, "run", config, "--student", untold)
    assert "holds no weights" in failing(
        capsys, "run", config, "--teacher", broken("empty", "model.safetensors")
    )
    assert "holds no config.json" in failing(
        capsys, "run", config, "--teacher", broken("odd", "config.json")
    )
    picky = broken("picky")
    (picky / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    assert "line 1: the student's chat template refuses the conversation: no such role" in failing(
        capsys, "run", config, "--student", picky
    )


def test_changed_models_and_prompts_are_noticed(world, tmp_path, capsys):
    shutil.copytree(world / "student", tmp_path / "own")
    shutil.copy(world / "train.jsonl", tmp_path / "own.jsonl")
    config = changed(world, tmp_path, student="./own", prompts="./own.jsonl")
    assert cli.main(["sample", str(config)]) == 0
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('{"prompt": "more"}\n')
    assert "own.jsonl is not the file" in failing(capsys, "score", config)
    shutil.copy(world / "train.jsonl", tmp_path / "own.jsonl")
    worlds.save_model(tmp_path / "own", seed=9)
    assert "is not the model" in failing(capsys, "score", config)


def test_one_process_at_a_time(world, tmp_path, capsys):
    config = changed(world, tmp_path)
    with run_folder.RunFolder(tmp_path / "run").locked():
        assert "another pad-fast works" in failing(capsys, "sample", config)


def test_full_disk(world, tmp_path, capsys, monkeypatch):
    config = changed(world, tmp_path)
    assert cli.main(["sample", str(config)]) == 0
    kept = contents(tmp_path / "run")
    own = files.pq.write_table

    def write(table, path):
        if "scores" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        own(table, path)

    monkeypatch.setattr(files.pq, "write_table", write)
    assert cli.main(["run", str(config)]) == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert error.count("\n") == 1
    assert kept.items() <= contents(tmp_path / "run").items()
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_failures_in_one_line(world, tmp_path, capsys, monkeypatch):
    config = changed(world, tmp_path)
    monkeypatch.setattr(rounds, "run_all", lambda settings: 1 / 0)
    assert cli.main(["run", str(config)]) == 1
    assert (
        capsys.readouterr().err
        == "pad-fast: ZeroDivisionError: division by zero (pad-fast --traceback COMMAND shows where)\n"
    )
    assert cli.main(["--traceback", "run", str(config)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_run_is_one_process(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in failing(capsys, "run", changed(world, tmp_path))


def test_control_c_says_how_to_go_on(world, tmp_path):
    config = changed(world, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pad_fast.cli", "run", str(config)]
    told, deadline = tmp_path / "stderr", time.monotonic() + 120
    with (
        told.open("w") as stderr,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        ) as process,
    ):
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and not (tmp_path / "run" / "run.json").exists()
        ):
            time.sleep(0.002)
        # as a person would, again where nothing is said: pyarrow catches signals while it reads or writes, and may drop one
        while process.poll() is None and "stopped" not in told.read_text():
            process.send_signal(signal.SIGINT)
            wait = time.monotonic() + 1
            while (
                process.poll() is None
                and time.monotonic() < wait
                and "stopped" not in told.read_text()
            ):
                time.sleep(0.01)
        process.wait(timeout=120)
    error = told.read_text()
    assert process.returncode == 130, error
    assert error.endswith(
        f"pad-fast: stopped; what is finished is kept. To go on: pad-fast run {config}\n"
    )
    assert "Traceback" not in error


def test_help_is_quick_and_light(capsys):
    code = "import sys; from pad_fast import cli; cli.main(['--help']); print({'transformers', 'datasets', 'yaml'} & sys.modules.keys())"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.endswith("set()\n")
    for command in cli.COMMANDS:
        assert command in output
    assert cli.main([]) == 2
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--num_generations", "--mcq_preset", "--beta", "--learning_rate"):
        assert flag in text


def test_env_and_version(capsys):
    assert cli.main(["env"]) == 0
    output = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "triton",
        "transformers",
        "accelerate",
        "datasets",
        "pad-fast",
        "CUDA",
        "implementation",
    ):
        assert f"\n{name}" in f"\n{output}"
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pad-fast ")
