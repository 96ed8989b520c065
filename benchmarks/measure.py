"""Time, peak memory and error of all contestants of a case, in one process, on the same inputs.

Contestants are timed in turns: see :func:`time_in_turns`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Generic, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import machine, memory
from benchmarks.cases import LISTWISE, LOGITS_LOSS, Case, Inputs, make_inputs
from benchmarks.contestants import NAIVE, Contestant, Participant, Unsupported, per_response
from benchmarks.float64_truth import Truth, truth_of
from benchmarks.memory import Step
from benchmarks.records import Record
from pad_fast.device import is_gpu, synchronize

# A contestant whose repetitions add up to this is not timed again. A GPU's clock is its own, and
# its repetitions differ little.
ENOUGH_SECONDS, ENOUGH_SECONDS_ON_A_GPU = 1.0, 0.4
MIN_REPETITIONS = 3
CACHE_BYTES = 256 << 20  # more than any second-level cache; written before each repetition on a GPU
BY_HOST = "wall, with launches"  # a GPU's clock for what takes the host longer than the device
USABLE_SHARE = 0.9  # share of the free memory that a contestant may need

P = TypeVar("P", bound=Participant)


@dataclass
class Entry(Generic[P]):
    """A contestant at a case while it is measured."""

    contestant: P
    status: str = "ok"  # or absent, unsupported, skipped, failed
    reason: str | None = None
    step: Step | None = None
    clock: str = "wall"
    times: list[float] = field(default_factory=list)  # seconds
    found: dict = field(default_factory=dict)  # other figures of the record
    # The context of each repetition, which restores inputs that the contestant overwrites.
    restoring: Callable[[], AbstractContextManager] = nullcontext

    def fail(self, status: str, reason: object) -> None:
        text = " ".join(str(reason).split())[:300]
        self.status, self.reason = status, text or type(reason).__name__
        self.step = None
        self.times.clear()
        self.found.clear()


@contextmanager
def guarded(entry: Entry) -> Iterator[None]:
    """Record whatever the contestant raises, so that the others go on."""
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
) -> list[Record]:
    """Measure all contestants that take part in a case.

    Returns:
        A record for each, without the description of the machine.
    """
    entries = [Entry(contestant) for contestant in contestants if contestant.takes_part(case)]
    try:
        inputs = make_inputs(case, device)
        truth = truth_of(case, inputs)
    except torch.OutOfMemoryError:
        for entry in entries:
            entry.fail("skipped", "out of memory for the inputs or their float64 results")
        return _records(case, entries, "float64", roofs)
    copies: dict[str, Tensor] = {}
    for entry in entries:
        if entry.contestant.overwrites_inputs:
            entry.restoring = partial(_restored, inputs, copies)
        with guarded(entry):
            _prepare(entry, case, inputs, truth)
    time_in_turns(entries, case.rounds, device)
    return _records(case, entries, truth.against, roofs)


@contextmanager
def _restored(inputs: Inputs, copies: dict[str, Tensor]) -> Iterator[None]:
    """Restore the inputs afterwards, from copies that the first such contestant makes."""
    if not copies:
        copies.update((name, leaf.detach().clone()) for name, leaf in inputs.leaves.items())
    try:
        yield
    finally:
        for name, copy in copies.items():
            inputs.leaves[name].detach().copy_(copy)


def _prepare(entry: Entry[Contestant], case: Case, inputs: Inputs, truth: Truth) -> None:
    """Build and warm up a contestant; measure its memory and its error."""
    contestant, device = entry.contestant, inputs.upstream.device
    needed, free = contestant.least_memory(case), memory.free_memory(device)
    if needed > USABLE_SHARE * free:
        sizes = f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
        return entry.fail("skipped", sizes)
    entry.step = make_step(contestant, case, inputs)
    if is_gpu(device):  # on a CPU the step whose memory is measured warms up
        with entry.restoring():
            entry.step()
    with entry.restoring():
        peak, outputs = memory.allocated_peak(entry.step, device)
        entry.found["error"] = _errors(contestant, inputs, truth, outputs)
    entry.found["peak_bytes"] = peak - sum(output.nbytes for output in outputs)
    if not is_gpu(device):
        with entry.restoring():
            entry.found["rss_bytes"] = memory.resident_peak(entry.step)
        return None
    entry.clock = BY_HOST if case.family == LOGITS_LOSS else "cuda events"
    if case.family == LISTWISE:
        _try_to_capture(entry)
    return None


def _errors(
    contestant: Contestant, inputs: Inputs, truth: Truth, outputs: tuple[Tensor, ...]
) -> dict[str, float]:
    results = contestant.sign * outputs[0]
    if contestant.scalar:
        errors = {"loss": truth.scalar_error(-results)}
    else:
        errors = {"results": truth.result_error(results)}
    for name, gradient in zip(inputs.leaves, outputs[1:], strict=False):  # none without a backward
        errors[name] = truth.gradient_error(name, gradient, contestant.scalar)
    return errors


def make_step(contestant: Contestant, case: Case, inputs: Inputs) -> Step:
    """The step that is measured: the result and, if the case has a backward, the gradients.

    The gradient of a scalar loss is 1, that of other results is random.
    """
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

    if not contestant.environment:
        return step

    def step_in_its_environment() -> tuple[Tensor, ...]:
        with patch.dict(os.environ, contestant.environment):
            return step()

    return step_in_its_environment


# Time.


def _try_to_capture(entry: Entry) -> None:
    assert entry.step is not None
    try:
        entry.step, entry.clock = capture(entry.step), "cuda graph"
    except RuntimeError as error:  # a step that waits for the device cannot be captured
        entry.reason = f"timed with its launches, no CUDA graph: {error}".splitlines()[0]


def capture(step: Step) -> Step:
    """The step as a CUDA graph, whose time is the device's alone, without launches."""
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


def time_in_turns(entries: Sequence[Entry], rounds: int, device: torch.device) -> None:
    """Time each contestant once a round, at most ``rounds`` times.

    Each round begins with the next contestant, so that a slow spell of the machine hits them all.
    """
    gpu = is_gpu(device)
    enough = ENOUGH_SECONDS_ON_A_GPU if gpu else ENOUGH_SECONDS
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device) if gpu else None
    for turn in range(rounds):
        running = [entry for entry in entries if entry.step and not _has_enough(entry, enough)]
        if not running:
            break
        first = turn % len(running)
        for entry in running[first:] + running[:first]:
            with guarded(entry), entry.restoring():
                entry.times.append(_time_once(entry, device, cache))


def _has_enough(entry: Entry, seconds: float) -> bool:
    return len(entry.times) >= MIN_REPETITIONS and sum(entry.times) >= seconds


def _time_once(entry: Entry, device: torch.device, cache: Tensor | None) -> float:
    assert entry.step is not None
    if cache is not None and entry.clock != BY_HOST:
        cache.zero_()  # also keeps the device busy while the host runs ahead
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        entry.step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    synchronize(device)
    begin = time.perf_counter()
    entry.step()
    synchronize(device)
    return time.perf_counter() - begin


# Records.


def floor_seconds(case: Case, roofs: dict[str, float]) -> float | None:
    """The least time that a job can take, from the roofs of the machine.

    It is the time of reading and writing every byte once at the rate of a copy, or of the
    operations at the rate of a product. Ignored rows cost only the zeros of their gradient. The
    backward of a linear job has two products, or one if the weight is frozen, and none is computed
    twice. None for listwise losses, which have no such floor.
    """
    if case.family == LISTWISE:
        return None
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    if not case.uses_head:
        passes = case.live_share * 2 + 1 if case.backward else case.live_share
        return case.num_logits * size * passes / roofs["copy"]
    products = 1 + (2 - case.frozen) * case.backward
    work = products * 2 * case.live_share * case.num_logits * case["D"]
    moved = (case["M"] + case["V"]) * case["D"] * size * (2 if case.backward else 1)
    return max(work / roofs.get(case.dtype, roofs["float32"]), moved / roofs["copy"])


def paired_ratio(entry: Entry, naive: Entry | None) -> float | None:
    """The median ratio of the times of the rounds that both were in."""
    if naive is None or not naive.times or not entry.times:
        return None
    return median(mine / other for mine, other in zip(entry.times, naive.times, strict=False))


def figures(entry: Entry, entries: Sequence[Entry]) -> Record:
    """The keys that every record has of its contestant, next to those of the case."""
    naive = next((e for e in entries if e.contestant.name == NAIVE), None)
    return {
        "contestant": entry.contestant.name,
        "contestant_version": machine.version(entry.contestant.package),
        "note": entry.contestant.note,
        "status": entry.status,
        "reason": entry.reason,
        "clock": entry.clock,
        "times_ms": [round(1000 * seconds, 4) for seconds in entry.times],
        "median_ms": 1000 * median(entry.times) if entry.times else None,
        "ratio_to_naive": paired_ratio(entry, naive),
        "peak_bytes": None,
        "rss_bytes": None,
        "error": None,
        **entry.found,
    }


def _records(
    case: Case, entries: Sequence[Entry[Contestant]], against: str, roofs: dict[str, float]
) -> list[Record]:
    return [_record(case, entry, entries, roofs) | {"error_against": against} for entry in entries]


def _record(
    case: Case,
    entry: Entry[Contestant],
    entries: Sequence[Entry[Contestant]],
    roofs: dict[str, float],
) -> Record:
    floor = floor_seconds(case, roofs)
    seconds = median(entry.times) if entry.times else None
    return {
        "job": case.job,
        "shape": case.sizes,
        "work": case.work,
        "dtype": case.dtype,
        "live": case.live_share,
        "softcap": case.softcap,
        "frozen": case.frozen,
        "curve": case.curve,
        "budget": case.memory_budget,
        "case": case.label,
        "same_job": not entry.contestant.scalar,
        "floor_ms": floor and 1000 * floor,
        "target_ms": case.target_ms,
        "roof_share": floor / seconds if floor and seconds else None,
        **figures(entry, entries),
    }
