"""PADConfig: every field is read, parsed and checked."""

import ast
import dataclasses
from pathlib import Path

import pytest
import transformers
from students import RENAMED, make_args
from transformers import TrainingArguments

import pad_fast
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.config import WITHOUT_EFFECT, PADConfig

pytestmark = RENAMED


def test_every_field_is_read():
    own = {f.name for f in dataclasses.fields(PADConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    folder = Path(pad_fast.__file__).parent / "training"
    read = set()
    for path in folder.glob("*.py"):
        if path.name == "config.py":
            continue
        tree = ast.parse(path.read_text())
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        read |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    by_the_loss = {name for loss in LOSSES.values() for name in loss.options}  # see objective.py
    by_preset = {"preset"}  # it gives the others their values
    assert own - read - by_the_loss - by_preset == set()
    assert len(own) > 15


def test_config_is_parsed_from_the_command_line(tmp_path):
    flags = "--use_cpu --teacher_beta 3 --group_size 2 --disable_dropout False --max_length 99"
    line = ["--output_dir", str(tmp_path), *flags.split(), "--chat_template_kwargs", '{"a": 1}']
    (args,) = transformers.HfArgumentParser(PADConfig).parse_args_into_dataclasses(line)
    assert (args.teacher_beta, args.group_size, args.disable_dropout, args.max_length) == (
        3.0,
        2,
        False,
        99,
    )
    assert args.chat_template_kwargs == {"a": 1}
    assert (args.learning_rate, args.beta, args.loss, args.divergence, args.logging_steps) == (
        8e-7,
        10.0,
        "ppd",
        "jsd",
        10,
    )
    assert args.bf16 is False
    assert args.gradient_checkpointing is True


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_can_be_turned_off(name, tmp_path):
    args = make_args(tmp_path, **{name: False})
    assert (args.gradient_checkpointing, args.activation_checkpointing) == (False, False)
    assert dataclasses.replace(args).gradient_checkpointing is False
    assert make_args(tmp_path).activation_checkpointing is True


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss": "ipo"}, "loss must be one of ppd, vpd, listnet, .*, rft, got 'ipo'"),
        ({"divergence": "js"}, "divergence must be one of jsd, kl, reverse_kl, got 'js'"),
        ({"impl": "cuda"}, "impl must be one of auto, torch, triton, got 'cuda'"),
        ({"optim": "adam"}, "optim must be one of adamw_torch, .*, got 'adam'"),
        ({"lr_scheduler_type": "flat"}, "lr_scheduler_type must be one of linear, .*, got 'flat'"),
        ({"beta": 0.0}, "beta must be a number above 0 and at most 1,000,000, got 0.0"),
        (
            {"teacher_beta": float("nan")},
            "teacher_beta must be a number above 0 and at most 1,000,000, got nan",
        ),
        ({"group_size": 1}, "group_size must be a whole number from 2 to 65,536 .*, got 1"),
        (
            {"max_completion_length": 0},
            "max_completion_length must be a whole number from 1 to .*, got 0",
        ),
        (
            {"max_tokens_per_step": 0},
            "max_tokens_per_step must be a whole number from 1 to .*, got 0",
        ),
        (
            {"memory_budget": "much"},
            "memory_budget must be \"auto\" or a number of bytes, an int of at least 0, got 'much'",
        ),
        (
            {"memory_budget": -1},
            'memory_budget must be "auto" or a number of bytes, an int of at least 0, got -1',
        ),
        ({"share_prefix": "maybe"}, "share_prefix must be auto, true or false, got 'maybe'"),
        ({"num_samples": 3}, "num_samples must be a whole number from 4 to .*, got 3"),
        (
            {"method": "exact", "group_size": 11},
            "method='exact' takes at most 10 responses a group for divergence='jsd', got 11",
        ),
        (
            {"loss": "vpd", "teacher_beta": 3.0},
            "teacher_beta is an option of loss='ppd', .* and loss='lambda_loss', and loss is "
            "'vpd'; got 3.0",
        ),
        (
            {"loss": "vpd", "divergence": "kl"},
            "divergence is an option of loss='ppd', and loss is 'vpd'; got 'kl'",
        ),
        ({"preset": "authors"}, "preset must be one of default, paper, got 'authors'"),
        ({"anchor": "end"}, "anchor must be one of none, start, got 'end'"),
        ({"repeats": "twice"}, "repeats must be one of once, each, got 'twice'"),
        ({"loss": "dpo"}, "anchor must be start for loss='dpo', .* got 'none'"),
        ({"loss": "plackett_luce_dpo"}, "anchor must be start for loss='plackett_luce_dpo'"),
        ({"loss": "simpo", "gamma": -1.0}, "gamma must be a number from 0 to .*, got -1"),
        ({"loss": "simpo", "pairs": "some"}, "pairs must be one of best_worst, all, got 'some'"),
        (
            {"loss": "dpo", "anchor": "start", "gamma": 1.0},
            "gamma is an option of loss='simpo', and loss is 'dpo'; got 1.0",
        ),
        ({"loss": "rft", "beta": 3.0}, "beta is no option of loss='rft'; got 3.0"),
        (
            {"preference_weight": 0.0},
            "preference_weight and likelihood_weight must not both be 0, .* got 0.0 and None",
        ),
        ({"likelihood_weight": -1.0}, "likelihood_weight must be a number from 0 to .*, got -1"),
        (
            {"likelihood_weight": 1.0, "likelihood_on": "worst"},
            "likelihood_on must be one of best, teacher, weighted, got 'worst'",
        ),
        ({"likelihood_on": "weighted"}, "likelihood_on needs likelihood_weight above 0"),
        (
            {"likelihood_weight": 1.0, "likelihood_beta": 3.0},
            "likelihood_beta needs likelihood_weight above 0 and likelihood_on=weighted",
        ),
    ],
)
def test_config_refuses(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **option)


def test_the_preset_of_the_paper_fills_in_what_is_open(tmp_path):
    assert make_args(tmp_path, preset="paper").teacher_beta == 10.0
    assert make_args(tmp_path, preset="paper", teacher_beta=3.0).teacher_beta == 3.0
    assert make_args(tmp_path, preset="paper", loss="vpd").teacher_beta is None
    assert make_args(tmp_path).chooses_teacher_beta
    assert not make_args(tmp_path, preset="paper").chooses_teacher_beta
    assert not make_args(tmp_path, loss="vpd").chooses_teacher_beta


OTHER_VALUES = {
    "label_smoothing_factor": 0.1,
    "label_names": ["labels"],
    "include_for_metrics": ["loss"],
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 2,
    "average_tokens_across_devices": False,
    "include_num_input_tokens_seen": "all",
    "use_cache": True,
    "length_column_name": "n",
    "neftune_noise_alpha": 5.0,
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_arguments_of_trainer_that_cannot_act_are_refused(name, tmp_path):
    usual = WITHOUT_EFFECT[name][0]
    assert getattr(make_args(tmp_path), name) == usual
    assert getattr(make_args(tmp_path, **{name: usual}), name) == usual
    with pytest.raises(ValueError, match=f"{name} must be .* since .*; got"):
        make_args(tmp_path, **{name: OTHER_VALUES[name]})
