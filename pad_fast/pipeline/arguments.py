"""From the command line to Settings: a YAML file of flat keys, and flags that override it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from pad_fast.files.yaml_files import read_yaml
from pad_fast.launch.launcher import Launch
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.parser import Parser
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.pipeline.setting_groups import (
    MOST_USED,
    TITLES,
    Setting,
    setting_groups,
    settings_of,
)
from pad_fast.pipeline.settings import Settings
from pad_fast.secret_values import remember_secrets

Options = TypeVar("Options")
USAGE = "[CONFIG.yaml] [--NAME VALUE ...]"
WHERE = (
    "CONFIG.yaml is the YAML file of a run, whose keys are settings, or the folder of a run that "
    "was started; a flag overrides a key."
)
PATHS = (
    "student",
    "teacher",
    "prompts",
    "responses",
    "reward_model",
    "heldout",
    "output_dir",
    "score_cache",
    "benchmark_shots_file",
    "benchmark_judge",
)
FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # Trainer's, if they are no objects
ORIGINS = ("prompts", "responses")  # a flag for one of them drops the key of the other
VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def parse_settings(
    command: str, arguments: Sequence[str], about: str = "", launched: bool = False
) -> Settings:
    """The settings in ``[CONFIG.yaml] [--NAME VALUE ...]``.

    Args:
        command: the command's name, for its help.
        arguments: the words after the command. The folder of a run may take the place of the YAML
            file.
        about: what the command does, for its help.
        launched: whether the help shows the flags of a launch, which are taken off before.

    Raises:
        ValueError: a key or flag is wrong. The message names it and, if it is unknown, the most
            similar known one.
    """
    groups = _groups()
    if launched:
        groups["many processes (flags only)"] = settings_of(Launch)
    parser, keys = _parser(command, about, groups, "--help-all" in arguments)
    return _parse(parser, keys, arguments)[0]


def parse_with(
    command: str, arguments: Sequence[str], options: type[Options], about: str = ""
) -> tuple[Settings, Options]:
    """The settings, as :func:`parse_settings` returns them, and a command's own options.

    ``options`` is a dataclass whose fields are flags, but not keys of the YAML file.
    """
    own = settings_of(options)
    groups = {f"of {command} alone (flags only)": own, **_groups()}
    parser, keys = _parser(command, about, groups, "--help-all" in arguments)
    settings, values = _parse(parser, keys, arguments)
    chosen = options(**{setting.name: values[setting.name] for setting in own})
    expand_paths(chosen)
    return settings, chosen


def _groups() -> dict[str, list[Setting]]:
    return {TITLES[name]: group for name, group in setting_groups().items()}


def _parser(
    command: str, about: str, groups: dict[str, list[Setting]], everything: bool
) -> tuple[Parser, list[str]]:
    """A command's parser, and the names of the settings that a YAML file may hold."""
    keys = [setting.name for group in setting_groups().values() for setting in group]
    launch = {field.name for field in dataclasses.fields(Launch)}
    rare = () if everything else {*keys, *launch} - set(MOST_USED)
    epilog = "A setting that is on is turned off by --no_NAME."
    if rare:
        epilog = f"--help-all shows {len(set(keys) & rare)} more settings."
    about = f"{about[:1].upper()}{about[1:]}. {WHERE}"
    parser = Parser(groups, command, USAGE, about, rare, epilog)
    parser.add_argument("--help-all", action="help", help="show all settings and exit")
    parser.add_argument("config", nargs="?", default="", help=argparse.SUPPRESS)
    return parser, keys


def _parse(
    parser: Parser, keys: Sequence[str], arguments: Sequence[str]
) -> tuple[Settings, dict[str, Any]]:
    """The settings of a YAML file and of flags, and the values of all flags."""
    namespace = parser.parse_known(arguments)
    values = read_config(Path(namespace.config)) if namespace.config else {}
    given = [name for name in ORIGINS if getattr(namespace, name)]
    if len(given) == 1:
        values = {
            name: value for name, value in values.items() if name not in {*ORIGINS} - {*given}
        }
    remember_secrets([vars(namespace), values])
    for key in values:
        if key in Launch.__dataclass_fields__:
            raise ValueError(f"{namespace.config}: {key} is a flag and no key: give --{key}")
        if key not in keys:
            similar = parser.suggest(str(key), known=keys)
            raise ValueError(f"{namespace.config}: unknown key {key!r}{similar}")
    # No flag says these.
    empty = {key: value for key, value in values.items() if value is None or value == []}
    # The others pass through the parser too, so that they are converted and checked as flags are.
    words = [
        word for key, value in values.items() if key not in empty for word in _as_flag(key, value)
    ]
    defaults = vars(parser.parse_args([]))
    from_yaml = vars(parser.parse_args(words))
    parser.set_defaults(**from_yaml | empty)
    found = vars(parser.parse_args(arguments))
    of_run = {field.name for field in dataclasses.fields(RunConfig)}
    run = SimpleNamespace(**{name: found[name] for name in of_run})
    training = SimpleNamespace(**{name: found[name] for name in keys if name not in of_run})
    for settings in (run, training):
        expand_paths(settings)
    changed = {name: value for name, value in vars(training).items() if value != defaults[name]}
    return Settings(RunConfig(**vars(run)), changed), found


def read_config(path: Path) -> dict[str, Any]:
    """The flat mapping in a YAML file, or in the manifest of a run's folder.

    Paths in the YAML file that begin with ./ or ../ are relative to the file and become absolute.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if path.is_dir():
        manifest = path / "run.json"
        if not manifest.is_file():
            raise ValueError(
                f"config: {path} is a folder without a run.json: no run was started in it, or that "
                "file was lost"
            )
        known = RunFolder(path).manifest().get("config")
        if not isinstance(known, dict):
            raise ValueError(f"config: {manifest} holds no config; give the YAML file of the run")
        return known | {"output_dir": str(path)}
    if not path.is_file():
        raise ValueError(f"config: no such file, {path}")
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"config: {error}") from None
    if not isinstance(values, dict):
        got = "an empty file" if values is None else type(values).__name__
        raise ValueError(f"config: {path} must hold keys and values, got {got}")
    files = values.get("benchmark_questions")
    _resolve(values, PATHS, path.parent)
    if isinstance(files, dict):
        _resolve(files, list(files), path.parent)
    return {"output_dir": f"runs/{path.stem}"} | values


def _resolve(values: dict[str, Any], keys: Iterable[str], folder: Path) -> None:
    """Make those values absolute that begin with ./ or ../, which are relative to a folder."""
    for key in keys:
        if str(values.get(key)).startswith(("./", "../")):
            values[key] = str((folder / values[key]).resolve())


def expand_paths(settings: Any) -> None:
    """Replace ``~`` and variables of the environment in those settings that are paths.

    What exists under the name as it stands is taken as it stands.

    Raises:
        ValueError: a variable is not set, or ``~`` stands for nobody.
    """
    for name in (*PATHS, *FILES):
        text = getattr(settings, name, None)
        if isinstance(text, str) and not os.path.exists(text):
            setattr(settings, name, _expanded(name, text))


def _expanded(name: str, text: str) -> str:
    lacking = [found for found in VARIABLE.findall(text) if found.strip("{}") not in os.environ]
    if lacking:
        raise ValueError(
            f"{name}: the environment has no variable {lacking[0].strip('{}')}, got {text!r}; set "
            "it or write the path out"
        )
    path = os.path.expanduser(os.path.expandvars(text))
    if path.startswith("~"):
        raise ValueError(f"{name}: {path.split(os.sep)[0]} is no user's folder, got {text!r}")
    return path


def _as_flag(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]
