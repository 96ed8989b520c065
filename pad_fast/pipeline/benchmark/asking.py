"""How a benchmark's questions are put to a model: limits, prompts, examples, thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.catalogue import Benchmark
from pad_fast.evaluation.benchmarks.records import Question

Message = dict[str, str]

OPENED, CLOSED = "<think>", "</think>"


@dataclass(frozen=True)
class Asking:
    """How the questions of one benchmark are asked.

    Args:
        benchmark: gives the rules that are left open.
        max_new_tokens: the longest answer, in tokens; None for the benchmark's own limit.
        temperature: of all questions; None for the benchmark's own rule.
        shots: solved problems that stand before each question; only GSM8K has them.
        suffix: text behind each thing that the user says.
        system_prompt: the system prompt; empty for what the chat template does without one.
        strip_thinking: whether blocks of thinking are removed from answers.
        seed: of the samples.
        from_hub: whether problems and examples are the hub's own, so that lm-eval's task can be
            taken as it is.
    """

    benchmark: Benchmark
    max_new_tokens: int | None = None
    temperature: float | None = None
    shots: Sequence[Question] = ()
    suffix: str = ""
    system_prompt: str = ""
    strip_thinking: bool = False
    seed: int = 42
    from_hub: bool = False

    def __post_init__(self) -> None:
        if self.shots and self.benchmark.judged:
            raise ValueError(
                f"shots: {self.benchmark.name} is asked without examples; only gsm8k has them"
            )

    @property
    def longest(self) -> int:
        """The longest answer, in tokens."""
        return self.max_new_tokens or self.benchmark.max_new_tokens

    def temperature_of(self, question: Question) -> float:
        """The temperature at which a question is answered."""
        if self.temperature is not None:
            return self.temperature
        return self.benchmark.temperature(question)

    def messages(self, question: Question, answers: Sequence[str]) -> list[Message]:
        """The conversation up to the turn that follows ``answers`` to the turns before it."""
        found: list[Message] = []
        if self.system_prompt:
            found.append({"role": "system", "content": self.system_prompt})
        found += gsm8k.shot_messages(self.shots, self.suffix)
        for turn, text in enumerate(question.turns[: len(answers) + 1]):
            said = text if self.benchmark.judged else gsm8k.asked(text)
            found.append({"role": "user", "content": said + self.suffix})
            if turn < len(answers):
                found.append({"role": "assistant", "content": answers[turn]})
        return found

    def shown(self, text: str) -> str:
        """A response as it enters the answer file and the turns that follow it."""
        text = without_thinking(text) if self.strip_thinking else text
        return text.strip() if self.benchmark.judged else gsm8k.until_stop(text)

    def record(self) -> dict[str, object]:
        """What the answers depend on, for the folder's manifest."""
        return {
            "max_new_tokens": self.longest,
            "temperature": "by the benchmark" if self.temperature is None else self.temperature,
            "shots": [shot.turns[0] for shot in self.shots],
            "from_hub": self.from_hub,
            "suffix": self.suffix,
            "system_prompt": self.system_prompt,
            "strip_thinking": self.strip_thinking,
            "seed": self.seed,
        }


def thinks(text: str) -> bool:
    """Whether a response holds a block of thinking, closed or not."""
    return CLOSED in text or text.lstrip().startswith(OPENED)


def without_thinking(text: str) -> str:
    """A response behind its last block of thinking; nothing if the block was never closed.

    Many chat templates open the block in the prompt, so that only its end is in the response.

    Example:
        >>> without_thinking("<think>2 and 2</think> 4"), without_thinking("<think>2 and")
        ('4', '')
    """
    if CLOSED in text:
        return text.rpartition(CLOSED)[2].strip()
    return "" if thinks(text) else text
