"""From the command line to Settings: a YAML file of flat keys, and flags that override it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from transformers import HfArgumentParser

from pad_fast.files.yaml_files import read_yaml
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.pipeline.settings import MANAGED, Settings
from pad_fast.secret_values import remember_secrets
from pad_fast.training.config import PADConfig

Options = TypeVar("Options")
REFUSED = {
    "trust_remote_code": "a run executes no code that a model or dataset brings along, so this "
    "cannot be set; take a model of an architecture that transformers has",
}
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
VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


class Parser(HfArgumentParser):
    """A parser that raises ValueError where argparse would print two hundred flags and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_settings(command: str, arguments: Sequence[str]) -> Settings:
    """The settings in ``[CONFIG.yaml] [--option value ...]``.

    Args:
        command: the command's name, for its help.
        arguments: the words after the command. The folder of a run may take the place of the YAML
            file.

    Raises:
        ValueError: a key or flag is wrong. The message names it and, if it is unknown, the most
            similar known one.
    """
    return _parse(command, arguments, [])[0]


def parse_with(
    command: str, arguments: Sequence[str], options: type[Options]
) -> tuple[Settings, Options]:
    """The settings, as :func:`parse_settings` returns them, and a command's own options.

    ``options`` is a dataclass whose fields are flags, but not keys of the YAML file.
    """
    settings, (own,) = _parse(command, arguments, [options])
    return settings, own


def _parse(
    command: str, arguments: Sequence[str], options: list[Any]
) -> tuple[Settings, Sequence[Any]]:
    flags = training_flags()
    kinds: list[Any] = [RunConfig, flags]
    parser = Parser([*kinds, *options], prog=f"pad-fast {command}", allow_abbrev=False)
    where = (
        "YAML file of the run, or the folder of a run that was started; optional if flags suffice"
    )
    parser.add_argument("config", metavar="CONFIG.yaml", nargs="?", default="", help=where)
    keys, names = (_names(some) for some in (kinds, [*kinds, *options]))
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].split("=")[0]
        _refuse(flag.lstrip("-").replace("-", "_"))
        raise ValueError(
            f"unknown argument {flag}{suggestion(flag.lstrip('-').replace('-', '_'), names, '--')}"
        )
    values = read_config(Path(namespace.config)) if namespace.config else {}
    remember_secrets([vars(namespace), values])
    for key in values:
        _refuse(str(key))
        if key not in keys:
            raise ValueError(f"{namespace.config}: unknown key {key!r}{suggestion(str(key), keys)}")
    # No flag says these.
    empty = {key: value for key, value in values.items() if value is None or value == []}
    # The others pass through the parser too, so that they are converted and checked as flags are.
    words = [
        word for key, value in values.items() if key not in empty for word in _as_flag(key, value)
    ]
    defaults = vars(parser.parse_args([]))
    from_yaml = vars(parser.parse_args(words))
    parser.set_defaults(**from_yaml | empty)
    parsed = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    for some in parsed:
        expand_paths(some)
    run, training, *own, _ = parsed
    return Settings(
        run, {name: value for name, value in vars(training).items() if value != defaults[name]}
    ), own


def _refuse(name: str) -> None:
    """Raise ValueError for a setting that other programs have, and a run does not for a reason."""
    if name in REFUSED:
        raise ValueError(f"{name}: {REFUSED[name]}")


def _names(kinds: Iterable[Any]) -> list[str]:
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


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


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?``, or an empty text if no known name is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def training_flags() -> type:
    """A dataclass of PADConfig's fields without those that a run sets itself.

    PADConfig itself cannot be used to parse flags, because its constructor looks for devices.
    """
    hints = get_type_hints(PADConfig)
    own = MANAGED | {field.name for field in dataclasses.fields(RunConfig)}
    fields = [
        (
            field.name,
            hints[field.name],
            dataclasses.field(
                default=field.default,
                default_factory=field.default_factory,
                metadata=field.metadata,
            ),
        )
        for field in dataclasses.fields(PADConfig)
        if field.init and field.name not in own
    ]
    flags = dataclasses.make_dataclass("TrainingFlags", fields)
    flags._argument_group_name = "training"  # type: ignore[attr-defined]
    return flags


def _as_flag(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]
