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
# Logits up to which Triton's interpreter, PyTorch on a CPU, and PyTorch in `make test-long` go.
INTERPRETED, QUICK, LONG = 15_000, 600_000, 10_000_000
MOST_INTERPRETED = 3  # cases of a table, since the interpreter takes seconds for each


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
    """Parameters ``cases`` and ``impl``: each table's cases, by what can run them.

    Small ones run in both implementations, larger ones in PyTorch's (the largest of these in ``make
    test-long``), and all in both where there is a GPU.
    """
    found = []
    for name, cases in tables.items():
        small = [case for case in cases if case.rows * case.vocabulary <= INTERPRETED]
        interpreted = small[:: -(-len(small) // MOST_INTERPRETED) or 1]
        by_size: dict[tuple[str, str], list[Case]] = {}
        for case in cases:
            size = "quick" if case.logits <= QUICK else "long" if case.logits <= LONG else "gpu"
            by_size.setdefault(("torch", "quick" if GPU else size), []).append(case)
            if case.dtype != F64:
                size = "quick" if GPU or case in interpreted else "gpu"
                by_size.setdefault(("triton", size), []).append(case)
        for (impl, size), some in by_size.items():
            marks = [pytest.mark.long] if size == "long" else []
            marks += [pytest.mark.skipif(not GPU, reason="needs a CUDA device")] * (size == "gpu")
            found.append(pytest.param(some, impl, id=f"{name}, {impl}, {size}", marks=marks))
    return pytest.mark.parametrize(("cases", "impl"), found)
