"""The result of every public operation can be changed in place, as that of torch's own can."""

import pytest
import torch
from public_operations import check_in_place, operations

from pad_fast import functional

RESULTS = operations("torch")


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_can_be_changed(name):
    check_in_place(RESULTS[name])


def test_what_is_overwritten_has_no_gradient():
    logits, labels = torch.randn(2, 3, 7, requires_grad=True), torch.tensor([[1, 2, 3], [4, 5, 6]])
    left_out = torch.tensor([[False, True, False], [True, False, False]])
    logps = functional.token_logprobs(logits, labels, impl="torch")
    logps[left_out] = 0
    logps.sum().backward()
    twin = logits.detach().clone().requires_grad_()
    functional.token_logprobs(twin, labels, impl="torch")[~left_out].sum().backward()
    torch.testing.assert_close(logits.grad, twin.grad)
    assert not logits.grad[left_out].any()
