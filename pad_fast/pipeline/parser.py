"""The parser of a command's flags: in groups, with a short help, and errors as ValueError."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn

from transformers import HfArgumentParser

from pad_fast.pipeline.setting_groups import Setting
from pad_fast.terminal import HelpFormatter, suggestion

# What other programs call a setting.
OTHER_NAMES = {
    "model": "student",
    "model_name": "student",
    "model_name_or_path": "student",
    "teacher_model": "teacher",
    "teacher_model_name_or_path": "teacher",
    "dataset": "prompts",
    "dataset_name": "prompts",
    "dataset_config": "prompts_subset",
    "dataset_train_split": "prompts_split",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "loss_type": "loss",
    "output": "output_dir",
    "max_tokens": "max_new_tokens",
    "n": "num_generations",
}
REFUSED = {
    "trust_remote_code": "a run executes no code that a model or dataset brings along, so this "
    "cannot be set; take a model of an architecture that transformers has",
}


class Parser(HfArgumentParser):
    """A parser of groups of settings.

    Args:
        groups: titles with the settings under them.
        command: the words before the flags.
        usage: what follows them.
        about: a line on what the command does.
        rare: settings that the help leaves out; if there are any, it is short for the others too.
        epilog: what stands below.
    """

    def __init__(
        self,
        groups: Mapping[str, Iterable[Setting]],
        command: str,
        usage: str = "[--NAME VALUE ...]",
        about: str = "",
        rare: Collection[str] = (),
        epilog: str = "",
    ) -> None:
        self.names = [setting.name for group in groups.values() for setting in group]
        kinds = [_flags(title, settings, rare) for title, settings in groups.items()]
        super().__init__(
            kinds,  # type: ignore[arg-type]
            prog=f"pad-fast {command}",
            usage=f"pad-fast {command} {usage}",
            description=about,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            epilog=epilog,
        )

    def error(self, message: str) -> NoReturn:
        """Raise ValueError, where argparse would print two hundred flags and exit."""
        raise ValueError(message)

    def parse_known(self, words: Iterable[str]) -> argparse.Namespace:
        """The values of all flags, given or not.

        Raises:
            ValueError: a word is no flag or value; the message names the most similar flag.
        """
        namespace, unknown = self.parse_known_args(list(words))
        if unknown:
            flag = unknown[0].split("=")[0]
            if not flag.startswith("-"):
                raise ValueError(f"unexpected word {unknown[0]!r}; the usage is: {self.usage}")
            raise ValueError(f"unknown argument {flag}{self.suggest(flag, '--')}")
        return namespace

    def suggest(self, name: str, prefix: str = "", known: Collection[str] = ()) -> str:
        """``; did you mean X?`` for an unknown name, or an empty text.

        Raises:
            ValueError: it is a setting that other programs have, and a run does not for a reason.
        """
        name = name.lstrip("-").replace("-", "_")
        if name in REFUSED:
            raise ValueError(f"{name}: {REFUSED[name]}")
        known = known or self.names
        if OTHER_NAMES.get(name) in known:
            return f"; did you mean {prefix}{OTHER_NAMES[name]}?"
        return suggestion(name, known, prefix)


def _flags(title: str, settings: Iterable[Setting], rare: Collection[str]) -> type:
    """A dataclass of settings for HfArgumentParser, without the checks of their own class.

    PADConfig itself cannot be used to parse flags, because its constructor looks for devices.
    """
    fields = []
    for setting in settings:
        help = argparse.SUPPRESS if setting.name in rare else _help(setting, short=bool(rare))
        field: Any = dataclasses.field(
            default=setting.field.default,
            default_factory=setting.field.default_factory,
            metadata={**setting.field.metadata, "help": help},
        )
        fields.append((setting.name, setting.kind, field))
    flags = dataclasses.make_dataclass("Flags", fields)
    flags._argument_group_name = title  # type: ignore[attr-defined]
    return flags


def _help(setting: Setting, short: bool) -> str:
    text = setting.short_help if short else setting.help
    default = setting.shown_default
    if default and len(default) < 40:
        unit = "" if setting.unit in text.lower() else f" {setting.unit}"
        text = f"{text} [{default}{unit}]"
    return text.replace("%", "%%")
