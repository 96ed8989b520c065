"""Time, peak memory and error of all contestants of a case, in one process, on the same inputs, in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from benchmarks import machine, memory
from benchmarks.cases import AXES, HEAD_JOBS, LISTWISE_JOBS, Case, Inputs, make_inputs
from benchmarks.contestants import NAIVE, Contestant, Unsupported, per_response, takes_part
from benchmarks.memory import Step
from benchmarks.truth import Truth, truth_of

SECONDS = {
    "cpu": 1.0,
    "cuda": 1.0,
}  # of one contestant's repetitions in a case, after which it rests
AT_LEAST = 3  # repetitions
CACHE = (
    256 << 20
)  # bytes written before each repetition on a GPU: more than any second-level cache holds
ROOM = 0.9  # of the memory that is free, which an estimate may reach


class Rounds(Protocol):
    """A case, as far as its repetitions go."""

    @property
    def rounds(self) -> int: ...


@dataclass
class Entry:
    """A contestant at a case while it is measured."""

    contestant: Contestant
    status: str = "ok"  # or absent, unsupported, skipped, failed
    reason: str | None = None
    step: Step | None = None
    clock: str = "wall"
    times: list[float] = field(default_factory=list)  # seconds
    found: dict = field(default_factory=dict)

    def fail(self, status: str, reason: object) -> None:
        self.status, self.reason, self.step = (
            status,
            " ".join(str(reason).split())[:300] or type(reason).__name__,
            None,
        )
        self.times.clear()
        self.found.clear()


@contextmanager
def guarded(entry: Entry) -> Iterator[None]:
    """Whatever a contestant raises is its own affair: it is recorded, and the others go on."""
    try:
        yield
    except ImportError as error:
        entry.fail("absent", error)
    except Unsupported as error:
        entry.fail("unsupported", error)
    except torch.OutOfMemoryError:
        entry.fail("failed", "out of memory")
    except Exception as error:
        entry.fail("failed", f"{type(error).__name__}: {error}")


def run_case(
    case: Case, contestants: Sequence[Contestant], device: torch.device, roofs: dict[str, float]
) -> list[dict]:
    """One record a contestant, without what is said of the machine."""
    entries = [
        Entry(contestant)
        for contestant in contestants
        if case.job in contestant.jobs and takes_part(case, contestant)
    ]
    try:
        inputs = make_inputs(case, device)
        truth = truth_of(case, inputs)
    except torch.OutOfMemoryError:
        for entry in entries:
            entry.fail("skipped", "out of memory for the inputs or their float64 results")
        return [_record(case, entry, entries, "float64", roofs) for entry in entries]
    spare: dict[str, Tensor] = {}
    for entry in entries:
        with guarded(entry):
            _prepare(entry, case, inputs, truth, spare)
    time_in_turns(entries, case, inputs, spare)
    return [_record(case, entry, entries, truth.against, roofs) for entry in entries]


def _prepare(
    entry: Entry, case: Case, inputs: Inputs, truth: Truth, spare: dict[str, Tensor]
) -> None:
    """Build and warm up a contestant; take its memory and its error."""
    contestant, device = entry.contestant, inputs.upstream.device
    needed, free = contestant.memory(case), memory.free_memory(device)
    if needed > ROOM * free:
        return entry.fail(
            "skipped", f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        )
    entry.step = make_step(contestant, case, inputs)
    if device.type == "cuda":  # on a CPU the step whose memory is taken warms up
        with preserved(entry, inputs, spare):
            entry.step()
    with preserved(entry, inputs, spare):
        peak, outputs = memory.allocated_peak(entry.step, device)
        entry.found["error"] = _errors(contestant, inputs, truth, outputs)
    entry.found["peak_bytes"] = peak - sum(output.nbytes for output in outputs)
    if device.type == "cpu":
        with preserved(entry, inputs, spare):
            entry.found["rss_bytes"] = memory.resident_peak(entry.step)
        return None
    entry.clock = "cuda events"
    if case.job in LISTWISE_JOBS:
        try:
            entry.step, entry.clock = capture(entry.step), "cuda graph"
        except RuntimeError as error:  # what waits for the device cannot be captured
            entry.reason = f"timed with its launches, no CUDA graph: {error}".splitlines()[0]
    return None


def _errors(
    contestant: Contestant, inputs: Inputs, truth: Truth, outputs: tuple[Tensor, ...]
) -> dict[str, float]:
    results = contestant.sign * outputs[0]
    errors = (
        {"loss": truth.scalar_error(-results)}
        if contestant.scalar
        else {"results": truth.result_error(results)}
    )
    for name, gradient in zip(inputs.leaves, outputs[1:], strict=False):  # none without a backward
        errors[name] = truth.gradient_error(name, gradient, contestant.scalar)
    return errors


def make_step(contestant: Contestant, case: Case, inputs: Inputs) -> Step:
    """Result, and gradients of the leaves where the case has a backward. Upstream is 1 for a scalar loss, else random numbers."""
    call = contestant.build(case, inputs)
    if case.job == "response_rewards" and contestant.per_token:
        call = per_response(case, inputs, call)
    leaves = tuple(inputs.leaves.values())
    upstream = contestant.sign * inputs.upstream
    if contestant.scalar:
        upstream = torch.ones((), device=upstream.device)

    def step() -> tuple[Tensor, ...]:
        if not case.backward:
            with torch.no_grad():
                return (call(),)
        result = call()
        return result.detach(), *torch.autograd.grad(result, leaves, upstream.to(result.dtype))

    return step


@contextmanager
def preserved(entry: Entry, inputs: Inputs, spare: dict[str, Tensor]) -> Iterator[None]:
    """Inputs that the contestant overwrites are put back afterwards, from copies that the first such contestant makes."""
    overwrites = entry.contestant.overwrites
    if overwrites and not spare:
        spare.update((name, leaf.detach().clone()) for name, leaf in inputs.leaves.items())
    try:
        yield
    finally:
        for name, copy in spare.items() if overwrites else ():
            inputs.leaves[name].detach().copy_(copy)


# Time.


def capture(step: Step) -> Step:
    """The step as a CUDA graph, so that a listwise loss shows the device's time and not that of launching."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def time_in_turns(
    entries: list[Entry], case: Rounds, inputs: Inputs, spare: dict[str, Tensor]
) -> None:
    """A round times each contestant once, each round starting with the next one, so that a slow spell of the machine hits them all."""
    device = inputs.upstream.device
    cache = torch.empty(CACHE, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for turn in range(case.rounds):
        running = [
            e
            for e in entries
            if e.step and (len(e.times) < AT_LEAST or sum(e.times) < SECONDS[device.type])
        ]
        if not running:
            break
        first = turn % len(running)
        for entry in running[first:] + running[:first]:
            with guarded(entry), preserved(entry, inputs, spare):
                entry.times.append(_time_once(entry, device, cache))


def _time_once(entry: Entry, device: torch.device, cache: Tensor | None) -> float:
    assert entry.step is not None
    if cache is not None:
        cache.zero_()  # also keeps the device busy while the host runs ahead
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        entry.step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    entry.step()
    return time.perf_counter() - begin


# Records.


def floor_seconds(case: Case, roofs: dict[str, float]) -> float | None:
    """The least time that the job can take: bytes read and written once, at the rate of a copy, or operations at that of a product.

    Rows that are ignored cost nothing but the zeros of their gradient. The backward of a linear job has two products, or one if the
    weight is frozen, and none is computed twice. None for listwise losses, which have no such floor.
    """
    if case.job in LISTWISE_JOBS:
        return None
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    if case.job not in HEAD_JOBS:
        moved = case.elements * size * (case.live * 2 + 1 if case.backward else case.live)
        return moved / roofs["copy"]
    products = 1 + (2 - case.frozen) * case.backward
    work = products * 2 * case.live * case.elements * case["D"]
    moved = (case["M"] + case["V"]) * case["D"] * size * (2 if case.backward else 1)
    return max(work / roofs.get(case.dtype, roofs["float32"]), moved / roofs["copy"])


def paired_ratio(entry: Entry, naive: Entry | None) -> float | None:
    """Median over the rounds that both were in."""
    if naive is None or not naive.times or not entry.times:
        return None
    return median(mine / other for mine, other in zip(entry.times, naive.times, strict=False))


def _record(
    case: Case, entry: Entry, entries: list[Entry], against: str, roofs: dict[str, float]
) -> dict:
    naive = next((e for e in entries if e.contestant.name == NAIVE), None)
    floor, time_found = floor_seconds(case, roofs), median(entry.times) if entry.times else None
    return {
        "job": case.job,
        "shape": dict(zip(AXES[case.job], case.shape, strict=True)),
        "work": case.work,
        "dtype": case.dtype,
        "live": case.live,
        "softcap": case.softcap,
        "frozen": case.frozen,
        "curve": case.curve,
        "budget": case.budget,
        "case": case.label,
        "contestant": entry.contestant.name,
        "contestant_version": machine.version(entry.contestant.package),
        "same_job": not entry.contestant.scalar,
        "note": entry.contestant.note,
        "status": entry.status,
        "reason": entry.reason,
        "clock": entry.clock,
        "times_ms": [round(1000 * seconds, 4) for seconds in entry.times],
        "median_ms": time_found and 1000 * time_found,
        "ratio_to_naive": paired_ratio(entry, naive),
        "peak_bytes": None,
        "rss_bytes": None,
        "error": None,
        "error_against": against,
        "floor_ms": floor and 1000 * floor,
        "target_ms": case.target_ms,
        "roof_share": floor / time_found if floor and time_found else None,
        **entry.found,
    }
