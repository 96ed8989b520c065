"""Calls that tools/kernel_resources.py compiles: every branch of a kernel that one can reach.

A branch is what changes the machine code: a dtype, a layout of logits, a softcap, a bias, a mask.
Those of hidden states and the output head are in tools/linear_kernel_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPES = SHORT | {"fp64": torch.float64}
WIDE = {"fp32": torch.float32, "fp64": torch.float64}
# A softcap of more than 100 bits, with which kernels keep the running maximum.
WIDE_CAP = " wide softcap"
CAPS = {"": 0.0, " softcap": 30.0, WIDE_CAP: 3e4}
# Whether responses have a mask, and whether they have lengths.
FORMS = {" both": (True, True), " mask": (True, False), " lengths": (False, True)}
FORMS |= {" alone": (False, False)}
# Listwise losses and their numbers of responses: where forms and numbers of registers differ, and
# the other ones.
OFTEN = {"kl exact": (8, 10, 11, 12), "reverse_kl exact": (8, 10, 11, 12), "jsd exact": (8, 10)}
OFTEN |= {"vpd exact": (8, 200), "kl sampled": (16,), "reverse_kl sampled": (16,)}
OFTEN |= {"jsd sampled": (16, 32)}
RARE = {"vpd exact": (2, 4, 16, 32, 64), "jsd exact": (4, 7), "jsd sampled": (2, 4, 8)}
RARE |= {"kl sampled": (2, 4, 8, 32), "reverse_kl sampled": (2, 4, 8, 32)}


@dataclass(frozen=True)
class Case:
    """A name, and a function that launches once on the named architecture."""

    name: str
    launch: Callable[[str], None]
    often: bool = True  # whether the test command compiles it, or the long tests alone


def logits_cases() -> list[Case]:
    """logprob_fwd and logprob_bwd, for each dtype and layout of logits, and with a softcap.

    Rows of 50,257 columns do not start at multiples of 16 bytes. The columns of "apart" logits are
    not neighbours, and "in place" the gradient is written there.
    """
    often = {"bf16 V=50257", "bf16 apart", "bf16 apart in place", "fp64 V=50257 softcap"}
    often |= {"bf16 V=50257 softcap"}
    layouts = ("", " V=50257", " apart", " apart in place")
    cases = []
    for (short, dtype), layout, (cap, softcap) in product(DTYPES.items(), layouts, CAPS.items()):
        name = f"{short}{layout}{cap}"
        go = _logits_case(dtype, softcap, layout)
        cases.append(Case(name, go, often=cap != WIDE_CAP and (not layout or name in often)))
    labels = _logits_case(torch.bfloat16, 0.0, "", labels_dtype=torch.int32)
    return [*cases, Case("bf16 int32", labels)]


def _logits(layout: str, dtype: torch.dtype) -> Tensor:
    """Logits (1, T, V) in a layout."""
    if layout.startswith(" apart"):
        return torch.zeros(1, 32768, 2, dtype=dtype).transpose(1, 2)
    return torch.zeros(1, 2, 32768 if not layout else 50257, dtype=dtype)


def _logits_case(
    dtype: torch.dtype, softcap: float, layout: str, labels_dtype: torch.dtype = torch.int64
) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.logprob import launch, tuning

        from pad_fast.logprob.softmax import TokenOptions

        logits = _logits(layout, dtype)
        labels = torch.zeros(logits.shape[:2], dtype=labels_dtype)
        options = TokenOptions(softcap=softcap)
        tiling = nearest(tuning.TILINGS, name).of(softcap)
        logp, *softmax = launch.forward(logits, labels, options, tiling=tiling)
        plain = torch.empty_like(logits, memory_format=torch.contiguous_format)
        written = logits if layout.endswith("in place") else plain
        launch.backward(logp, logits, labels, tuple(softmax), options, written, tiling=tiling)

    return go


def response_cases() -> list[Case]:
    """The kernels of response rewards, padded and packed, means and sums."""
    layouts = product(WIDE.items(), (("padded", False), ("packed", True)), ("", " sum"), (64, 32))
    cases = []
    for (short, dtype), (layout, packed), kind, bits in layouts:
        name = f"{short} {layout}{kind}{'' if bits == 64 else ' int32'}"
        go = _response_case(dtype, packed, not kind, torch.int64 if bits == 64 else torch.int32)
        cases.append(Case(name, go, often=not kind and bits == 64))
    return cases


def _response_case(
    dtype: torch.dtype, packed: bool, mean: bool, labels_dtype: torch.dtype
) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.logprob import launch

        logps, labels = torch.zeros(2, 512, dtype=dtype), torch.zeros(2, 512, dtype=labels_dtype)
        rows = (logps.view(-1), labels.view(-1), torch.zeros(1024, dtype=torch.int64))
        launch.sums(*(rows if packed else (logps, labels, None)), 2, -100, mean=mean)

    return go


def size_cases() -> list[Case]:
    """The exact divergences at every number of responses, with masks ("") and without any."""
    from pad_fast.kernels.preference.limits import EXACT as MOST

    return [
        Case(f"{kind} exact {n}{form}", _loss_case(kind, "exact", n, FORMS[form or " both"]))
        for kind, most in MOST.items()
        for n in range(2, 1 + (most or 0))
        for form in ("", " alone")
    ]


def preference_cases() -> list[Case]:
    """The listwise kernels, in sizes whose forms and numbers of registers differ.

    A name without a form has both masks where rankings are counted, lengths where they are drawn.
    """
    usual = {"exact": " both", "sampled": " lengths"}
    cases = []
    for (job, n), form in product(_jobs(OFTEN), FORMS):
        plain = form == usual[job.split()[1]]
        # The JSD of 8 or 10 takes 10 s or more to compile.
        if plain or not job.startswith("jsd exact"):
            go = _loss_case(*job.split(), n, FORMS[form])
            cases.append(Case(f"{job} {n}{'' if plain else form}", go, often=plain))
    for job, n in _jobs(RARE):
        go = _loss_case(*job.split(), n, FORMS[usual[job.split()[1]]])
        cases.append(Case(f"{job} {n}", go, often=False))
    for job in ("kl exact", "jsd exact", "vpd exact", "kl sampled", "reverse_kl sampled"):
        go = _loss_case(*job.split(), 6, FORMS[" both"], torch.float64)
        cases.append(Case(f"{job} 6 fp64", go, often=False))
    return [*cases, *_reduction_cases()]


def _jobs(table: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    return [(job, n) for job, numbers in table.items() for n in numbers]


def _loss_case(
    kind: str, method: str, n: int, form: tuple[bool, bool], dtype: torch.dtype = torch.float32
) -> Callable[[str], None]:
    """A listwise loss of ``n`` responses, with a mask and lengths as ``form`` says."""

    def go(name: str) -> None:
        from pad_fast.kernels.preference import launch

        from pad_fast.preference.plackett_luce import RankingOptions

        masked, filled = form
        live = torch.ones(2, n, dtype=torch.bool) if masked else None
        lengths = torch.ones(2, n, dtype=torch.int64) if filled else None
        rewards = torch.zeros(2, n, dtype=dtype)
        options = RankingOptions(10.0, 10.0, num_samples=256, seed=0)
        launch.forward(rewards, rewards, live, kind, method, options, name, lengths)

    return go


def _reduction_cases() -> list[Case]:
    def go(n: int, mean: bool, form: tuple[bool, bool]) -> Callable[[str], None]:
        def reduce(name: str) -> None:
            from pad_fast.kernels.preference import launch

            lengths = torch.ones(2, n, dtype=torch.int64)
            live, filled = (lengths > 0 if form[0] else None), (lengths if form[1] else None)
            launch.reduce(torch.zeros(2), live, filled, n, mean, name)

        return reduce

    both, alone = FORMS[" both"], FORMS[" alone"]
    means = [Case(f"mean {n}", go(n, True, both)) for n in (8, 200)]
    return [
        *means,
        Case("mean 8 alone", go(8, True, alone), often=False),
        Case("sum 8", go(8, False, alone), often=False),
    ]
