"""The configuration of a run: RunConfig, and Settings, which adds the fields of PADConfig."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pad_fast.evaluation.answers import RULES, check_rule
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.files.json_text import json_value
from pad_fast.launch import process
from pad_fast.models.layout import check_share_prefix
from pad_fast.pipeline.benchmark.config import BenchmarkConfig
from pad_fast.pipeline.calibration import FORMULAS, PRESETS, preset_defaults
from pad_fast.pipeline.lora_options import LoraOptions
from pad_fast.pipeline.multiple_choice import (
    DEFAULT_TEMPLATE,
    LETTERS,
    STYLES,
    choice_question,
    questions,
)
from pad_fast.pipeline.number_rules import RULES as RULES_OF_NUMBERS
from pad_fast.pipeline.option import option
from pad_fast.pipeline.origins import check_origins
from pad_fast.pipeline.output_dir import check_output_dir
from pad_fast.pipeline.server_settings import check_servers
from pad_fast.pipeline.step_size import BATCH, divided, with_product
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.secret_values import without_secrets
from pad_fast.training.number_rules import problems

if TYPE_CHECKING:
    from pad_fast.training.config import PADConfig


# Fields of TrainingArguments that a run sets itself; they are not keys of the YAML file.
MANAGED = frozenset({"do_train", "do_eval", "do_predict", "resume_from_checkpoint"})
# Arguments of Trainer that a run takes one value of, and why.
FIXED = {
    "eval_strategy": ("no", "a run evaluates every round itself"),
    "save_only_model": (False, "checkpoints only serve to resume, which takes the optimizer too"),
    "model_init_kwargs": (
        None,
        "a run loads its models itself, as dtype, train_dtype and attn_implementation say",
    ),
    "save_on_each_node": (False, "all machines share the run folder"),
    "ignore_data_skip": (False, "a training that is resumed would read other rows"),
}
TEACHER_RESPONSES = ("none", "greedy", "sampled")
# Arguments of Trainer that are files or need libraries.
LOADED = ("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config")
NO_SETTINGS = MANAGED | {"local_rank"}


@dataclass
class DistillationConfig(LoraOptions):
    """The settings of a distillation, in addition to those of PADConfig.

    The defaults are the paper's where it states a value (PAD, arXiv 2502.14272).

    Raises:
        ValueError: a field is missing or out of its range; the message names the field, its rule
            and the value.
    """

    student: str | None = option(
        None, "Student: folder or hub name of a transformers causal LM with a chat template."
    )
    teacher: str | None = option(
        None, "Teacher: folder or hub name; its tokenizer may differ from the student's."
    )
    prompts: str | None = option(
        None, "Training prompts: a .jsonl, .json, .csv or .parquet file, or the name of a dataset."
    )
    heldout: str | None = option(
        None, "Held-out prompts, given like prompts. Default: hold out some of the prompts."
    )
    output_dir: str | None = option(
        None, "Run folder. Default: runs/ followed by the name of the YAML file."
    )
    responses: str | None = option(
        None,
        "Prompts with responses that were sampled elsewhere, in place of prompts: a file or a "
        "dataset; scores in it are the rewards. They are those of the first round.",
    )
    responses_scores: Literal["keep", "ignore"] = option(
        "keep", "ignore: the teacher or the reward model scores responses that have scores too."
    )
    responses_split: str = option("train", "Split of responses, if they are a dataset.")
    reward_model: str | None = option(
        None,
        "Reward model in place of a teacher: folder or hub name of a transformers sequence "
        "classifier with one logit and a chat template.",
    )
    reward_model_revision: str | None = option(None, "Hub revision of the reward model.")
    prompts_split: str = option("train", "Split of prompts, if it is a dataset.")
    heldout_split: str = option("test", "Split of heldout, if it is a dataset.")
    prompts_subset: str | None = option(
        None, "Configuration name of the datasets of prompts, responses and heldout."
    )
    heldout_size: int | None = option(
        None,
        "Number of prompts to evaluate on. Default: all of heldout, or a tenth of prompts but at "
        "most 256.",
    )
    student_revision: str | None = option(None, "Hub revision of the student.")
    teacher_revision: str | None = option(None, "Hub revision of the teacher.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Data type for sampling and scoring; auto: that of the checkpoint."
    )
    train_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Data type of the trained weights. In bfloat16, updates of a small learning rate are lost "
        "to rounding.",
    )
    attn_implementation: str | None = option(
        None, "Attention of both models by its name in transformers, such as sdpa."
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'JSON object passed to both chat templates, such as {"enable_thinking": false}.'
        },
    )
    student_server: list[str] | None = option(
        None,
        "URLs of vLLM or SGLang servers that sample from the student. The run waits where a new "
        "round's student has to be loaded into them.",
    )
    teacher_server: list[str] | None = option(
        None, "URLs of vLLM or SGLang servers that score and answer in the teacher's place."
    )
    student_serve: str | None = option(
        None,
        "Command that serves the student, with {model} and {port}, such as 'vllm serve {model} "
        "--port {port} --data-parallel-size 8'. The run starts it where it samples, and ends it "
        "before it trains.",
    )
    teacher_serve: str | None = option(
        None, "Command that serves the teacher, given like student_serve."
    )
    server_concurrency: int = option(64, "Requests to each server at a time.")
    server_timeout: float = option(600.0, "Seconds that one request to a server may take.")
    server_patience: float = option(
        900.0, "Seconds for which no server may answer before the run stops."
    )
    serve_timeout: float = option(
        1800.0, "Seconds until a server that the run starts has to answer."
    )
    rounds: int = option(1, "Number of rounds; each samples from the latest student.")
    prompts_per_round: int | None = option(None, "Prompts in a round. Default: all of them.")
    shard_size: int = option(
        256, "Prompts in a shard; a killed run loses at most the work on one shard."
    )
    seed: int = option(42, "Seed; the seeds of all rounds and shards are derived from it.")
    num_generations: int = option(4, "Number of responses to each prompt, n.")
    temperature: float = option(0.8, "Sampling temperature.")
    top_p: float = option(1.0, "Probability mass of nucleus sampling; 1 turns it off.")
    top_k: int = option(0, "Number of tokens of top-k sampling; 0 turns it off.")
    max_new_tokens: int = option(512, "Longest response, in tokens of the student.")
    max_prompt_length: int | None = option(
        None,
        "Longest prompt, in tokens of the student. Default: the model's window minus "
        "max_new_tokens.",
    )
    long_prompts: Literal["error", "drop"] = option(
        "error", "Whether a longer prompt stops the run or is dropped."
    )
    sample_batch_tokens: int = option(
        65536, "Most tokens in a batch of sampling, prompts and responses together."
    )
    score_batch_tokens: int = option(16384, "Most tokens in a batch of scoring.")
    share_prefix: str = option(
        "auto",
        "Read each prompt once for all of its responses, in scoring and in training: auto (where "
        "a trial shows that the model allows it), true or false.",
    )
    reward_temperature: float = option(
        1.0, "Temperature of the log-probabilities in the rewards of student and teacher."
    )
    mcq_preset: str = option(
        "debiased",
        "Defaults of the other mcq options. debiased: rewards keep the scale of the "
        "log-probabilities at every mcq_weight; paper: the paper's formula; released: the authors' "
        "code.",
        PRESETS,
    )
    mcq_style: str = option(
        "pairwise",
        "What a multiple-choice question shows: "
        + ", ".join(f"{style.help} ({name})" for name, style in STYLES.items())
        + ".",
        STYLES,
    )
    mcq_opponents: int | None = option(
        None,
        "Number of other responses that each is compared with, even. Default: all; if n is above "
        "8, 8 in pairwise questions and 7 in listwise ones.",
    )
    mcq_formula: str | None = option(
        None,
        "How the teacher's reward r and its log selection probability l are mixed with the weight "
        "w = mcq_weight. "
        + "; ".join(f"{name}: {formula.help}" for name, formula in FORMULAS.items())
        + f". Default: {preset_defaults('mcq_formula')}.",
        FORMULAS,
    )
    mcq_weight: float | None = option(
        None,
        "Weight of the log selection probability in the teacher's reward, from 0 to 1; 0 asks "
        f"nothing. Default: {preset_defaults('mcq_weight')}.",
    )
    mcq_floor: float | None = option(
        None,
        "Smallest selection probability that enters a reward. Default: "
        f"{preset_defaults('mcq_floor')}.",
    )
    mcq_every_place: bool | None = option(
        None,
        "Ask so that every response stands in every place equally often, a pair in both orders and "
        "a list in all rotations, and average: a teacher's fondness for a place then cancels. "
        f"Default: {preset_defaults('mcq_every_place')}.",
    )
    mcq_renormalize: bool | None = option(
        None,
        "Divide by the probability of all offered letters. Default: "
        f"{preset_defaults('mcq_renormalize')}.",
    )
    mcq_template: str = option(
        DEFAULT_TEMPLATE,
        'Text of a question, with the fields {query}, {options} and, if wanted, {letters} ("A or '
        'B").',
    )
    heldout_num_generations: int | None = option(
        None, "Responses to each held-out prompt. Default: num_generations."
    )
    answer_rule: str = option(
        "exact",
        "When a response to a held-out prompt with an answer is right: "
        + ", ".join(f"{rule.help} ({name})" for name, rule in RULES.items())
        + ".",
        RULES,
    )
    score_cache: str | None = option(
        None,
        "Folder of the teacher's scores that many runs share, also at the same time: what another "
        "run asked of the same weights is not asked again. Default: the run's own folder.",
    )
    disable_tqdm: bool = option(False, "Show no progress bars.")
    accept_environment: bool = option(
        False,
        "Go on with a run folder that was begun with other versions or variables of the "
        "environment; its manifest tells of the change.",
    )
    validation_size: int | None = option(
        None,
        "Training prompts that no round trains on, and on which each student's greedy answers are "
        "measured: by the right answers, or where there are none by the teacher's rewards. "
        "Default: a tenth, at most 128; none if that is below 16.",
    )
    load_best_round: bool = option(
        True, "Name the round with the best validation as the run's student, not the last one."
    )
    patience: int = option(
        2, "Stop after so many rounds in a row without a better validation; 0 does all rounds."
    )
    teacher_system_prompt: str | None = option(
        None,
        "Instructions that the teacher is given and the student never sees: the teacher scores, "
        "answers and is asked under them, so that the student learns what a prompted teacher "
        "prefers.",
    )
    teacher_response: str = option(
        "none",
        "Whether the teacher's own answer to each training prompt is one more response of its "
        "group: none, greedy (or true) or sampled, at the temperature of the student's. Each is "
        "made once.",
    )
    prompts_per_step: int | None = option(
        None,
        "Prompts in one optimizer step over all processes. A run may then go on with another "
        "number of processes. Default: per_device_train_batch_size times "
        "gradient_accumulation_steps times the number of processes.",
    )
    baseline: Literal["none", "seqkd"] = option(
        "none",
        "seqkd: also train a student on one greedy answer of the teacher to each prompt, for as "
        "many steps.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = _json_object(
                "chat_template_kwargs", self.chat_template_kwargs
            )
        self._check_choice("mcq_preset")
        for name, value in PRESETS[self.mcq_preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in ("mcq_style", "mcq_formula"):
            self._check_choice(name)
        if self.heldout_num_generations is None:
            self.heldout_num_generations = self.num_generations
        for name in ("student", "output_dir"):
            if not getattr(self, name):
                raise ValueError(
                    f"{name}: needed, and not given; set it in the YAML file or with --{name}"
                )
        self._check_teacher_response()
        check_origins(self)
        check_output_dir(Path(str(self.output_dir)))
        self.share_prefix = str(check_share_prefix(self.share_prefix)).lower()
        self._check_numbers()
        check_rule(self.answer_rule)
        self.check_adapter()
        try:
            choice_question("", ["", ""], self.mcq_template)
        except ValueError as error:
            raise ValueError(f"mcq_{error}") from None
        check_servers(self)

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked multiple-choice questions."""
        return bool(self.teacher) and self.letters > 0 and self.mcq_weight != 0

    @property
    def has_judge(self) -> bool:
        """Whether there is a model that scores responses, a teacher or a reward model."""
        return bool(self.teacher or self.reward_model)

    @property
    def letters(self) -> int:
        """The number of letters in the longest question; 0 if none is asked."""
        asked = questions(
            self.most_generations, self.mcq_style, bool(self.mcq_every_place), self.mcq_opponents
        )
        return max(map(len, asked), default=0)

    @property
    def most_generations(self) -> int:
        """The largest number of responses to one prompt, in training or evaluation."""
        return max(self.responses_per_prompt, self.heldout_num_generations or 0)

    @property
    def responses_per_prompt(self) -> int:
        """The number of responses to a training prompt, the teacher's own included."""
        return self.num_generations + (self.teacher_response != "none")

    def _check_teacher_response(self) -> None:
        given = str(self.teacher_response).lower()
        self.teacher_response = {"true": "greedy", "false": "none"}.get(given, given)
        if self.teacher_response not in TEACHER_RESPONSES:
            raise ValueError(
                f"teacher_response: must be one of {', '.join(TEACHER_RESPONSES)}, got {given!r}"
            )
        for name, usual in (("teacher_response", "none"), ("teacher_system_prompt", None)):
            if getattr(self, name) != usual and not self.teacher:
                raise ValueError(f"{name}: needs a teacher, and none is given")

    def _check_choice(self, name: str) -> None:
        choices = self.__dataclass_fields__[name].metadata["choices"]
        if getattr(self, name) not in choices:
            raise ValueError(
                f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
            )

    def _check_numbers(self) -> None:
        for name, problem in problems(RULES_OF_NUMBERS, self):
            raise ValueError(f"{name}: {problem}")
        if (self.mcq_opponents or 0) % 2:
            raise ValueError(f"mcq_opponents: must be an even number, got {self.mcq_opponents}")
        if self.letters > len(LETTERS):
            raise ValueError(
                f"mcq_style: a {self.mcq_style} question shows at most {len(LETTERS)} responses, "
                f"got one of {self.letters}; set mcq_every_place: true or a smaller mcq_opponents"
            )


@dataclass
class RunConfig(BenchmarkConfig, DistillationConfig):
    """The settings of a run: those of the distillation, and those of benchmarks of its models.

    Raises:
        ValueError: a field is missing or out of its range; the message names the field, its rule
            and the value.
    """

    benchmarks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Benchmarks of the base student, the teacher and the student of each round: "
            + ", ".join(BENCHMARKS)
            + ". They may be added to a run that is finished."
        },
    )
    benchmark_questions: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object from a benchmark to the file of its questions. Default: fetch "
            "them from where they are kept."
        },
    )
    benchmark_judge: str = option(
        "teacher",
        "Who compares each model's answers with the base student's: teacher, none, or a folder or "
        "hub name of a causal LM. The numbers are not comparable with published ones.",
    )

    def __post_init__(self) -> None:
        DistillationConfig.__post_init__(self)
        BenchmarkConfig.__post_init__(self)
        if isinstance(self.benchmark_questions, str):
            self.benchmark_questions = _json_object("benchmark_questions", self.benchmark_questions)
        for setting in ("benchmarks", "benchmark_questions"):
            for name in getattr(self, setting) or ():
                if name not in BENCHMARKS:
                    known = ", ".join(BENCHMARKS)
                    raise ValueError(f"{setting}: must be among {known}, got {name!r}")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"benchmarks: must name each once, got {self.benchmarks}")
        judged = [name for name in self.benchmarks if BENCHMARKS[name].judged]
        if judged and self.benchmark_judge == "teacher" and not self.teacher:
            raise ValueError(
                f"benchmark_judge: the teacher is to judge {judged[0]}, and none is given; name a "
                "judge, or set it to none"
            )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json_value(text)
    except ValueError as error:
        raise ValueError(f"{name}: must be JSON ({error}), got {text!r}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: must be a JSON object, got {text!r}")
    return value


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    """Without secrets, and without what is asked for each time."""
    left_out = ("accept_environment",)
    return {name: value for name, value in without_secrets(values).items() if name not in left_out}


@dataclass(frozen=True)
class Settings:
    """The settings of one YAML file.

    Args:
        run: the run's own fields.
        training: PADConfig's fields, those that differ from their defaults.

    Raises:
        ValueError: the training cannot be done with them.
    """

    run: RunConfig
    training: dict[str, Any]

    def __post_init__(self) -> None:
        # A wrong setting of the training has to fail now and not after hours of sampling.
        training, n = self._built(), self.run.most_generations
        kind = LOSSES[training.loss].kind(training.divergence)
        kind.check_exact(training.method, min(n, training.group_size or n))
        if training.likelihood_on == "teacher" and self.run.teacher_response == "none":
            raise ValueError(
                "likelihood_on: teacher needs the teacher's own responses; set teacher_response to "
                "greedy or sampled"
            )
        for name, (only, why) in FIXED.items():
            given = getattr(training, name)
            if given != only:
                given = getattr(given, "value", given)  # an enumeration has one
                raise ValueError(f"{name}: must be {str(only).lower()}, since {why}, got {given}")

    def _built(self) -> PADConfig:
        """The training's arguments, whose errors all name a setting."""
        try:
            return self.pad_config(Path("unused"))
        except ValueError:
            raise
        except ImportError as error:
            named = [name for name in self.training if name in str(error)] or [*self.training]
            raise ValueError(
                f"{' or '.join(named)}: a package that it needs is not installed: {error}"
            ) from None
        except Exception as error:  # such as a file that a setting names, and is not there
            if (meeting := process.cannot_meet(error)) is not None:
                raise ValueError(meeting) from error
            given = [name for name in LOADED if self.training.get(name)]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{' or '.join(given or self.training)}: the training's arguments cannot be "
                f"built: {reason}"
            ) from error

    def pad_config(self, output_dir: Path, seed: int | None = None, **changes: Any) -> PADConfig:
        """The PADConfig of one training that writes to ``output_dir``, without making the folder.

        Args:
            output_dir: the trainer's folder.
            seed: of this training; the run's seed if not given.
            changes: PADConfig fields that override the settings.
        """
        from pad_fast.training.config import PADConfig

        # Checkpoints only serve to resume a training, and for that the last one is enough.
        values: dict[str, Any] = {"save_total_limit": 1, **self.training, **changes}
        if self.run.prompts_per_step is not None:
            usual: Any = PADConfig.__dataclass_fields__[BATCH].default
            values |= divided(self.run.prompts_per_step, self.training, usual)
        owned: dict[str, Any] = {"temperature": self.run.reward_temperature}
        owned |= {name: getattr(self.run, name) for name in ("disable_tqdm", "share_prefix")}
        return PADConfig(
            **values,
            **owned,
            output_dir=str(output_dir),
            seed=self.run.seed if seed is None else seed,
        )

    def flat(self) -> dict[str, Any]:
        """The settings that were given, and the run's own, as one mapping for JSON."""
        return _kept({**dataclasses.asdict(self.run), **self.training})

    def resolved(self, training: PADConfig) -> dict[str, Any]:
        """Every setting as one mapping for JSON, the training's defaults included.

        Args:
            training: what :meth:`pad_config` returns. Some of its values depend on the device and
                on the environment, such as ``mixed_precision``.
        """
        values = {
            **training.to_dict(),
            "mixed_precision": getattr(training, "mixed_precision", None),
        }
        values = {name: value for name, value in values.items() if name not in NO_SETTINGS}
        values |= dataclasses.asdict(self.run)
        values = with_product(values, self.run.prompts_per_step)
        return _kept(json.loads(json.dumps(values, default=str)))
