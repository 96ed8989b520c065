"""What a run is told: RunConfig, beside which every PADConfig field stands in the same YAML file."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pad_fast.models.layout import check_share_prefix
from pad_fast.pipeline.multiple_choice import DEFAULT_TEMPLATE, LETTERS, PRESETS, choice_question
from pad_fast.preference.kinds import LOSSES

if TYPE_CHECKING:
    from pad_fast.training.config import PADConfig


# A run sets these itself; they are no keys of the YAML file.
MANAGED = frozenset({"do_train", "do_eval", "do_predict", "resume_from_checkpoint"})


def option(default: Any, help: str) -> Any:
    """A dataclass field with the help text that `pad-fast run --help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class RunConfig:
    """Settings of a distillation run; the defaults are the paper's where it states one (arXiv 2502.14272).

    Every field is checked on construction: ValueError names the field, its rule and what was given.
    """

    student: str | None = option(
        None, "Folder or hub name of the student, a transformers causal LM with a chat template."
    )
    teacher: str | None = option(
        None, "Folder or hub name of the teacher; its tokenizer may differ from the student's."
    )
    prompts: str | None = option(
        None, "Training prompts: a .jsonl, .json, .csv or .parquet file, or the name of a dataset."
    )
    heldout: str | None = option(
        None, "Held-out prompts, as `prompts`; without it some of `prompts` are held out."
    )
    output_dir: str | None = option(
        None, "The run folder; runs/ and the YAML file's name when not given."
    )
    prompts_split: str = option("train", "Split of `prompts` when that is a dataset.")
    heldout_split: str = option("test", "Split of `heldout` when that is a dataset.")
    prompts_subset: str | None = option(None, "Configuration name of the dataset.")
    heldout_size: int | None = option(
        None,
        "Prompts to evaluate on; default: all of `heldout`, or a tenth of `prompts` but at most 256.",
    )
    student_revision: str | None = option(None, "Hub revision of the student.")
    teacher_revision: str | None = option(None, "Hub revision of the teacher.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Data type to sample and score in; auto: the checkpoint's."
    )
    train_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Data type of the trained weights; with bfloat16 a small learning rate rounds to nothing.",
    )
    attn_implementation: str | None = option(
        None, "Attention of both models, as transformers names it, such as sdpa."
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'JSON passed to both chat templates, such as {"enable_thinking": false}.'
        },
    )
    rounds: int = option(1, "Rounds; each samples from the latest student.")
    prompts_per_round: int | None = option(None, "Prompts of a round; default: all of them.")
    shard_size: int = option(
        256, "Prompts a shard; a killed run loses at most the shard it was at."
    )
    seed: int = option(42, "Seed of the run; that of every shard and round is derived from it.")
    num_generations: int = option(4, "Responses a prompt, n.")
    temperature: float = option(0.8, "Sampling temperature.")
    top_p: float = option(1.0, "Nucleus sampling; 1 is off.")
    top_k: int = option(0, "Top-k sampling; 0 is off.")
    max_new_tokens: int = option(512, "Longest response, in the student's tokens.")
    max_prompt_length: int | None = option(
        None, "Longest prompt, in the student's tokens; default: the window less max_new_tokens."
    )
    long_prompts: Literal["error", "drop"] = option(
        "error", "What to do with a prompt that is longer."
    )
    sample_batch_tokens: int = option(65536, "Tokens of one generation batch, prompt and response.")
    score_batch_tokens: int = option(16384, "Tokens of one scoring batch.")
    share_prefix: str = option(
        "auto",
        "Read a prompt once for all of its responses, in scoring and training: auto, true or false.",
    )
    reward_temperature: float = option(
        1.0, "Temperature of the log-probabilities that the rewards are made of, on both sides."
    )
    mcq_preset: Literal["debiased", "released"] = option(
        "debiased", "Defaults of the mcq options below; released: as the authors' code."
    )
    mcq_style: Literal["pairwise", "listwise", "none"] = option(
        "pairwise", "Multiple-choice questions of two, of all n, or none at all."
    )
    mcq_opponents: int | None = option(
        None,
        "Pairwise: other responses that each is asked against, an even number; default: all, but 8 where n is above 8.",
    )
    mcq_weight: float | None = option(
        None,
        "Weight of the log choice probability in the teacher's reward (debiased: 0.5, released: 1).",
    )
    mcq_floor: float | None = option(
        None, "Smallest choice probability (debiased: 1e-4, released: 1e-8)."
    )
    mcq_both_orders: bool | None = option(
        None, "Ask in both orders and average (debiased: true, released: false)."
    )
    mcq_renormalize: bool | None = option(
        None, "Renormalise over the offered letters (debiased: true, released: false)."
    )
    mcq_template: str = option(
        DEFAULT_TEMPLATE, "The question, with the fields {query} and {options}."
    )
    heldout_num_generations: int | None = option(
        None, "Responses a held-out prompt; default: num_generations."
    )
    disable_tqdm: bool = option(False, "No progress bars.")
    baseline: Literal["none", "seqkd"] = option(
        "none", "seqkd: also train on one greedy teacher answer a prompt, for as many steps."
    )

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = _json_object(
                "chat_template_kwargs", self.chat_template_kwargs
            )
        for name, value in PRESETS[self.mcq_preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.heldout_num_generations is None:
            self.heldout_num_generations = self.num_generations
        for name in ("student", "teacher", "prompts", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name}: needed, and not given")
        self.share_prefix = str(check_share_prefix(self.share_prefix)).lower()
        self._check_numbers()
        choice_question("", ["", ""], self.mcq_template)

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked any multiple-choice questions."""
        return self.mcq_style != "none" and self.mcq_weight != 0

    @property
    def letters(self) -> int:
        """The most letters that a question offers."""
        return (
            max(self.num_generations, self.heldout_num_generations or 0)
            if self.mcq_style == "listwise"
            else 2
        )

    def _check_numbers(self) -> None:
        rules: dict[str, tuple[str, Any]] = {
            "num_generations": ("at least 2, a ranking needs two", lambda n: n >= 2),
            "heldout_num_generations": ("at least 2, a ranking needs two", lambda n: n >= 2),
            "temperature": ("above 0; greedy responses would all be the same", lambda t: t > 0),
            "reward_temperature": ("above 0", lambda t: t > 0),
            "top_p": ("above 0 and at most 1", lambda p: 0 < p <= 1),
            "top_k": ("0 or more", lambda k: k >= 0),
            "mcq_weight": ("between 0 and 1", lambda w: 0 <= w <= 1),
            "mcq_floor": ("above 0 and below 1", lambda p: 0 < p < 1),
            "mcq_opponents": (
                "an even number, 2 or more",
                lambda n: n is None or (n >= 2 and n % 2 == 0),
            ),
            "heldout_size": ("0 or more", lambda n: n is None or n >= 0),
        }
        counts = "rounds shard_size max_new_tokens prompts_per_round max_prompt_length sample_batch_tokens score_batch_tokens"
        rules.update(
            {name: ("1 or more", lambda n: n is None or n >= 1) for name in counts.split()}
        )
        for name, (rule, holds) in rules.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name}: must be {rule}, got {getattr(self, name)}")
        if self.letters > len(LETTERS):
            raise ValueError(
                f"mcq_style: one listwise question holds at most {len(LETTERS)} responses, got {self.letters} generations"
            )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: must be JSON ({error}), got {text!r}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {text!r}")
    return value


@dataclass(frozen=True)
class Settings:
    """The two halves of one YAML file: the run's own fields, and those PADConfig fields that differ from their defaults."""

    run: RunConfig
    training: dict[str, Any]

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(
                "a run is one process, got WORLD_SIZE > 1; under accelerate launch use PADTrainer on the scored shards"
            )
        # a wrong learning rate must not show only after hours of sampling
        training, n = (
            self.pad_config(Path("unused")),
            max(self.run.num_generations, self.run.heldout_num_generations or 0),
        )
        kind = LOSSES[training.loss].kind(training.divergence)
        kind.check_exact(training.method, min(n, training.group_size or n))
        if training.eval_strategy != "no":
            raise ValueError(
                f"eval_strategy: must be no, a run evaluates every round itself, got {self.training['eval_strategy']}"
            )

    def pad_config(self, output_dir: Path, seed: int | None = None, **changes: Any) -> PADConfig:
        """The PADConfig of one training, writing to `output_dir`; creates no folder."""
        from pad_fast.training.config import PADConfig

        # Checkpoints serve only to go on after a kill, for which the last is enough.
        values: dict[str, Any] = {"save_total_limit": 1, **self.training, **changes}
        owned: dict[str, Any] = {"temperature": self.run.reward_temperature}
        owned |= {name: getattr(self.run, name) for name in ("disable_tqdm", "share_prefix")}
        return PADConfig(
            **values,
            **owned,
            output_dir=str(output_dir),
            seed=self.run.seed if seed is None else seed,
        )

    def flat(self) -> dict[str, Any]:
        """All settings as one JSON-ready mapping, as the manifest keeps it."""
        return {**dataclasses.asdict(self.run), **self.training}
