"""Models that cannot be read, sampled from or asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import worlds
from safetensors.torch import load_file, save_file

from .attempt import Case, Spoil

TEMPLATE = "chat_template.jinja"


def _without(name: str, role: str = "student") -> Spoil:
    return lambda folder: (folder / role / name).unlink()


def _template(text: str, role: str = "student") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / role / TEMPLATE).write_text(text)

    return spoil


def _config(role: str = "student", **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / role / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def _cut_weights(role: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / role / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-200])

    return spoil


def _nan_weights(role: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / role / "model.safetensors"
        weights = load_file(path)
        save_file(
            {name: torch.full_like(value, torch.nan) for name, value in weights.items()},
            path,
            metadata={"format": "pt"},
        )

    return spoil


def _no_tokenizer(folder: Path) -> None:
    for path in (folder / "student").glob("tokenizer*"):
        path.unlink()


def _broken_config(folder: Path) -> None:
    (folder / "student" / "config.json").write_text('{"model_type": "llama",')


def _more_tokens(folder: Path) -> None:
    """A tokenizer with more tokens than the model's embedding has rows."""
    tokenizer = worlds.character_tokenizer([*worlds.CHARACTERS, *"äöüß"])
    tokenizer.save_pretrained(folder / "student")


def _short_teacher(folder: Path) -> None:
    shutil.rmtree(folder / "teacher")
    worlds.save_model(folder / "teacher", 1, window=8)


def _no_letters(folder: Path) -> Mapping[str, Any]:
    """A teacher without a token for B."""
    shutil.rmtree(folder / "teacher")
    letters = [letter for letter in worlds.CHARACTERS if letter != "B"]
    worlds.save_model(folder / "teacher", 1, tokenizer=worlds.character_tokenizer(letters))
    return {}


def _own_code(folder: Path) -> None:
    _config(model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})(folder)
    (folder / "student" / "mine.py").write_text("raise SystemExit('this code ran')\n")


def _model(what: str, spoil: Spoil, *says: str, **more: Any) -> Case:
    return Case("models", what, says, spoil, **more)


CASES = (
    Case("models", "no such folder", ("student", "nowhere"), settings={"student": "./nowhere"}),
    Case(
        "models",
        "a name that the hub does not have",
        ("teacher", "no-such-org/no-such-model"),
        settings={"teacher": "no-such-org/no-such-model"},
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    _model("no config.json", _without("config.json"), "student", "no config.json"),
    _model("a broken config.json", _broken_config, "student", "config.json"),
    _model("a model type that nobody knows", _config(model_type="llamma"), "student", "llamma"),
    _model("no weights", _without("model.safetensors"), "student", "no weights"),
    _model("no tokenizer", _no_tokenizer, "student", "tokenizer"),
    _model("no chat template", _without(TEMPLATE), "student", "no chat template", TEMPLATE),
    _model("a template that is no Jinja", _template("{% for %}"), "student", "chat template"),
    _model("a template without the messages", _template("hello"), "student's chat template"),
    _model(
        "a template that refuses the prompt",
        _template("{{ raise_exception('only in French') }}"),
        "student's chat template",
        "only in French",
    ),
    _model(
        "a template that never ends",
        _template(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
            "{% endfor %}{% endfor %}{% endfor %}"
        ),
        "student's chat template",
        "seconds",
    ),
    _model("a tokenizer beyond the embedding", _more_tokens, "student", "76 rows", "80 ids"),
    _model(
        "weights that are cut off, the student's",
        _cut_weights("student"),
        "student",
        "model.safetensors",
    ),
    _model(
        "weights that are cut off, the teacher's",
        _cut_weights("teacher"),
        "teacher",
        "model.safetensors",
    ),
    _model("weights that are NaN", _nan_weights("student"), "student", "not finite", reads=1),
    _model("code of its own", _own_code, "student", "trust_remote_code"),
    _model(
        "a teacher with a short window",
        _short_teacher,
        "teacher",
        "line 1",
        "at most 2",
        "max_new_tokens",
    ),
    _model("a teacher without a token for B", _no_letters, "teacher", "B", "mcq_style"),
)
