"""The suites: the one list of what is measured, which commands, tables and pictures iterate over.

A new suite is an entry of :data:`SUITES`. Its records are in results/NAME.jsonl. Two other studies
have commands and records of their own, ``demo`` and ``scaling``: tables.py and pictures/ name what
is made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from benchmarks import listwise
from benchmarks.cases import Case
from benchmarks.contestants import PLAIN, Contestant, Participant
from benchmarks.measure import run_case
from benchmarks.peers import PEERS
from benchmarks.records import Record
from benchmarks.step_cases import LONGEST, StepCase
from benchmarks.steps import STEP_CONTESTANTS, run_step_case
from benchmarks.trainers import TRAINER_CONTESTANTS, TrainerCase, run_trainer_case
from pad_fast import reference

CONTESTANTS: tuple[Contestant, ...] = PLAIN + PEERS


class AnyCase(Protocol):
    """What every case has, whatever it is a case of."""

    @property
    def label(self) -> str: ...


C = TypeVar("C", bound=AnyCase)
P = TypeVar("P", bound=Participant)
Measure = Callable[[C, Sequence[P], torch.device, dict[str, float]], list[Record]]


@dataclass(frozen=True)
class Suite(Generic[C, P]):
    """Cases that ``python -m benchmarks --suite NAME`` measures on one kind of device."""

    name: str  # which also names the file of its records
    title: str  # heading of its tables
    content: str  # what is measured, for help texts
    device: str  # "cpu" or "cuda"
    minutes: float  # no case is started after so long
    make_cases: Callable[[], Iterable[C]]
    contestants: Sequence[P]
    measure: Measure
    is_recorded: bool = True  # False: a suite for tests, without records and tables
    table: str = "full"  # a name in tables.LAYOUTS; there is no picture of "trainers"

    @property
    def cases(self) -> tuple[C, ...]:
        return tuple(self.make_cases())

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


# Cases of single operations.


def _half_too(case: Case) -> tuple[Case, Case]:
    return case, replace(case, live_share=0.5)


def _forward_too(case: Case) -> tuple[Case, Case]:
    return replace(case, backward=False), case


def _listwise(prompts: int) -> Iterator[Case]:
    """Every listwise job at its numbers of responses."""
    for job in listwise.jobs().values():
        yield from (Case(job.name, (prompts, n)) for n in job.sizes)


def _curves(case: Case, budgets: tuple[int, ...], rows: tuple[int, ...]) -> Iterator[Case]:
    """Points of curves, over the budget in MiB and over the number of rows."""
    for budget in budgets:
        yield replace(case, curve="budget", memory_budget=budget << 20)
    for size in rows:
        yield replace(case, curve="M", shape=(size, *case.shape[1:]))


def _cpu_cases() -> Iterator[Case]:
    yield from _forward_too(Case("token_logprobs", (256, 50257)))
    yield Case("token_logprobs", (256, 50257), live_share=0.5)
    yield Case("token_logprobs", (256, 50257), softcap=30.0)
    yield Case("token_logprobs", (256, 50257), dtype="bfloat16")
    yield Case("response_rewards", (4, 64, 50257), live_share=0.5)
    gpt2 = Case("linear_token_logprobs", (2048, 768, 50257), rounds=3)
    yield gpt2
    yield replace(gpt2, memory_budget=256 << 20)  # keeps the logits of half of its rows
    yield from _forward_too(Case("linear_token_logprobs", (512, 512, 32000)))
    yield Case("linear_token_logprobs", (512, 512, 32000), live_share=0.5)
    yield Case("linear_token_logprobs", (512, 512, 32000), frozen=True)
    yield Case("linear_preference_loss", (4, 4, 32, 512, 32000), memory_budget=48 << 20)
    yield Case("linear_pair_loss", (8, 2, 32, 512, 32000))
    yield from _listwise(64)
    small = Case("linear_token_logprobs", (1024, 256, 8192))
    yield from _curves(small, (0, 20, 28, 36, 48), (256, 512, 1024, 2048))


def _gpu_cases() -> Iterator[Case]:
    """In the order of worth, since the last cases are dropped when the minutes are over.

    A call may be cut off, and a table is of one run: so the rows of which documents speak come
    first, measured before or not: those with a target, small batches, an odd vocabulary, the host's
    time. Then losses, other rows, and points of curves. Last are losses whose plain form goes from
    prompt to prompt, for seconds a step.
    """
    targets = tuple(_gpu_targets())
    yield from targets
    llama, gemma, llama_head, gemma_head = (
        replace(targets[i], backward=True, target_ms=None) for i in (0, 2, 4, 7)
    )
    yield replace(llama_head, shape=(300, 4096, 128256))
    yield replace(llama_head, shape=(300, 4096, 128256), backward=False)
    # A vocabulary whose rows are padded, and a module with the time that the host takes.
    yield replace(llama_head, shape=(16384, 2048, 50257))
    yield Case("PADLoss", (4, 4, 64, 32000), dtype="bfloat16")
    llama_loss = Case("linear_preference_loss", (8, 4, 512, 4096, 128256), dtype="bfloat16")
    yield replace(llama_loss, memory_budget=2 << 30)
    yield Case("linear_pair_loss", (16, 2, 512, 4096, 128256), dtype="bfloat16")
    done = {case.label for case in targets}
    losses = [case for case in _listwise(512) if case.label not in done]
    one_by_one = [case for case in losses if case.job in reference.LOSSES and case.job != "vpd"]
    yield from (case for case in losses if case not in one_by_one)
    yield from (replace(head, live_share=0.5) for head in (llama_head, gemma_head))
    yield replace(llama_head, live_share=0.5, backward=False)
    yield replace(llama_head, live_share=0.5, frozen=True)
    yield from _half_too(Case("response_rewards", (64, 256, 128256), dtype="bfloat16"))
    for logits in (llama, gemma):
        yield from (replace(case, live_share=0.5) for case in _forward_too(logits))
    rows = tuple(1024 << power for power in range(8))
    yield from _curves(llama_head, (0, 1024, 2048, 3072, 4096, 5120), rows)
    yield from one_by_one


def _gpu_targets() -> Iterator[Case]:
    """The cases that we have a target for, on an H200."""
    llama = Case("token_logprobs", (16384, 128256), dtype="bfloat16")
    gemma = Case("token_logprobs", (16384, 256000), dtype="bfloat16", softcap=30.0)
    llama_head = Case("linear_token_logprobs", (16384, 4096, 128256), dtype="bfloat16")
    gemma_head = Case(
        "linear_token_logprobs", (16384, 2304, 256000), dtype="bfloat16", softcap=30.0
    )
    yield replace(llama, backward=False, target_ms=1.10)
    yield replace(llama, target_ms=3.3)
    yield replace(gemma, backward=False, target_ms=2.4)
    yield replace(gemma, target_ms=6.8)
    yield replace(llama_head, target_ms=75.0)
    yield replace(llama_head, frozen=True, target_ms=50.0)
    yield replace(llama_head, backward=False, target_ms=26.0)
    yield replace(gemma_head, target_ms=88.0)
    yield from (Case("kl", (512, 8), target_ms=0.06), Case("jsd", (512, 8), target_ms=0.3))


def _smoke_cases() -> Iterator[Case]:
    """Every job, in moments."""
    yield Case("token_logprobs", (48, 200), live_share=0.5)
    yield Case("token_logprobs", (48, 200), softcap=5.0, backward=False)
    yield Case("response_rewards", (4, 12, 200), live_share=0.5)
    yield Case("linear_token_logprobs", (48, 16, 200), live_share=0.5)
    yield Case("linear_token_logprobs", (48, 16, 200), softcap=5.0, frozen=True)
    loss = Case("linear_preference_loss", (3, 4, 6, 16, 200), live_share=0.5)
    yield replace(loss, memory_budget=1 << 19)
    yield Case("linear_pair_loss", (3, 2, 6, 16, 200), live_share=0.5)
    yield Case("PADLoss", (3, 4, 6, 200), live_share=0.5)
    yield from _curves(Case("linear_token_logprobs", (600, 16, 200)), (0, 1), (48, 600))
    for job in listwise.jobs().values():
        if job.method == "exact":
            yield Case(job.name, (5, 4))
    yield Case("kl", (3, 9))  # too many rankings to enumerate


# Cases of whole steps.


MODELS_ON_A_GPU = ("Llama-3.2-1B", "Gemma-2-2B")


def _gpu_steps() -> Iterator[StepCase]:
    """In the order of worth: each shape with both models before the next."""
    for n in (8, 16):
        for checkpointing in (True, False):
            for lengths in ((512, 512), (2048, 512), (512, 2048), (256, 8192)):
                for model in MODELS_ON_A_GPU:
                    case = StepCase("training step", model, n, *lengths, dtype="bfloat16")
                    yield replace(case, checkpointing=checkpointing)


def _gpu_longest() -> Iterator[StepCase]:
    for model in MODELS_ON_A_GPU:
        yield StepCase(LONGEST, model, 8, 512, 256, dtype="bfloat16", checkpointing=True)


def _steps_of(model: str, n: int, prompt: int, response: int) -> Iterator[StepCase]:
    for job in ("training step", "scoring"):
        yield StepCase(job, model, n, prompt, response)


def _cpu_steps(
    model: str = "Llama, 20M",
    lengths: tuple[int, int] = (512, 128),
    prompts: tuple[int, ...] = (128, 2048),
) -> Iterator[StepCase]:
    """Steps in full; then in brief with repeats, and with shorter and longer prompts."""
    yield from _steps_of(model, 8, *lengths)
    brief = StepCase("training step", model, 8, *lengths, rounds=1, brief=True)
    yield from (replace(brief, repeats=share) for share in (0.25, 0.5))
    yield from (replace(brief, prompt=prompt) for prompt in prompts)


def _trainers(model: str, prompt: int, response: int, steps: int) -> Iterator[TrainerCase]:
    for n in (2, 8):
        yield TrainerCase(model, n, prompt, response, steps)


# The list.

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "cpu",
            title="On a CPU",
            content="single operations",
            device="cpu",
            minutes=10,
            make_cases=_cpu_cases,
            contestants=CONTESTANTS,
            measure=run_case,
        ),
        Suite(
            "gpu",
            title="On a GPU",
            content="single operations at the shapes of Llama-3 and Gemma-2",
            device="cuda",
            minutes=8,
            make_cases=_gpu_cases,
            contestants=CONTESTANTS,
            measure=run_case,
        ),
        Suite(
            "steps",
            title="Whole steps on a CPU",
            content="whole steps of a Llama of 20M parameters, over repeats and prompts' lengths",
            device="cpu",
            minutes=8,
            make_cases=_cpu_steps,
            contestants=STEP_CONTESTANTS,
            measure=run_step_case,
            table="both",
        ),
        Suite(
            "trainers",
            title="Whole trainers on a CPU",
            content="steps of PADTrainer and of TRL's DPOTrainer, a Llama of 12M parameters",
            device="cpu",
            minutes=4,
            make_cases=lambda: _trainers("Llama, 12M", 512, 128, steps=5),
            contestants=TRAINER_CONTESTANTS,
            measure=run_trainer_case,
            table="trainers",
        ),
        Suite(
            "gpu-steps",
            title="Whole steps on a GPU",
            content="whole steps of Llama-3.2-1B and Gemma-2-2B",
            device="cuda",
            minutes=8,
            make_cases=_gpu_steps,
            contestants=STEP_CONTESTANTS,
            measure=run_step_case,
        ),
        Suite(
            "gpu-longest",
            title="The longest response on a GPU",
            content="the longest response that a training step of these models takes",
            device="cuda",
            minutes=5,
            make_cases=_gpu_longest,
            contestants=STEP_CONTESTANTS,
            measure=run_step_case,
        ),
        Suite(
            "smoke",
            title="Tiny cases",
            content="every job in moments, for tests",
            device="cpu",
            minutes=1,
            make_cases=_smoke_cases,
            contestants=CONTESTANTS,
            measure=run_case,
            is_recorded=False,
        ),
        Suite(
            "steps-smoke",
            title="Tiny whole steps",
            content="whole steps in moments, for tests",
            device="cpu",
            minutes=1,
            make_cases=lambda: _cpu_steps("tiny", (12, 5), (3,)),
            contestants=STEP_CONTESTANTS,
            measure=run_step_case,
            is_recorded=False,
        ),
    )
}
