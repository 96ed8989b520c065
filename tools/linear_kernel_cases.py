"""Calls of the kernels of hidden states times the head, for tools/kernel_resources.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from unittest.mock import patch

import torch

from tools.kernel_cases import CAPS, DTYPES, SHORT, WIDE, WIDE_CAP, Case


def linear_cases() -> list[Case]:
    """The kernels of hidden states times the head.

    "kept" writes d log p / d logits in the named dtype, "tile" those of logits computed again, and
    "alone" does not. Other names are of the product without logits. "odd" is a vocabulary that 16
    does not divide, in padded rows, or a width whose rows do not start at multiples of 16 bytes;
    the rows of a width of 264 do, but 16 does not divide it.
    """
    return _row_cases() + _fused_cases()


def _row_cases() -> list[Case]:
    often = {"kept bf16 bias", "kept bf16 odd", "tile bf16 odd"}
    often |= {"alone", "alone bias", "alone fp64"}
    cases = []

    def add(name: str, cap: str, go: Callable[[str], None]) -> None:
        short = name in often or (len(name.split()) == 2 and not name.startswith("alone"))
        cases.append(Case(name + cap, go, often=short and cap != WIDE_CAP))

    for (cap, softcap), (short, dtype) in product(CAPS.items(), DTYPES.items()):
        for (odd, columns), bias in product((("", 32768), (" odd", 50257)), ("", " bias")):
            added = dtype if bias else None
            go = _row_case(softcap, dtype, dtype, added, columns)
            add(f"kept {short}{bias}{odd}", cap, go)
            if bias or short in WIDE:  # without a bias 16-bit rows are those of float32
                name = f"alone {short}{bias}{odd}".replace(" fp32", "")
                add(name, cap, _row_case(softcap, dtype, None, added, columns))
        for odd, columns in (("", 8192), (" odd", 1105)):
            add(f"tile {short}{odd}", cap, _tile_case(softcap, dtype, columns))
    # Where 16-bit products are widened, the bias keeps its dtype.
    widened = _row_case(0.0, torch.bfloat16, torch.float32, torch.bfloat16, 32768)
    add("kept fp32 bias of bf16", "", widened)
    return cases


def _row_case(
    softcap: float,
    dtype: torch.dtype,
    written: torch.dtype | None,
    added: torch.dtype | None,
    columns: int,
) -> Callable[[str], None]:
    """Rows of logits of hidden states in ``dtype``, with a bias in ``added`` if there is one."""

    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch, tuning

        from pad_fast.linear_logprob.head import empty_rows
        from pad_fast.logprob.softmax import TokenOptions, accumulator

        wide = accumulator(dtype)
        labels, found = torch.zeros(2, dtype=torch.int64), torch.zeros(3, 2, dtype=wide)
        logits, kept = (
            None if kind is None else empty_rows(torch.empty(0), 2, columns, kind).zero_()
            for kind in (wide, written)
        )
        launch.rows(
            logits,
            None if added is None else torch.zeros(columns, dtype=added),
            labels,
            None if kept is None else (kept, torch.zeros(2, dtype=wide)),
            tuple(found),
            TokenOptions(softcap=softcap),
            tiling=nearest(tuning.ROWS, name).of(wide, softcap),
        )

    return go


def _tile_case(softcap: float, dtype: torch.dtype, columns: int) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch
        from pad_fast.kernels.logprob import launch as logprob_launch
        from pad_fast.kernels.logprob import tuning

        from pad_fast.linear_logprob.head import empty_rows
        from pad_fast.logprob.softmax import TokenOptions, accumulator

        wide = accumulator(dtype)
        logits, written = (
            empty_rows(torch.empty(0), 2, columns, kind).zero_() for kind in (wide, dtype)
        )
        labels, rows = torch.zeros(2, dtype=torch.int64), torch.ones(3, 2, dtype=wide)
        tilings = nearest(tuning.TILINGS, name)
        with patch.object(logprob_launch, "tilings_of", lambda device: tilings):
            launch.tile(logits, labels, *rows, 0, written, TokenOptions(softcap=softcap))

    return go


def _fused_cases() -> list[Case]:
    widths = {"": 256, " odd": 123, " D=264": 264}
    often = {"bf16 D=264", "bf16 D=264 bias"}
    cases = []
    for (cap, softcap), (short, dtype) in product(CAPS.items(), SHORT.items()):
        for (layout, width), bias in product(widths.items(), (False, True)):
            name = f"{short}{layout}{' bias' if bias else ''}{cap}"
            go = _fused_case(softcap, dtype, bias, width)
            short_too = cap != WIDE_CAP and (width != 264 or name in often)
            cases.append(Case(name, go, often=short_too))
    return cases


def _fused_case(
    softcap: float, dtype: torch.dtype, bias: bool, width: int
) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch, tuning

        from pad_fast.logprob.softmax import TokenOptions

        factors = (torch.zeros(rows, width, dtype=dtype) for rows in (2, 32768))
        added = torch.zeros(32768, dtype=dtype) if bias else None
        labels, tilings = torch.zeros(2, dtype=torch.int64), nearest(tuning.SCORING, name)
        launch.score(*factors, added, labels, TokenOptions(softcap=softcap), tilings=tilings)

    return go
