"""Settings that cannot be."""

from __future__ import annotations

from pathlib import Path

from .attempt import Case


def _written(text: str):
    def spoil(folder: Path) -> None:
        path = folder / "config.yaml"
        path.write_text(text + path.read_text() if text.endswith("\n") else text)

    return spoil


def _one(name: str, value: object, *says: str, what: str = "") -> Case:
    """A setting with a value that it cannot have."""
    return Case("settings", what or f"{name}: {value}", (name, *says), settings={name: value})


CASES = (
    _one("learing_rate", 1e-5, "unknown key", "config.yaml", "did you mean learning_rate?"),
    Case(
        "settings",
        "a flag that does not exist",
        ("--num_generation", "did you mean --num_generations?"),
        words=("--num_generation", "4"),
    ),
    Case(
        "settings",
        "a key that stands twice in the YAML file",
        ("config.yaml", "seed", "twice", "lines 1 and"),
        _written("seed: 1\n"),
    ),
    Case("settings", "a YAML list", ("config.yaml", "keys and values"), _written("[1, 2]")),
    Case("settings", "broken YAML", ("config.yaml", "line 1"), _written("student: [")),
    Case("settings", "an empty YAML file", ("config.yaml", "keys and values"), _written("")),
    Case(
        "settings", "no such YAML file", ("none.yaml", "no such file"), words=("CONFIG=none.yaml",)
    ),
    _one("student", None, "needed, and not given", what="no student"),
    _one("beta", -1, "-1"),
    _one("beta", "three", "three"),
    _one("temperature", float("inf"), "inf"),
    _one("learning_rate", float("nan"), "nan"),
    _one("learning_rate", -1, "-1"),
    _one("seed", 10**20, str(10**20)),
    _one("rounds", 10**9, "1000000000"),
    _one("num_generations", 1, "got 1", "a ranking needs two"),
    _one("top_p", 1.5, "1.5"),
    _one("per_device_train_batch_size", 0, "got 0"),
    _one("loss", "pdd", "pdd", "ppd"),
    _one("dtype", "float8", "float8", "bfloat16"),
    _one("lr_scheduler_type", "cosin", "cosin", "cosine"),
    _one("num_train_epochs", "many", "many"),
    _one("mcq_template", "{query} {choices}", "{options}"),
    _one("chat_template_kwargs", "{thinking: no}", "JSON"),
    _one("max_new_tokens", 100_000, "100000"),
    _one("max_length", 3, "line 1", "at most 2", "max_length"),
    _one("report_to", "wandb", "wandb", "install"),
    _one("optim", "adamw_bnb_8bit", "adamw_bnb_8bit", "bitsandbytes"),
    _one("push_to_hub", True, "push_to_hub"),
    _one("eval_strategy", "epoch", "epoch", "a run evaluates"),
    _one("deepspeed", "ds.json", "not installed"),
    _one("trust_remote_code", True, "trust_remote_code"),
)
