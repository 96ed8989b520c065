"""A padded batch of texts holds what score_responses reads."""

import pytest
import torch
from embedded_world import WORLD
from transformers import AutoModelForCausalLM, AutoTokenizer

from pad_fast import LinearPADLoss, linear_response_rewards, padded_responses, score_responses

PROMPTS = [[{"role": "user", "content": "What is 62 + 47?"}], "Sort 3 1"]
RESPONSES = [["units 9, tens 10 #### 109", "12", "7"], ["1 3", "3 1"]]


@pytest.fixture(scope="module")
def student():
    return AutoModelForCausalLM.from_pretrained(WORLD / "student")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD / "student")


def test_rewards_are_those_of_score_responses(student, tokenizer):
    ids, labels = padded_responses(PROMPTS, RESPONSES, tokenizer)
    hidden = student.model(ids).last_hidden_state
    found = linear_response_rewards(hidden[:, :-1], student.lm_head.weight, labels[:, 1:])
    first, second = score_responses(student, PROMPTS, RESPONSES, tokenizer)
    expected = torch.tensor([*first, *second, 0.0])  # the last row has no response
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_rows_without_a_response_count_in_no_loss(student, tokenizer):
    teacher = torch.tensor([[0.0, -1.0, -2.0], [-3.0, -1.0, 9.0]])
    loss_of = LinearPADLoss(divergence="kl", shift=True, reduction="none")
    ids, labels = padded_responses(PROMPTS, RESPONSES, tokenizer)
    both = loss_of(student.model(ids).last_hidden_state, student.lm_head.weight, labels, teacher)
    ids, labels = padded_responses(PROMPTS[1:], RESPONSES[1:], tokenizer)
    hidden = student.model(ids).last_hidden_state
    alone = loss_of(hidden, student.lm_head.weight, labels, teacher[1:, :2])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_cut_response_gets_no_end(tokenizer):
    whole = padded_responses(["Sort 3 1"], [["1 3"]], tokenizer)[1]
    cut = padded_responses(["Sort 3 1"], [["1 3"]], tokenizer, finish_reasons=[["length"]])[1]
    assert (whole >= 0).sum() == (cut >= 0).sum() + 1


@pytest.mark.parametrize("responses", [[], [[]]])
def test_nothing_to_pad(responses):
    with pytest.raises(ValueError, match="at least one response"):
        padded_responses([[1]] * len(responses), responses)
