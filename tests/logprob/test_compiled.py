"""PAD_FAST_COMPILE=1: the same numbers by compiled loops, or an error that says why not."""

import shutil

import pytest
import torch
from logprobs import CAPPED, close, draw, gradients

from pad_fast import functional, reference
from pad_fast.logprob import compiled
from pad_fast.logprob.softmax import OnlineSoftmax, TokenOptions


def compiles(test):
    """Marks a test that compiles. torch.compile's own deprecation warnings are not our errors."""
    needs = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
    return pytest.mark.slow(needs(pytest.mark.filterwarnings("default")(test)))


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv(compiled.ENVIRONMENT_VARIABLE, "1")


@compiles
def test_compiled_loops_give_the_numbers(asked, monkeypatch):
    """Two dtypes, ignored rows, -inf, a label that is no column, and a row whose gradient is 0."""
    monkeypatch.setattr(OnlineSoftmax, "add", None)  # what the other path calls
    hidden, weight, _, labels, grad = draw()
    grad[0, 0] = 0
    options = {"temperature": 0.7, "logit_scale": 1.3}
    for dtype in (torch.float32, torch.bfloat16):
        logits = (hidden @ weight.T).to(dtype)
        logits[0, 1, :20], labels[0, 1] = -torch.inf, 30
        logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, **options)
        exact, (dexact,) = gradients(
            reference.token_logprobs, [logits.double()], labels, grad, **options
        )
        assert logps.dtype == torch.float32
        close(logps, exact, torch.float32)
        close(dlogits, dexact, dtype)


@compiles
def test_a_row_without_a_finite_logit(asked):
    logits = torch.randn(3, 50)
    logits[1] = -torch.inf
    labels = torch.tensor([4, 5, 6])
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, torch.ones(3))
    assert logps.isnan().tolist() == [False, True, False]
    assert dlogits.isnan().all(1).tolist() == [False, True, False]


def test_a_softcap_is_left_to_pytorch(asked, monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", None)
    _, _, _, labels, grad = draw()
    logits = torch.randn(2, 4, 45)
    logps, _ = gradients(functional.token_logprobs, [logits], labels, grad, **CAPPED)
    exact, _ = gradients(reference.token_logprobs, [logits.double()], labels, grad, **CAPPED)
    close(logps, exact, torch.float32)


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_is_compiled_unasked(value, monkeypatch):
    monkeypatch.delenv(compiled.ENVIRONMENT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(compiled.ENVIRONMENT_VARIABLE, value)
    assert not compiled.is_asked_for(torch.zeros(1), TokenOptions())


def test_a_missing_compiler_is_named(asked, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is no no-such-comp"):
        functional.token_logprobs(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv(compiled.ENVIRONMENT_VARIABLE, "yes")
    with pytest.raises(ValueError, match="PAD_FAST_COMPILE"):
        functional.token_logprobs(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
