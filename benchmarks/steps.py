"""Whole steps of whole models: n responses of one prompt, scored or trained on, by the ways there are to do it.

A contestant's ``build(job)`` returns the call that gives the n rewards, with a gradient where the job trains. All of them see the
same model, which has random weights, and the same ids. The step is that call and, in training, a backward into all weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, memory
from benchmarks.cases import Inputs
from benchmarks.contestants import NAIVE, OURS, Contestant
from benchmarks.measure import Entry, guarded, paired_ratio, time_in_turns
from pad_fast.models.layout import PromptGroup
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.output_head import output_head
from pad_fast.models.packing import pack, split
from pad_fast.models.rewards import packed_rewards
from pad_fast.training.micro_batches import micro_batched_backward

CHECKED = 2  # responses whose rewards are held against the truth
LONGEST = 1 << 18  # tokens of a response, where a search ends

SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "llama",
        {
            "vocab_size": 97,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    ),
    "Llama, 20M": (
        "llama",
        {**SMALL, "num_key_value_heads": 2, "vocab_size": 32000, "tie_word_embeddings": True},
    ),
    "Llama-3.2-1B": (
        "llama",
        {
            **LLAMA,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "Gemma-2-2B": (
        "gemma2",
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
    ),
}


@dataclass(frozen=True)
class StepCase:
    job: str  # "training step", "scoring", "longest response" (of which R is where the search starts)
    model: str
    n: int
    prompt: int
    response: int
    dtype: str = "float32"
    checkpointing: bool = False
    rounds: int = 3

    @property
    def trains(self) -> bool:
        return self.job != "scoring"

    @property
    def label(self) -> str:
        length = "" if self.job == "longest response" else f" R={self.response:,}"
        parts = [self.job, self.model, f"n={self.n} P={self.prompt:,}{length}", self.dtype]
        return ", ".join([*parts, "checkpointed activations"] if self.checkpointing else parts)


class Job:
    """A case's model and ids, on their device."""

    def __init__(self, case: StepCase, device: torch.device, model: Any = None) -> None:
        self.case, self.device = case, device
        self.model = make_model(case, device) if model is None else model
        generator = torch.Generator().manual_seed(0)
        size = (case.prompt + case.n * case.response,)
        ids = torch.randint(self.model.config.vocab_size, size, generator=generator)
        prompt, responses = ids[: case.prompt], ids[case.prompt :].view(case.n, case.response)
        self.group = PromptGroup(prompt.tolist(), responses.tolist(), list(range(case.n)))
        self.input_ids = torch.cat([prompt.expand(case.n, -1), responses], 1).to(
            device
        )  # (n, P + R)
        self.responses = responses.to(device)  # (n, R)
        self.weights = torch.linspace(-1, 1.5, case.n, device=device)  # d loss / d reward

    @cached_property
    def truth(self) -> Tensor:
        """Rewards of the first responses, each alone, in float64 on a CPU and in float32 on a GPU."""
        exact = (
            copy.deepcopy(self.model)
            .eval()
            .to(torch.float64 if self.device.type == "cpu" else torch.float32)
        )
        with torch.no_grad():
            found = [
                _mean_logps(
                    exact(input_ids=self.input_ids[i, None], use_cache=False).logits, self, i
                )
                for i in range(CHECKED)
            ]
        return torch.cat(found).double()


def make_model(case: StepCase, device: torch.device) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, options = MODELS[case.model]
    config = AutoConfig.for_model(kind, **{"max_position_embeddings": LONGEST * 2, **options})
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    if case.checkpointing:
        name = (
            "activation_checkpointing_enable"
            if hasattr(model, "activation_checkpointing_enable")
            else "gradient_checkpointing_enable"
        )
        getattr(model, name)()
    return model.train(case.trains)


# Contestants.


def _mean_logps(logits: Tensor, job: Job, first: int = 0) -> Tensor:
    labels = job.responses[first : first + len(logits)]
    logps = logits[:, job.case.prompt - 1 : -1].log_softmax(
        -1, dtype=torch.promote_types(logits.dtype, torch.float32)
    )
    return logps.gather(-1, labels[..., None])[..., 0].mean(1)


def _plain(job: Job) -> Callable[[], Tensor]:
    return lambda: _mean_logps(job.model(input_ids=job.input_ids, use_cache=False).logits, job)


def _trl(job: Job) -> Callable[[], Tensor]:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(job.model)  # whose calls without fused_lm_head stay as they are
    labels = job.input_ids.clone()
    labels[:, : job.case.prompt] = -100

    def rewards() -> Tensor:
        logps = job.model(input_ids=job.input_ids, labels=labels, fused_lm_head=True).log_probs
        return logps[:, job.case.prompt - 1 :].mean(1)

    return rewards


def _liger(job: Job) -> Callable[[], Tensor]:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    head = output_head(job.model)
    if head.softcap:
        raise ImportError("Liger's chunked cross entropy of single tokens knows no softcap")

    def rewards() -> Tensor:
        hidden = job.model.get_decoder()(input_ids=job.input_ids, use_cache=False)[0][
            :, job.case.prompt - 1 : -1
        ]
        losses = Function.apply(
            hidden.flatten(0, 1), head.weight, job.responses.flatten(), 1.0, -100
        )
        return -losses.view(job.responses.shape).mean(1)

    return rewards


def _ours(job: Job, layout: str = "shared") -> Callable[[], Tensor]:
    if layout == "shared":  # raises where it does not fit
        choose_layout(job.model, [job.group], True, gradients=job.case.trains)
    packed = pack([job.group], layout, bucketed=job.device.type != "cpu").on(job.device)
    return lambda: packed_rewards(
        job.model, packed._replace(layout=copy.copy(packed.layout)), job.case.n
    )


UNSHARED = f"{OURS}, nothing shared"
JOBS = ("training step", "scoring")
STEP_CONTESTANTS = (
    Contestant(
        NAIVE,
        JOBS,
        _plain,  # type: ignore[arg-type]
        note="transformers, whole logits, log_softmax of the responses",
        package="transformers",
    ),
    Contestant("TRL fused head", JOBS, _trl, package="trl"),  # type: ignore[arg-type]
    Contestant("Liger chunked", JOBS, _liger, package="liger-kernel"),  # type: ignore[arg-type]
    Contestant(UNSHARED, JOBS, partial(_ours, layout="padded"), package="pad_fast"),
    Contestant(OURS, JOBS, _ours, package="pad_fast"),  # type: ignore[arg-type]
)


def make_step(contestant: Contestant, job: Job) -> memory.Step:
    call = contestant.build(job)  # type: ignore

    def step() -> tuple[Tensor, ...]:
        if not job.case.trains:
            with torch.no_grad():
                return (call(),)
        job.model.zero_grad(set_to_none=True)
        rewards = call()
        (rewards * job.weights).sum().backward()
        return (rewards.detach(),)

    return step


# Measuring.


def run_step_case(
    case: StepCase, contestants: Sequence[Contestant], device: torch.device, roofs: dict[str, float]
) -> list[dict]:
    """One record a contestant, as :func:`benchmarks.measure.run_case` gives them."""
    if case.job == "longest response":
        return longest_response(case, device)
    job = Job(case, device)
    entries = [Entry(contestant) for contestant in contestants if case.job in contestant.jobs]
    for entry in entries:
        with guarded(entry):
            _prepare(entry, job)
    job.model.zero_grad(set_to_none=True)
    time_in_turns(entries, case, Inputs({}, {}, job.weights), {})
    return [
        _record(case, entry, entries, "float64" if device.type == "cpu" else "float32")
        for entry in entries
    ]


def _prepare(entry: Entry, job: Job) -> None:
    entry.step = make_step(entry.contestant, job)
    job.model.zero_grad(set_to_none=True)  # gradients, which each step makes, are of its peak
    if job.device.type == "cuda":  # compiles
        entry.step()
        job.model.zero_grad(set_to_none=True)
    entry.found["peak_bytes"], (rewards,) = memory.allocated_peak(entry.step, job.device)
    entry.found["error"] = {"results": (rewards[:CHECKED].double() - job.truth).abs().max().item()}
    job.model.zero_grad(set_to_none=True)
    if job.device.type == "cpu":
        entry.found["rss_bytes"] = memory.resident_peak(entry.step)
    else:
        entry.clock = "cuda events"


def longest_response(case: StepCase, device: torch.device, most: int = LONGEST) -> list[dict]:
    """The longest response that a training step holds, to a twentieth: doubled until it does not fit, then halved between."""
    model = make_model(case, device)
    entries, found = [], {}
    tries: dict[str, Callable[[Job], object]] = {
        NAIVE: lambda job: make_step(STEP_CONTESTANTS[0], job)(),
        OURS: sliced_step,
    }
    for name, attempt in tries.items():
        entry = Entry(
            Contestant(
                name,
                (case.job,),
                _plain,  # type: ignore[arg-type]
                package="pad_fast" if name == OURS else "transformers",
            )
        )
        with guarded(entry):
            found[name] = entry.found["tokens"] = search(
                partial(_fits, case, device, model, attempt), case.response, most
            )
        entries.append(entry)
    return [
        {
            **_record(case, entry, entries, ""),
            "reason": entry.reason or f"longest response: {entry.found['tokens']:,} tokens",
        }
        for entry in entries
    ]


def sliced_step(job: Job) -> None:
    """A response at a time."""
    slices = [
        pack(part, "shared", bucketed=job.device.type != "cpu").on(job.device)
        for part in split([job.group], 1, "shared")
    ]
    job.model.zero_grad(set_to_none=True)
    micro_batched_backward(
        lambda part: packed_rewards(job.model, part, job.case.n),
        slices,
        lambda rewards: (rewards * job.weights).sum(),
    )


def _fits(
    case: StepCase, device: torch.device, model: Any, attempt: Callable[[Job], object], length: int
) -> bool:
    try:
        attempt(Job(replace(case, response=length), device, model))
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        memory.free_memory(device)  # empties the cache
    return True


def search(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The most that fits, to a twentieth below; 0 if ``start`` does not."""
    low, high = 0, start
    while high <= most and fits(high):
        low, high = high, 2 * high
    if low == 0 or high > most:
        return low
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _record(case: StepCase, entry: Entry, entries: list[Entry], against: str) -> dict:
    naive = next((e for e in entries if e.contestant.name == NAIVE), None)
    seconds = median(entry.times) if entry.times else None
    return {
        "job": case.job,
        "shape": {"N": case.n, "P": case.prompt, "R": case.response},
        "model": case.model,
        "checkpointing": case.checkpointing,
        "work": "forward+backward" if case.trains else "forward",
        "dtype": case.dtype,
        "case": case.label,
        "contestant": entry.contestant.name,
        "contestant_version": machine.version(entry.contestant.package),
        "same_job": True,
        "note": entry.contestant.note,
        "status": entry.status,
        "reason": entry.reason,
        "clock": entry.clock,
        "times_ms": [round(1000 * time, 3) for time in entry.times],
        "median_ms": seconds and 1000 * seconds,
        "tokens_per_second": seconds and case.n * (case.prompt + case.response) / seconds,
        "ratio_to_naive": paired_ratio(entry, naive),
        "peak_bytes": None,
        "rss_bytes": None,
        "error": None,
        "error_against": against,
        "roof_share": None,
        **entry.found,
    }


def _gpu_cases() -> Iterator[StepCase]:
    for model in ("Llama-3.2-1B", "Gemma-2-2B"):
        for checkpointing in (True, False):
            for n in (8, 16):
                for prompt, response in ((512, 512), (2048, 512), (512, 2048), (256, 8192)):
                    yield StepCase(
                        "training step", model, n, prompt, response, "bfloat16", checkpointing
                    )
        yield StepCase("longest response", model, 8, 512, 256, "bfloat16", True)


STEP_SUITES: dict[str, tuple[StepCase, ...]] = {
    "steps": (
        StepCase("training step", "Llama, 20M", 8, 512, 128),
        StepCase("scoring", "Llama, 20M", 8, 512, 128),
    ),
    "gpu-steps": tuple(_gpu_cases()),
    "steps-smoke": (
        StepCase("training step", "tiny", 3, 12, 5),
        StepCase("scoring", "tiny", 3, 12, 5),
    ),
}
