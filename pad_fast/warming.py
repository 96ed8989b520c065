"""Compiling the Triton kernels of a loss before it is needed, beside other work.

A kernel is compiled at its first launch, for the dtypes, the vocabulary's divisors and the number
of responses that it is launched with. Here the operations themselves are called on a few rows, so
that later calls ask for exactly these forms.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pad_fast import device as devices
from pad_fast.dispatch import ENVIRONMENT_VARIABLE, HAS_TRITON
from pad_fast.modules import LinearPADLoss, PADLoss
from pad_fast.preference.loss_kinds import LOSSES

logger = logging.getLogger("pad_fast")

# Tokens of a response. Where 16 does not divide the vocabulary, kernels have a form for responses
# whose rows, of logits or of their gradient, take a multiple of 16 entries, and one for others.
TOKENS = 3
MORE_TOKENS = (16, 17)
WIDTH = 64  # columns of hidden states; kernels differ by whether 16 divides them
Call = Callable[[], object]

_said: set[str] = set()  # failures that were logged


class WarmUp:
    """Kernels that are being compiled. A failure is logged once, and :attr:`state` has it."""

    def __init__(self, calls: Sequence[Call], device: torch.device, background: bool) -> None:
        self.device = devices.numbered(device) if calls else device  # new threads have GPU 0
        self._calls = calls
        self._error: str | None = None
        self._thread: threading.Thread | None = None
        if not calls:
            logger.info(self.state)
        elif background:
            # A process may end meanwhile.
            self._thread = threading.Thread(target=self._run, name="warm-up", daemon=True)
            self._thread.start()
        else:
            self._run()

    def __repr__(self) -> str:
        return f"<WarmUp: {self.state}>"

    @property
    def state(self) -> str:
        """Compiled, compiling, why there was nothing to do, or what went wrong."""
        if not self._calls:
            return f"there are no kernels to compile on {self.device}"
        if self._error is not None:
            return f"failed: {self._error}"
        return "compiling" if self._thread is not None and self._thread.is_alive() else "compiled"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds, and say whether the compiling is over."""
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        start = time.monotonic()
        try:
            with devices.current(self.device):
                for call in self._calls:
                    call()
        except Exception as error:  # no run must fail for what its first step would do anyway
            self._error = f"{type(error).__name__}: {error}"
            if self._error not in _said:
                _said.add(self._error)
                text = (
                    "kernels could not be compiled in advance (%s): each will be at its first use"
                )
                logger.warning(text, self._error)
        else:
            logger.info("kernels were compiled in %.0f s", time.monotonic() - start)


def warm_up(
    loss: PADLoss,
    *,
    responses: int,
    vocabulary: int,
    dtype: torch.dtype = torch.bfloat16,
    masked: bool = False,
    frozen_head: bool = False,
    device: torch.device | str | None = None,
    background: bool = True,
) -> WarmUp:
    """Compile the kernels that a loss will use, in a background thread.

    Args:
        loss: the module, :class:`PADLoss` or :class:`LinearPADLoss`.
        responses: N, the responses of a prompt.
        vocabulary: V.
        dtype: of the logits, or of hidden states and head; under autocast its dtype.
        masked: whether the loss will be given a ``mask``.
        frozen_head: whether the head of a :class:`LinearPADLoss` will get no gradient.
        device: None: the current GPU.
        background: False to return when all is compiled.

    Returns:
        A :class:`~pad_fast.warming.WarmUp`, with ``wait(timeout)`` and ``state``. Where there is no
        GPU there is nothing to do, and its state says so.

    Raises:
        ValueError: fewer than one response or one column.

    Example:
        >>> from pad_fast import PADLoss, warm_up
        >>> ready = warm_up(PADLoss("ppd"), responses=8, vocabulary=32000, device="cpu")
        >>> ready.wait()
        True
        >>> ready.state
        'there are no kernels to compile on cpu'

    Notes:
        The JSD of 8 responses takes 10 to 20 s, which a first step would otherwise wait for;
        Triton keeps it on disk for later processes. The operations run on a few rows of zeros: that
        takes up to 300 MB of the device for a while, draws no random numbers, and must not overlap
        with the capture of a CUDA graph.
    """
    for name, value in (("responses", responses), ("vocabulary", vocabulary)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    place = devices.default_device() if device is None else torch.device(device)
    sizes = LossSizes(responses, vocabulary, dtype, masked, frozen_head)
    calls = loss_calls(loss, sizes, place) if compiles(loss.options["impl"], place) else []
    return WarmUp(calls, place, background)


def compiles(impl: str, device: torch.device) -> bool:
    """Whether operations on a device launch kernels that Triton compiles."""
    asked = impl if impl != "auto" else os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    return devices.is_gpu(device) and HAS_TRITON and asked != "torch"


@dataclass(frozen=True)
class LossSizes:
    """What decides which forms of the kernels a loss asks for."""

    responses: int
    vocabulary: int
    dtype: torch.dtype
    masked: bool = False
    frozen_head: bool = False


def lengths_for(vocabulary: int) -> tuple[int, ...]:
    """Lengths of responses that lead to all forms of rows of so many logits."""
    return (TOKENS,) if vocabulary % 16 == 0 else (TOKENS, *MORE_TOKENS)


def loss_calls(loss: PADLoss, sizes: LossSizes, device: torch.device) -> list[Call]:
    """Forward and backward of a loss module on a prompt of zeros."""
    # The teacher's rewards are often NumPy's float64, which ListMLE sorts in a form of its own.
    if isinstance(loss, LinearPADLoss):
        # Rows that keep their gradient for the backward, and rows that are computed again.
        budgets = [loss.options["memory_budget"], *([] if sizes.frozen_head else [0])]
        calls = [
            _linear_call(loss, sizes, device, budget, tokens)
            for budget in budgets
            for tokens in lengths_for(sizes.vocabulary)
        ]
        calls.append(_linear_call(loss, sizes, device, budgets[0], TOKENS, torch.float64))
        return calls
    calls = [_logits_call(loss, sizes, device, tokens) for tokens in lengths_for(sizes.vocabulary)]
    return [*calls, _logits_call(loss, sizes, device, TOKENS, torch.float64)]


def _columns(
    loss: PADLoss, sizes: LossSizes, device: torch.device, rewards: torch.dtype
) -> dict[str, Tensor | None]:
    """What a call of the module takes of the responses beside their tokens."""
    shape = (1, sizes.responses)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    teacher = torch.zeros(shape, dtype=rewards, device=device)
    columns: dict[str, Tensor | None] = {"teacher_rewards": teacher}
    columns["mask"] = mask if sizes.masked else None
    if LOSSES[loss.options["loss"]].needs_anchor:
        columns["anchor_rewards"] = teacher
    if loss.options.get("likelihood_on") == "teacher":
        columns["from_teacher"] = mask
    return columns


def _logits_call(
    loss: PADLoss,
    sizes: LossSizes,
    device: torch.device,
    tokens: int,
    rewards: torch.dtype = torch.float32,
) -> Call:
    def call() -> None:
        rows = (sizes.responses, tokens)
        logits = torch.zeros(*rows, sizes.vocabulary, dtype=sizes.dtype, device=device)
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        columns = _columns(loss, sizes, device, rewards)
        loss(logits.requires_grad_(), labels, **columns).sum().backward()

    return call


def _linear_call(
    loss: LinearPADLoss,
    sizes: LossSizes,
    device: torch.device,
    budget: Any,
    tokens: int,
    rewards: torch.dtype = torch.float32,
) -> Call:
    def call() -> None:
        rows = (sizes.responses, tokens)
        kept: dict[str, Any] = {"dtype": sizes.dtype, "device": device}
        hidden = torch.zeros(*rows, WIDTH, **kept).requires_grad_()
        weight = torch.zeros(sizes.vocabulary, WIDTH, **kept)
        weight.requires_grad_(not sizes.frozen_head)
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        if labels.numel() % 2 == 0 and tokens == TOKENS:  # so that no power of two divides it
            labels[0, 0] = loss.options["ignore_index"]
        columns = _columns(loss, sizes, device, rewards)
        loss(hidden, weight, labels, memory_budget=budget, **columns).sum().backward()

    return call
