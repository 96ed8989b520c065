"""The suites, and who takes part: the one list that ``python -m benchmarks`` and ``pytest benchmarks/`` run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.cases import Case
from benchmarks.contestants import PLAIN, Contestant
from benchmarks.peers import PEERS

CONTESTANTS: tuple[Contestant, ...] = PLAIN + PEERS


def _half_too(case: Case) -> tuple[Case, Case]:
    return case, replace(case, live=0.5)


def _forward_too(case: Case) -> tuple[Case, Case]:
    return replace(case, backward=False), case


def _others(prompts: int) -> tuple[Case, ...]:
    return (
        Case("reverse_kl", (prompts, 8)),
        Case("kl_sampled", (prompts, 16)),
        Case("jsd_sampled", (prompts, 8)),
    )


_LLAMA = Case("token_logprobs", (16384, 128256), dtype="bfloat16")
_GEMMA = Case("token_logprobs", (16384, 256000), dtype="bfloat16", softcap=30.0)
_LLAMA_HEAD = Case("linear_token_logprobs", (16384, 4096, 128256), dtype="bfloat16")
_GEMMA_HEAD = Case("linear_token_logprobs", (16384, 2304, 256000), dtype="bfloat16", softcap=30.0)
_LLAMA_LOSS = Case(
    "linear_preference_loss", (8, 4, 512, 4096, 128256), dtype="bfloat16", budget=2 << 30
)
_LLAMA_PAIRS = Case("linear_pair_loss", (16, 2, 512, 4096, 128256), dtype="bfloat16")
_CURVE = Case("linear_token_logprobs", (1024, 256, 8192))
_GPT2_HEAD = Case("linear_token_logprobs", (2048, 768, 50257), rounds=3)


def _curves(case: Case, budgets: tuple[int, ...], rows: tuple[int, ...]) -> Iterator[Case]:
    """Points of the pictures of time and memory, over the budget in MiB and over the number of rows."""
    yield from (replace(case, curve="budget", budget=budget << 20) for budget in budgets)
    yield from (replace(case, curve="M", shape=(size, *case.shape[1:])) for size in rows)


SUITES: dict[str, tuple[Case, ...]] = {
    "cpu": (
        *_forward_too(Case("token_logprobs", (256, 50257))),
        Case("token_logprobs", (256, 50257), live=0.5),
        Case("token_logprobs", (256, 50257), softcap=30.0),
        Case("token_logprobs", (256, 50257), dtype="bfloat16"),
        Case("response_rewards", (4, 64, 50257), live=0.5),
        _GPT2_HEAD,
        replace(_GPT2_HEAD, budget=512 << 20),  # all scores kept
        *_forward_too(Case("linear_token_logprobs", (512, 512, 32000))),
        Case("linear_token_logprobs", (512, 512, 32000), live=0.5),
        Case("linear_token_logprobs", (512, 512, 32000), frozen=True),
        Case("linear_preference_loss", (4, 4, 32, 512, 32000), budget=48 << 20),
        Case("linear_pair_loss", (8, 2, 32, 512, 32000)),
        *(
            Case(job, (64, n))
            for job, sizes in (("vpd", (4, 8, 12)), ("kl", (4, 6, 8, 12)), ("jsd", (4, 6, 8, 10)))
            for n in sizes
        ),
        *_others(64),
        *_curves(_CURVE, (0, 20, 28, 36, 48), (256, 512, 1024, 2048)),
    ),
    "gpu": (  # what has a target comes first: the last cases are dropped where the minutes are over
        replace(_LLAMA, backward=False, target_ms=1.10),
        replace(_LLAMA, target_ms=3.3),
        replace(_GEMMA, backward=False, target_ms=2.4),
        replace(_GEMMA, target_ms=6.8),
        replace(_LLAMA_HEAD, target_ms=75.0),
        replace(_LLAMA_HEAD, frozen=True, target_ms=50.0),
        replace(_LLAMA_HEAD, backward=False, target_ms=26.0),
        replace(_GEMMA_HEAD, target_ms=88.0),
        Case("kl", (512, 8), target_ms=0.06),
        Case("jsd", (512, 8), target_ms=0.3),
        _LLAMA_LOSS,
        _LLAMA_PAIRS,
        *_curves(
            _LLAMA_HEAD,
            (0, 1024, 2048, 3072, 4096, 5120),
            tuple(1024 << power for power in range(8)),
        ),
        *(
            Case(job, (512, n))
            for job, sizes in (("kl", (4, 12)), ("jsd", (4, 10)), ("vpd", (4, 8, 12)))
            for n in sizes
        ),
        *(replace(head, live=0.5) for head in (_LLAMA_HEAD, _GEMMA_HEAD)),
        replace(_LLAMA_HEAD, live=0.5, backward=False),
        replace(_LLAMA_HEAD, live=0.5, frozen=True),
        *_half_too(Case("response_rewards", (64, 256, 128256), dtype="bfloat16")),
        *(replace(case, live=0.5) for whole in (_LLAMA, _GEMMA) for case in _forward_too(whole)),
        *_others(512),
    ),
    "smoke": (  # every job in moments, for tests
        Case("token_logprobs", (48, 200), live=0.5),
        Case("token_logprobs", (48, 200), softcap=5.0, backward=False),
        Case("response_rewards", (4, 12, 200), live=0.5),
        Case("linear_token_logprobs", (48, 16, 200), live=0.5),
        Case("linear_token_logprobs", (48, 16, 200), softcap=5.0, frozen=True),
        Case("linear_preference_loss", (3, 4, 6, 16, 200), live=0.5, budget=1 << 19),
        Case("linear_pair_loss", (3, 2, 6, 16, 200), live=0.5),
        *_curves(Case("linear_token_logprobs", (600, 16, 200)), (0, 1), (48, 600)),
        Case("vpd", (5, 4)),
        Case("kl", (5, 4)),
        Case("jsd", (5, 4)),
        Case("reverse_kl", (5, 4)),
        Case("kl", (3, 9)),
    ),
}
