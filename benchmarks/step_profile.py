"""Where the time of a whole training step goes: a share for each part of the model.

The step is profiled once, with the preference loss and AdamW, which the timed steps leave out: they
are the same for all contestants. An operation of the forward belongs to the module that it runs
in, one of the backward to the module of the forward's operation that it differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step_cases import StepInputs
from pad_fast.device import is_gpu
from pad_fast.losses import preference_loss

PREFIX = "part: "
BACKWARD = "autograd::engine::evaluate_function"
HEAD, ATTENTION, MLP = "head", "attention", "MLP"
LOSS, OPTIMIZER, OTHER = "loss", "optimizer", "norms, embedding and the rest"
PARTS = (HEAD, ATTENTION, MLP, LOSS, OPTIMIZER, OTHER)


def profiled_parts(inputs: StepInputs, call: Callable[[], Tensor]) -> dict[str, float]:
    """The share of each of :data:`PARTS` in the time of a training step: a GPU's own time, if any.

    Args:
        inputs: of the case; its model is changed by a step of AdamW with rate 0.
        call: gives the rewards (n,), with a gradient.

    Returns:
        Shares that add up to 1.
    """
    time = "self_device_time_total" if is_gpu(inputs.device) else "self_cpu_time_total"
    times = sums_by_part(profiled(inputs, call), attrgetter(time))
    return {part: time / sum(times.values()) for part, time in times.items()}


def profiled(inputs: StepInputs, call: Callable[[], Tensor]) -> list[Any]:
    """The profiler's events of one training step; arguments as of :func:`profiled_parts`."""
    model = inputs.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    teacher = torch.linspace(0, -1, inputs.case.n, device=inputs.device)[None]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        rewards = call()
        with record_function(PREFIX + LOSS):
            loss = preference_loss("ppd", rewards[None], teacher)
        loss.backward()
        with record_function(PREFIX + OPTIMIZER):
            optimizer.step()

    step()  # makes the state of AdamW
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if is_gpu(inputs.device) else []
    # Without acc_events torch 2.11 warns that it keeps the events of one cycle; there is but one.
    with _marked(model), profile(activities=activities, acc_events=True) as found:
        step()
    optimizer.zero_grad(set_to_none=True)
    return list(found.events())


@contextmanager
def _marked(model: Any) -> Iterator[None]:
    """Let the profiler see which part of the model an operation runs in."""
    marks: dict[nn.Module, record_function] = {}

    def enter(module: nn.Module, *_: Any) -> None:
        marks[module] = record_function(PREFIX + parts[module])
        marks[module].__enter__()

    def leave(module: nn.Module, *_: Any) -> None:
        marks.pop(module).__exit__(None, None, None)

    parts: dict[nn.Module, str] = {model.get_output_embeddings(): HEAD}
    for name, module in model.named_modules():
        for ending, part in ((".self_attn", ATTENTION), (".mlp", MLP)):
            if name.endswith(ending):
                parts[module] = part
    with ExitStack() as hooks:
        for module in parts:
            for handle in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ):
                hooks.callback(handle.remove)
        yield


def sums_by_part(events: list[Any], weight: Callable[[Any], float]) -> dict[str, float]:
    """The sum of a number of each event over the events of each of :data:`PARTS`."""
    of_forward = {
        event.sequence_nr: part
        for event in events
        if event.sequence_nr >= 0 and (part := _own_part(event)) is not None
    }
    totals = dict.fromkeys(PARTS, 0.0)
    for event in events:
        totals[_own_part(event) or _backward_part(event, of_forward)] += weight(event)
    return totals


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _own_part(event: Any) -> str | None:
    """The part that an operation of the forward runs in."""
    names = (one.name for one in _ancestors(event))
    return next((name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)), None)


def _backward_part(event: Any, of_forward: dict[int, str]) -> str:
    """The part of the forward that an operation of the backward differentiates."""
    nodes = (one for one in _ancestors(event) if one.name.startswith(BACKWARD))
    found = (of_forward[one.sequence_nr] for one in nodes if one.sequence_nr in of_forward)
    return next(found, OTHER)
