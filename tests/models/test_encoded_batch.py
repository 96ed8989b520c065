"""A batch for a loop of one's own: its loss is that of the scores of the same responses."""

from __future__ import annotations

import pytest
import torch
from students import make_model, word_tokenizer

from pad_fast import LinearPADLoss, encode_responses, response_rewards, score_responses
from pad_fast.losses import probabilistic_preference_loss

PROMPTS = ["one two", [{"role": "user", "content": "one"}], [5, 6]]
RESPONSES = [["two", "three one"], ["one", [{"role": "assistant", "content": "a"}]], [[7, 8], "a"]]
REASONS = [["stop", "length"], ["stop", "stop"], ["stop", "stop"]]


def test_rewards_of_a_batch_are_those_of_the_scores():
    model, tokenizer = make_model(), word_tokenizer()
    batch = encode_responses(PROMPTS, RESPONSES, tokenizer, finish_reasons=REASONS).to("cpu")
    assert batch["input_ids"].tolist()[:2] == [
        [1, 7, 8, 8, 2, 0, 0, 0, 0],
        [1, 7, 8, 9, 7, 0, 0, 0, 0],
    ]
    assert batch["labels"].tolist()[1] == [-100, -100, -100, 9, 7, -100, -100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [5, 5, 9, 9, 4, 4]
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    found = response_rewards(output.logits[:, :-1], batch["labels"][:, 1:]).view(3, 2)
    scores = score_responses(model, PROMPTS, RESPONSES, tokenizer, finish_reasons=REASONS)
    torch.testing.assert_close(found, torch.tensor(scores), rtol=1e-5, atol=1e-5)
    teacher = torch.tensor([[0.0, -1.0], [-2.0, 0.5], [1.0, 0.0]])
    loss = LinearPADLoss(shift=True)(
        output.hidden_states[-1], model.lm_head.weight, batch["labels"], teacher
    )
    wanted = probabilistic_preference_loss(found, teacher)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


def test_what_makes_no_batch_is_named():
    with pytest.raises(ValueError, match="the same number for each prompt, got 1, 2; PADTrainer"):
        encode_responses([[1], [2]], [[[3]], [[4], [5]]])
    with pytest.raises(ValueError, match="prompts must not be empty, got prompt 1 with no token"):
        encode_responses([[1], []], [[[3]], [[4]]])
    with pytest.raises(ValueError, match=r"prompts\[0\] is the text 'one', which needs the"):
        encode_responses(["one"], [["two"]])
    assert encode_responses([], [])["input_ids"].shape == (0, 0)
