"""Models: which take part, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pad_fast.pipeline.option import option


@dataclass
class ModelOptions:
    """Models: which take part, and how they are loaded."""

    student: str | None = option(
        None, "Folder or hub name of the student. It is a causal LM with a chat template."
    )
    teacher: str | None = option(
        None, "Folder or hub name of the teacher. Its tokenizer may differ from the student's."
    )
    reward_model: str | None = option(
        None,
        "Folder or hub name of a reward model in place of a teacher. It is a transformers sequence "
        "classifier with one logit and a chat template.",
    )
    student_revision: str | None = option(None, "Hub revision of the student.")
    teacher_revision: str | None = option(None, "Hub revision of the teacher.")
    reward_model_revision: str | None = option(None, "Hub revision of the reward model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Data type for sampling and scoring; auto: that of the checkpoint."
    )
    attn_implementation: str | None = option(
        None, "Attention of both models by its name in transformers, such as sdpa."
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object passed to the chat templates of student, teacher and "
            'benchmark_judge, such as {"enable_thinking": false}.'
        },
    )
    teacher_system_prompt: str | None = option(
        None,
        "Instructions that the teacher is given and the student never sees: the teacher scores, "
        "answers and is asked under them, so that the student learns what a prompted teacher "
        "prefers.",
    )

    @property
    def has_judge(self) -> bool:
        """Whether there is a model that scores responses, a teacher or a reward model."""
        return bool(self.teacher or self.reward_model)
