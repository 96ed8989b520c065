"""Sampling: the responses of the student and of the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.pipeline.option import option

TEACHER_RESPONSES = ("none", "greedy", "sampled")


@dataclass
class SamplingOptions:
    """Sampling: the responses of the student and of the teacher."""

    num_generations: int = option(4, "Number of responses to each prompt, n.")
    temperature: float = option(0.8, "Sampling temperature.")
    top_p: float = option(1.0, "Probability mass of nucleus sampling; 1 turns it off.")
    top_k: int = option(0, "Number of tokens of top-k sampling; 0 turns it off.")
    max_new_tokens: int = option(512, "Longest response, in tokens of the student.")
    teacher_response: str = option(
        "none",
        "Whether the teacher's own answer to each training prompt is one more response of its "
        "group: none, greedy (or true) or sampled, at the temperature of the student's. Each is "
        "made once.",
    )
    sample_batch_tokens: int | None = option(
        None,
        "Most tokens in a batch of sampling, prompts and responses together. Default: what fits "
        "the device, chosen when the run begins; at most 65,536 on a CPU and 524,288 on a GPU.",
    )

    @property
    def responses_per_prompt(self) -> int:
        """The number of responses to a training prompt, the teacher's own included."""
        return self.num_generations + (self.teacher_response != "none")

    def check_teacher_response(self) -> None:
        """Write teacher_response as one of its words, or raise ValueError."""
        given = str(self.teacher_response).lower()
        self.teacher_response = {"true": "greedy", "false": "none"}.get(given, given)
        if self.teacher_response not in TEACHER_RESPONSES:
            raise ValueError(
                f"teacher_response: must be one of {', '.join(TEACHER_RESPONSES)}, got {given!r}"
            )
