"""The sizes, dtypes and tolerances with which other projects test the same operations.

TRL's ``tests/test_kernels.py`` and ``test_utils.py`` (1.16), Liger-Kernel's
``test/transformers/test_cross_entropy.py``, ``test_fused_linear_cross_entropy.py`` and
``test/chunked_loss/``, QuACK's ``tests/test_cross_entropy.py`` and ``test_linear_cross_entropy.py``
(0.6), and cut-cross-entropy's ``tests/test_cce_loss_forward.py`` and ``_backward.py``. Numbers were
taken, and no code. They compare with PyTorch in float32; here the comparison is with float64, with
random upstream gradients where they have a mean.

A result in bfloat16 or float16 may differ by its own rounding in addition, as any result does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pad_fast import functional, reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
HALF_STEP = {F64: 0.0, F32: 6e-8, BF16: 4e-3, F16: 5e-4}
# Logits up to which a CPU goes in the tests, and in `make test-long`.
QUICK, LONG = 600_000, 10_000_000
# What Triton's interpreter takes for values and gradients: seconds a row, and a number of it.
SECONDS_OF_ROW, SECONDS_OF_NUMBER = 0.017, 2.7e-6
# Seconds of it for a table in one dtype, and in `make test-long` for a case.
QUICK_SECONDS, LONG_SECONDS = 4.5, 30


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        rows, vocabulary, width: M, V, and D (0: the operation takes logits).
        dtype: of the inputs.
        rtol, atol: of values.
        grad_rtol, grad_atol: of gradients; None for those of values.
        scale, weight: factors of normally distributed logits or hidden states, and of the head.
        bias, ignored: whether there is a bias; the share of labels that are ignored.
        mean: whether the gradients are those of a mean over the rows, as their tolerances expect.
        options: of the operation.
    """

    rows: int
    vocabulary: int
    width: int
    dtype: torch.dtype
    rtol: float
    atol: float
    grad_rtol: float | None = None
    grad_atol: float | None = None
    scale: float = 1.0
    weight: float = 1.0
    bias: bool = False
    ignored: float = 0.0
    mean: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def logits(self) -> int:
        """What the case costs, in logits of a head of width 64."""
        return self.rows * self.vocabulary * max(1, self.width // 64)

    @property
    def interpreted_seconds(self) -> float:
        """What Triton's interpreter takes about, on one core."""
        live = self.rows * (1 - self.ignored)
        return live * (SECONDS_OF_ROW + self.vocabulary * SECONDS_OF_NUMBER)

    def inputs(self) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Leaves (logits; or hidden states, weight and perhaps bias), labels, upstream gradient."""
        g = torch.Generator().manual_seed(0)

        def draw(*shape: int, scale: float) -> torch.Tensor:
            return (torch.randn(*shape, generator=g) * scale).to(self.dtype).to(DEVICE)

        labels = torch.randint(self.vocabulary, (self.rows,), generator=g)
        labels[torch.randperm(self.rows, generator=g)[: int(self.ignored * self.rows)]] = -100
        upstream = torch.randn(self.rows, generator=g).to(DEVICE) / (self.rows if self.mean else 1)
        if not self.width:
            return [draw(self.rows, self.vocabulary, scale=self.scale)], labels.to(DEVICE), upstream
        leaves = [draw(self.rows, self.width, scale=self.scale)]
        leaves.append(draw(self.vocabulary, self.width, scale=self.weight))
        leaves += [draw(self.vocabulary, scale=0.02)] if self.bias else []
        return leaves, labels.to(DEVICE), upstream

    def check(self, impl: str) -> None:
        """Compare an implementation with float64."""
        leaves, labels, upstream = self.inputs()
        found, grads = self._run(functional, leaves, labels, upstream, impl=impl)
        exact, wanted = self._run(reference, [leaf.double() for leaf in leaves], labels, upstream)
        assert_close(found, exact, self.rtol, self.atol)
        rtol = self.rtol if self.grad_rtol is None else self.grad_rtol
        atol = self.atol if self.grad_atol is None else self.grad_atol
        for grad, want in zip(grads, wanted, strict=True):
            assert grad.dtype == self.dtype
            assert_close(grad, want, rtol + HALF_STEP[self.dtype], atol)

    def _run(
        self, module: Any, leaves: list[torch.Tensor], labels: torch.Tensor, upstream: Any, **impl
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        options = {**self.options, **impl}
        if self.width:
            hidden, weight, *bias = leaves
            options |= {"bias": bias[0]} if bias else {}
            logps = module.linear_token_logprobs(hidden, weight, labels, **options)
        else:
            logps = module.token_logprobs(leaves[0], labels, **options)
        return logps.detach(), torch.autograd.grad(logps, leaves, upstream.to(logps.dtype))


def assert_close(got: torch.Tensor, want: torch.Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol)


def check_all(cases: list[Case], impl: str) -> None:
    """Compare all cases; the error names the first that fails."""
    for case in cases:
        try:
            case.check(impl)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


def tests_of(tables: dict[str, list[Case]]) -> Any:
    """Parameters ``cases`` and ``impl``: each table's cases by dtype, by what can run them.

    Without a GPU the larger ones of both implementations run in ``make test-long``, and the largest
    not at all. Where there is one, all do.
    """
    found = []
    for name, table in tables.items():
        by_size: dict[tuple[torch.dtype, str, str], list[Case]] = {}
        for dtype in dict.fromkeys(case.dtype for case in table):
            cases = [case for case in table if case.dtype == dtype]
            quick = quickly_interpreted(cases)
            for case in cases:
                for impl, size in (("torch", size_of(case)), ("triton", interpreted(case, quick))):
                    by_size.setdefault((dtype, impl, "quick" if GPU else size), []).append(case)
        for (dtype, impl, size), some in by_size.items():
            marks = [pytest.mark.long] if size == "long" else []
            marks += [pytest.mark.skipif(size == "gpu", reason="needs a CUDA device")]
            found.append(
                pytest.param(some, impl, id=f"{name}, {dtype}, {impl}, {size}", marks=marks)
            )
    return pytest.mark.parametrize(("cases", "impl"), found)


def quickly_interpreted(cases: list[Case]) -> list[Case]:
    """The cheapest cases, as many as ``QUICK_SECONDS`` are enough for, and at least one.

    Of those that cost the same the later ones come first: tables go from the plain to the full.
    """
    found, seconds, from_the_full = [], 0.0, cases[::-1]
    for case in sorted(from_the_full, key=lambda case: case.interpreted_seconds):
        seconds += case.interpreted_seconds
        if found and (seconds > QUICK_SECONDS or case.logits > QUICK):
            break
        found.append(case)
    return found


def size_of(case: Case) -> str:
    return "quick" if case.logits <= QUICK else "long" if case.logits <= LONG else "gpu"


def interpreted(case: Case, quick: list[Case]) -> str:
    if case in quick:
        return "quick"
    return "gpu" if case.logits > LONG or case.interpreted_seconds > LONG_SECONDS else "long"
