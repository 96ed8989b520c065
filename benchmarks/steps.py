"""Whole steps of whole models: n responses of one prompt, scored or trained on, in several ways.

``build(inputs)`` of a contestant returns the call that gives the n rewards, with a gradient if the
job trains. All contestants see the same model and the same ids. A step is that call and, in
training, a backward into all weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.contestants import NAIVE, OURS, Call, Participant
from benchmarks.measure import Entry, figures, guarded, time_in_turns
from benchmarks.records import Record
from benchmarks.step_cases import (
    CHECKED,
    LONGEST,
    StepCase,
    StepInputs,
    make_model,
    mean_logps,
    truth_dtype,
)
from benchmarks.step_profile import profiled_parts
from pad_fast.device import is_gpu
from pad_fast.models.layout import PromptGroup, first_equal
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.output_head import output_head
from pad_fast.models.packing import pack, split
from pad_fast.models.rewards import packed_rewards
from pad_fast.training.micro_batches import micro_batched_backward


@dataclass(frozen=True)
class StepContestant(Participant):
    """A contestant for :class:`~benchmarks.step_cases.StepCase`."""

    build: Callable[[StepInputs], Call]


# Contestants.


def _plain(inputs: StepInputs) -> Call:
    def rewards() -> Tensor:
        logits = inputs.model(input_ids=inputs.input_ids, use_cache=False).logits
        return mean_logps(logits, inputs)

    return rewards


def _trl(inputs: StepInputs) -> Call:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(inputs.model)  # calls without fused_lm_head stay as they are
    prompt = inputs.case.prompt
    labels = inputs.input_ids.clone()
    labels[:, :prompt] = -100
    options = {"labels": labels, "fused_lm_head": True}

    def rewards() -> Tensor:
        logps = inputs.model(input_ids=inputs.input_ids, **options).log_probs
        return logps[:, prompt - 1 :].mean(1)

    return rewards


def _liger(inputs: StepInputs) -> Call:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    head = output_head(inputs.model)
    if head.softcap:
        raise ImportError("Liger's chunked cross entropy of single tokens has no softcap")
    decoder, prompt = inputs.model.get_decoder(), inputs.case.prompt

    def rewards() -> Tensor:
        hidden = decoder(input_ids=inputs.input_ids, use_cache=False)[0][:, prompt - 1 : -1]
        labels = inputs.responses
        losses = Function.apply(hidden.flatten(0, 1), head.weight, labels.flatten(), 1.0, -100)
        return -losses.view(labels.shape).mean(1)

    return rewards


def _ours(inputs: StepInputs, layout: str = "shared") -> Call:
    read = _read_once(inputs.group)
    if layout == "shared":  # raises where it does not fit
        choose_layout(inputs.model, [read], True, gradients=inputs.case.trains)
    packed = pack([read], layout, bucketed=is_gpu(inputs.device)).on(inputs.device)
    places = torch.tensor(first_equal(inputs.group.responses), device=inputs.device)

    def rewards() -> Tensor:
        rows = packed._replace(layout=copy.copy(packed.layout))
        return packed_rewards(inputs.model, rows, inputs.case.n).index_select(0, places)

    return rewards


def _read_once(group: PromptGroup) -> PromptGroup:
    """The group without its repeats, as PADTrainer's collator makes it."""
    first = sorted(set(first_equal(group.responses)))
    return PromptGroup(group.prompt, [group.responses[i] for i in first], first)


OURS_UNSHARED = f"{OURS}, nothing shared"
JOBS = ("training step", "scoring")
NAIVE_STEP = StepContestant(
    NAIVE,
    JOBS,
    _plain,
    note="transformers, whole logits, log_softmax of the responses",
    package="transformers",
)
STEP_CONTESTANTS = (
    NAIVE_STEP,
    StepContestant(
        "TRL fused head",
        JOBS,
        _trl,
        note="on a CPU it scores the prompt's positions too",
        package="trl",
    ),
    StepContestant("Liger chunked", JOBS, _liger, package="liger-kernel"),
    StepContestant(OURS_UNSHARED, JOBS, partial(_ours, layout="padded"), package="pad_fast"),
    StepContestant(OURS, JOBS, _ours, package="pad_fast"),
)


def make_step(contestant: StepContestant, inputs: StepInputs) -> memory.Step:
    call = contestant.build(inputs)

    def step() -> tuple[Tensor, ...]:
        if not inputs.case.trains:
            with torch.no_grad():
                return (call(),)
        inputs.model.zero_grad(set_to_none=True)
        rewards = call()
        (rewards * inputs.weights).sum().backward()
        return (rewards.detach(),)

    return step


# Measuring.


def run_step_case(
    case: StepCase,
    contestants: Sequence[StepContestant],
    device: torch.device,
    roofs: dict[str, float],
) -> list[Record]:
    """Measure all contestants at a case, as :func:`benchmarks.measure.run_case` does."""
    if case.job == LONGEST:
        return longest_response(case, device)
    inputs = StepInputs(case, device)
    entries = [Entry(contestant) for contestant in contestants if _takes_part(contestant, case)]
    for entry in entries:
        with guarded(entry):
            _prepare(entry, inputs)
            if case.trains and not case.brief and entry.contestant.name == OURS:
                entry.found["profile"] = profiled_parts(inputs, entry.contestant.build(inputs))
    inputs.model.zero_grad(set_to_none=True)
    time_in_turns(entries, case.rounds, device)
    against = str(truth_dtype(device)).removeprefix("torch.")
    return [_record(case, entry, entries) | {"error_against": against} for entry in entries]


def _takes_part(contestant: StepContestant, case: StepCase) -> bool:
    return case.job in contestant.jobs and not (case.brief and contestant.name == OURS_UNSHARED)


def _prepare(entry: Entry[StepContestant], inputs: StepInputs) -> None:
    """Build and warm up a contestant; measure its memory and its error."""
    device = inputs.device
    entry.step = make_step(entry.contestant, inputs)
    # Each step makes the gradients anew, so that they are part of its peak.
    inputs.model.zero_grad(set_to_none=True)
    if is_gpu(device):  # compiles
        entry.step()
        inputs.model.zero_grad(set_to_none=True)
    entry.found["peak_bytes"], (rewards,) = memory.allocated_peak(entry.step, device)
    error = (rewards[:CHECKED].double() - inputs.truth).abs().max().item()
    entry.found["error"] = {"results": error}
    inputs.model.zero_grad(set_to_none=True)
    if is_gpu(device):
        entry.clock = "cuda events"
    elif not inputs.case.brief:
        entry.found["rss_bytes"] = memory.resident_peak(entry.step)


def longest_response(case: StepCase, device: torch.device) -> list[Record]:
    """The longest response that fits into a training step, to a twentieth."""
    model = make_model(case, device)
    tries: dict[str, tuple[str, Callable[[StepInputs], object]]] = {
        NAIVE: ("transformers", lambda inputs: make_step(NAIVE_STEP, inputs)()),
        OURS: ("pad_fast", response_by_response),
    }
    entries = []
    for name, (package, attempt) in tries.items():
        entry = Entry(Participant(name, (case.job,), package=package))
        with guarded(entry):
            fits = partial(_fits, case, device, model, attempt)
            tokens = entry.found["tokens"] = search(fits, case.response, case.most)
            entry.reason = f"longest response: {tokens:,} tokens"
        entries.append(entry)
    return [_record(case, entry, entries) | {"error_against": ""} for entry in entries]


def response_by_response(inputs: StepInputs) -> None:
    """Our training step in micro-batches of one response, with the exact gradient of all."""
    model, device = inputs.model, inputs.device
    parts = [
        pack(part, "shared", bucketed=is_gpu(device)).on(device)
        for part in split([inputs.group], 1, "shared")
    ]
    model.zero_grad(set_to_none=True)
    micro_batched_backward(
        lambda part: packed_rewards(model, part, inputs.case.n),
        parts,
        lambda rewards: (rewards * inputs.weights).sum(),
    )


def _fits(
    case: StepCase,
    device: torch.device,
    model: Any,
    attempt: Callable[[StepInputs], object],
    length: int,
) -> bool:
    try:
        attempt(StepInputs(replace(case, response=length), device, model))
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        memory.free_memory(device)  # empties the cache
    return True


def search(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest length that fits, to a twentieth; 0 if ``start`` does not.

    The length is doubled until it does not fit or exceeds ``most``, then the interval is halved.
    """
    low, high = 0, start
    while high <= most and fits(high):
        low, high = high, 2 * high
    if low == 0 or high > most:
        return low
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _record(case: StepCase, entry: Entry, entries: Sequence[Entry]) -> Record:
    found = figures(entry, entries)
    tokens = case.n * (case.prompt + case.response)
    return {
        "job": case.job,
        "shape": {"N": case.n, "P": case.prompt, "R": case.response},
        "model": case.model,
        "checkpointing": case.checkpointing,
        "repeats": case.repeats,
        "work": "forward+backward" if case.trains else "forward",
        "dtype": case.dtype,
        "case": case.label,
        "same_job": True,
        "roof_share": None,
        "tokens_per_second": found["median_ms"] and 1000 * tokens / found["median_ms"],
        **found,
    }
