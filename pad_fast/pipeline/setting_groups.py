"""Every setting in its group, with its default, unit and help: for help texts, YAML files and docs.

All of it is read from the dataclasses, so that no text repeats them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

import yaml

from pad_fast.pipeline import options as run_options
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.number_rules import RULES as RUN_RULES
from pad_fast.pipeline.settings import FIXED, NO_SETTINGS
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training import options as training_options
from pad_fast.training.config import WITHOUT_EFFECT, PADConfig
from pad_fast.training.number_rules import RULES as TRAINING_RULES
from pad_fast.training.number_rules import NumberRule

# The settings of `pad-fast run --help` and of a new YAML file; --help-all has the others.
MOST_USED = (
    "student",
    "teacher",
    "prompts",
    "heldout",
    "output_dir",
    "rounds",
    "seed",
    "num_generations",
    "temperature",
    "max_new_tokens",
    "mcq_weight",
    "loss",
    "beta",
    "learning_rate",
    "num_train_epochs",
    "prompts_per_step",
    "use_peft",
    "teacher_server",
    "num_processes",
    "accelerate_config",
)
SHORT_HELP = {"loss": f"The loss: {', '.join(LOSSES)}."}
# Trainer's arguments that stand with the run's own; the others are "further arguments of Trainer".
TRAINERS = {
    "training": (
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "optim",
        "optim_args",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "bf16",
        "fp16",
    ),
    "memory": (
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "fsdp",
        "fsdp_config",
        "deepspeed",
    ),
    "logs": (
        "logging_steps",
        "logging_first_step",
        "log_level",
        "report_to",
        "run_name",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "hub_token",
    ),
}
TITLES = {
    "models": "models",
    "prompts": "prompts, and responses from elsewhere",
    "run": "the run: folder, rounds, display",
    "sampling": "sampling",
    "rewards": "rewards",
    "calibration": "the teacher's multiple-choice questions",
    "loss": "loss",
    "training": "training",
    "adapter": "low-rank adapter",
    "data": "rows of the training",
    "model": "the student in training",
    "memory": "memory and speed of the training",
    "evaluation": "evaluation on the held-out prompts",
    "servers": "servers",
    "benchmarks": "benchmarks",
    "logs": "logs, checkpoints and the hub",
    "trainer": "further arguments of transformers' Trainer",
}
# Notes of number rules that are units, and units of settings whose rule says something else.
UNITS = ("tokens", "prompts", "seconds", "requests", "steps", "rounds", "questions", "processes")
OTHER_UNITS = {
    "num_generations": "responses",
    "heldout_num_generations": "responses",
    "group_size": "responses",
    "mcq_opponents": "responses",
    "memory_budget": "bytes",
    "num_train_epochs": "epochs",
    "num_samples": "rankings",
    "gamma": "nats",
    "ddp_bucket_cap_mb": "MB",
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        field: the dataclass field that it is.
        kind: its type.
        help: what it does, in whole sentences.
        rule: the numbers that it may be, as the end of "must be ..."; empty if any.
        unit: what it counts, or empty.
    """

    field: dataclasses.Field
    kind: Any
    help: str
    rule: str
    unit: str

    @property
    def name(self) -> str:
        """The key and the flag."""
        return self.field.name

    @property
    def default(self) -> Any:
        """The value that it has if it is not given."""
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return self.field.default

    @property
    def shown_default(self) -> str:
        """The default as YAML has it; empty if there is none, or if the help says it."""
        value = self.default
        if value is None or value is dataclasses.MISSING or value == []:
            return ""
        return as_yaml(value.value if isinstance(value, Enum) else value)

    @property
    def short_help(self) -> str:
        """The first sentence of the help, and what it says of the default."""
        first, _, rest = self.help.partition(". ")
        default = rest.find("Default: ")
        parts = [first.rstrip(".") + "."]
        if default >= 0 and len(rest) - default < 48:
            parts.append(rest[default:])
        return SHORT_HELP.get(self.name, " ".join(parts))


def as_yaml(value: Any) -> str:
    """A value as YAML in one line.

    Example:
        >>> as_yaml(8e-7), as_yaml(None), as_yaml("")
        ('8.0e-07', 'null', "''")
    """
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.strip().removesuffix("\n...")


@cache
def setting_groups() -> dict[str, list[Setting]]:
    """The settings of a run by group, PADConfig's and Trainer's among them.

    Example:
        >>> [setting.name for setting in setting_groups()["rewards"]]
        ['reward_temperature', 'share_prefix', 'score_batch_tokens']
    """
    groups: dict[str, list[Setting]] = {name: [] for name in TITLES}
    known: set[str] = set(NO_SETTINGS)

    def add(group: str, fields: Iterable[dataclasses.Field], hints: dict[str, Any]) -> None:
        for field in fields:
            if field.init and field.name not in known:
                groups[group].append(_setting(field, hints[field.name]))
                known.add(field.name)

    hints = get_type_hints(RunConfig)
    for name, kind in run_options.GROUPS.items():
        add(name, dataclasses.fields(kind), hints)
    hints, fields = get_type_hints(PADConfig), PADConfig.__dataclass_fields__
    for name, kind in training_options.GROUPS.items():
        add(name, [fields[field.name] for field in dataclasses.fields(kind)], hints)
    for name, arguments in TRAINERS.items():
        add(name, [fields[each] for each in arguments if each in fields], hints)
    add("trainer", fields.values(), hints)
    return groups


def settings_of(options: type) -> list[Setting]:
    """The fields of a dataclass of options, such as those of one command."""
    hints = get_type_hints(options)
    fields: list[dataclasses.Field] = [*dataclasses.fields(options)]
    return [_setting(field, hints[field.name], ruled=False) for field in fields]


def _setting(field: dataclasses.Field, kind: Any, ruled: bool = True) -> Setting:
    rule = {**TRAINING_RULES, **RUN_RULES}.get(field.name) if ruled else None
    unit = OTHER_UNITS.get(field.name, "") if ruled else ""
    if not unit and rule is not None:
        unit = next((unit for unit in UNITS if rule.note.partition(";")[0] == unit), "")
    help = " ".join(str(field.metadata.get("help", "")).split())
    for only in (FIXED, WITHOUT_EFFECT):
        if field.name in only:
            value, why = only[field.name]
            help = f"Only {as_yaml(value)} is taken, since {why}."
    for each in get_args(kind) or (kind,):
        if isinstance(each, type) and issubclass(each, Enum):
            help = f"{help} One of {', '.join(str(member.value) for member in each)}."
    return Setting(field, kind, help, "" if rule is None else _range(rule), unit)


def _range(rule: NumberRule) -> str:
    """The numbers that a rule allows, without a largest one that nobody comes near."""
    if rule.most < 1_000_000:
        return rule.words().removesuffix(f" ({rule.note})")
    kind = "a whole number" if rule.whole else "a number"
    others = "".join(f", or {other:,}" for other in rule.others)
    return f"{kind} {'above' if rule.above else 'of at least'} {rule.least:,}{others}"
