"""Operations in eager mode: plain functions, with the numbers and errors of torch.library."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pad_fast import custom_operation, linear_token_logprobs, response_rewards, token_logprobs
from pad_fast.custom_operation import CustomOperation
from pad_fast.losses import preference_loss

LABELS = torch.tensor([[3, -100, 0], [1, 2, -100]])


def _linear(frozen: bool, **options):
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    weight = torch.randn(6, 4, requires_grad=not frozen)
    return linear_token_logprobs(hidden, weight, LABELS, **options), (hidden, weight)


def _logits(function, **options):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, requires_grad=True)
    return function(logits, LABELS, **options), (logits,)


def _inplace():
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 6, requires_grad=True)
    return token_logprobs(leaf * 2, LABELS, inplace_backward=True), (leaf,)


def _preference(kind: str, reduction: str):
    torch.manual_seed(0)
    rewards = torch.randn(2, 3, requires_grad=True)
    return preference_loss(kind, rewards, torch.randn(2, 3), reduction=reduction), (rewards,)


CALLS = {
    "logits": lambda: _logits(token_logprobs),
    "in place": _inplace,
    "rewards": lambda: _logits(response_rewards),
    "hidden states": lambda: _linear(frozen=False),
    "recomputed": lambda: _linear(frozen=False, memory_budget=0),
    "frozen": lambda: _linear(frozen=True),
    "ppd": lambda: _preference("ppd", "mean"),
    "vpd": lambda: _preference("vpd", "none"),
    "rrhf": lambda: _preference("rrhf", "sum"),
}


def _result(name: str) -> list[torch.Tensor]:
    value, leaves = CALLS[name]()
    value.sum().backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("name", CALLS)
def test_both_forms_give_the_same_bits(name, monkeypatch):
    plain = _result(name)
    monkeypatch.setattr(custom_operation, "_is_watched", lambda args: True)
    for one, other in zip(plain, _result(name), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CALLS)
def test_eager_mode_does_without_the_library(name, monkeypatch):
    def refuse(self, *args):
        raise AssertionError("the library was called")

    monkeypatch.setattr(torch.library.CustomOpDef, "__call__", refuse)
    _result(name)
    with torch.no_grad():
        CALLS[name]()


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_who_watches_sees_the_operation():
    with _Seen() as seen:
        _result("ppd")
    assert "pad_fast.preference_loss.default" in seen.names
    with FakeTensorMode():  # whose values no body could read
        fake = torch.zeros(2, 3, 6)
        assert token_logprobs(fake, torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3)
    meta = torch.zeros(2, 3, 6, device="meta")
    labels = torch.zeros(2, 3, dtype=torch.long, device="meta")
    assert token_logprobs(meta, labels).is_meta


@pytest.mark.parametrize("name", ["logits", "hidden states", "ppd"])
def test_second_derivatives_are_an_error(name):
    value, leaves = CALLS[name]()
    (gradient,) = torch.autograd.grad(value.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["logits", "rewards", "hidden states", "frozen", "ppd", "vpd"])
def test_a_batch_of_gradients_is_that_of_each(name):
    value, leaves = CALLS[name]()
    batch = torch.randn(3, *value.shape)
    go = partial(torch.autograd.grad, value, leaves[0], retain_graph=True)
    (found,) = go(batch, is_grads_batched=True)
    for one, gradient in zip(found, batch, strict=True):
        torch.testing.assert_close(one, go(gradient)[0])


def test_what_is_written_in_place_counts_as_changed():
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 6, requires_grad=True)
    logits = leaf * 2
    squares = logits.square().sum()  # saves the logits
    token_logprobs(logits, LABELS, inplace_backward=True).sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def test_the_arguments_that_are_written_are_found_by_name():
    def body(kept: torch.Tensor, written: torch.Tensor) -> None:
        """A body that PyTorch does not see, as a kernel's."""

    operation = CustomOperation("pad_fast_test::writes", body, ("written",))
    kept, written = torch.zeros(2), torch.zeros(2)
    operation(kept, written)
    assert (kept._version, written._version) == (0, 1)
