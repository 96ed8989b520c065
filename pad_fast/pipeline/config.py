"""RunConfig: the settings of a run, and how they depend on one another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.evaluation.answers import check_rule
from pad_fast.models.layout import check_share_prefix
from pad_fast.pipeline.compared import check_compared
from pad_fast.pipeline.multiple_choice import questions
from pad_fast.pipeline.number_rules import RULES
from pad_fast.pipeline.option import json_object
from pad_fast.pipeline.options.adapter import AdapterOptions
from pad_fast.pipeline.options.benchmarks import BenchmarkOptions
from pad_fast.pipeline.options.calibration import CalibrationOptions
from pad_fast.pipeline.options.evaluation import EvaluationOptions
from pad_fast.pipeline.options.models import ModelOptions
from pad_fast.pipeline.options.prompts import PromptOptions
from pad_fast.pipeline.options.rewards import RewardOptions
from pad_fast.pipeline.options.run import RunOptions
from pad_fast.pipeline.options.sampling import SamplingOptions
from pad_fast.pipeline.options.servers import ServerOptions
from pad_fast.pipeline.options.train import TrainOptions
from pad_fast.pipeline.origins import check_origins
from pad_fast.pipeline.output_dir import check_output_dir, usual_output_dir
from pad_fast.pipeline.server_settings import check_servers
from pad_fast.training.number_rules import problems


# A dataclass takes the fields of its bases from the last to the first, so the first group to be
# read stands last.
@dataclass
class RunConfig(
    BenchmarkOptions,
    ServerOptions,
    EvaluationOptions,
    AdapterOptions,
    TrainOptions,
    CalibrationOptions,
    RewardOptions,
    SamplingOptions,
    RunOptions,
    PromptOptions,
    ModelOptions,
):
    """The settings of a run, in addition to those of PADConfig.

    The defaults are the paper's where it states a value (PAD, arXiv 2502.14272).

    Raises:
        ValueError: a field is missing or out of its range; the message names the field, its rule
            and the value.
    """

    def __post_init__(self) -> None:
        left_open = [name for name, value in vars(self).items() if value is None]
        self.chat_template_kwargs = json_object("chat_template_kwargs", self.chat_template_kwargs)
        self.compare = json_object("compare", self.compare)
        check_compared(self.methods, self.rounds)
        self.check_calibration()
        if self.heldout_num_generations is None:
            self.heldout_num_generations = self.num_generations
        if not self.student:
            raise ValueError(
                "student: needed, and not given; set it in the YAML file or with --student"
            )
        if not self.output_dir:
            self.output_dir = usual_output_dir(self.student)
        self.check_teacher_response()
        for name, usual in (("teacher_response", "none"), ("teacher_system_prompt", None)):
            if getattr(self, name) != usual and not self.teacher:
                raise ValueError(f"{name}: needs a teacher, and none is given")
        check_origins(self)
        check_output_dir(Path(self.output_dir))
        self.share_prefix = str(check_share_prefix(self.share_prefix)).lower()
        for name, problem in problems(RULES, self):
            raise ValueError(f"{name}: {problem}")
        self.check_letters(self.letters)
        check_rule(self.answer_rule)
        self.check_adapter()
        check_servers(self)
        self.check_benchmarks(has_teacher=bool(self.teacher))
        self._derived = [name for name in left_open if getattr(self, name) is not None]

    def given(self) -> dict[str, Any]:
        """The settings without what was filled in: from these, another setting's change follows.

        Example:
            >>> config = RunConfig(student="s", teacher="t", prompts="p", output_dir="o")
            >>> config.heldout_num_generations, config.given()["heldout_num_generations"]
            (4, None)
        """
        return {**dataclasses.asdict(self), **dict.fromkeys(self._derived)}

    def changed(self, **changes: Any) -> RunConfig:
        """The settings with other values, from which the others follow as if they were given."""
        return RunConfig(**{**self.given(), **changes})

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The options of each method that is compared with the run's own, by its name."""
        assert not isinstance(self.compare, str)
        return self.compare or {}

    @property
    def asks(self) -> bool:
        """Whether the teacher is asked multiple-choice questions."""
        return bool(self.teacher) and self.letters > 0 and self.mcq_weight != 0

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
