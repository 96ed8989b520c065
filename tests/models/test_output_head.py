"""Reading output heads from configs, and what happens where a head cannot be read."""

import copy
import logging

import pytest
import torch
import transformers
from heads import CONFIGS, flat, make_model, make_packed, make_texts, naive_rewards
from torch import nn

from pad_fast import LinearPADLoss, PADLoss, encode_responses
from pad_fast.models import output_head as output_head_module
from pad_fast.models.causal_lm import decode
from pad_fast.models.output_head import head_problem, output_head
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.scoring import next_token_logprobs, score_responses


def test_the_head_is_read_from_the_config():
    assert output_head(make_model("gemma2")).softcap == 3.0
    assert output_head(make_model("cohere")).logit_scale == 0.3
    assert output_head(make_model("granite")).logit_scale == 0.25
    assert output_head(make_model("phi")).bias is not None
    with pytest.raises(ValueError, match="linear output head, got LlamaModel"):
        output_head(make_model("llama").model)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_an_unknown_head_takes_the_models_own_logits(name, monkeypatch, caplog):
    """A softcap or scale under an unknown name, at an initialisation where it hardly shows."""
    monkeypatch.setattr(output_head_module, "SOFTCAPS", ())
    monkeypatch.setattr(output_head_module, "MULTIPLIERS", ())
    monkeypatch.setattr(output_head_module, "DIVISORS", ())
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    prompts, responses = make_texts()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        rewards = score_responses(model, prompts, responses)
        tokens = next_token_logprobs(model, prompts, [5])
    assert [
        record.message
        for record in caplog.records
        if "takes whole logits" in record.message and "miss" in record.message
    ] != []
    assert len(caplog.records) == 1  # tried once, and logged once
    assert flat(rewards) == pytest.approx(flat(naive_rewards(model, prompts, responses)), abs=2e-5)
    first = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)[5].item()
    assert tokens[0][0] == pytest.approx(first, abs=2e-5)


def test_heads_that_cannot_be_read_say_why():
    assert "offloaded" in str(head_problem(make_model("llama").to("meta")))


class Zero3:
    """An output head under ZeRO-3, whose weight exists only in its forward and backward."""

    def __init__(self, head: nn.Linear):
        self.head, self.whole, self.log = head, head.weight.data.clone(), []
        head.weight.ds_id = 0
        self.free("start")
        head.register_forward_pre_hook(lambda *_: self.fill("forward"))
        head.register_forward_hook(lambda *_: self.free("forward"))
        head.register_full_backward_pre_hook(lambda *_: self.fill("backward"))

    def fill(self, when: str) -> None:
        self.log.append(f"fill {when}")
        self.head.weight.data = self.whole.clone()

    def free(self, when: str) -> None:
        self.log.append(f"free {when}")
        self.head.weight.data.fill_(torch.nan)  # a view that was kept would see it
        self.head.weight.data = torch.empty(0, dtype=self.whole.dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attach_first", [False, True])
def test_zero3_finds_its_hooks_called(name, frozen, attach_first):
    """The head's hooks gather its weight for the call and again for the backward.

    Values and gradients are those of a model without ZeRO-3.
    """
    (_, packed), model = make_packed(), make_model(name, torch.float64)
    # untied, since the embedding has hooks of its own
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    twin = copy.deepcopy(model)
    attach_rewards_forward(twin)
    if attach_first:
        attach_rewards_forward(model)
    for each in (model, twin):
        each.get_output_embeddings().weight.requires_grad_(not frozen)
    zero = Zero3(model.get_output_embeddings())
    if not attach_first:
        attach_rewards_forward(model)
    assert head_problem(model) is None
    weights = torch.tensor([0.3, 1.0, -2.0, 1.0, 0.7], dtype=torch.float64)
    rewards, expected = (each(**packed._asdict(), num_responses=5) for each in (model, twin))
    assert torch.equal(rewards, expected)
    assert zero.log == ["free start", "fill forward", "free forward"]
    (rewards * weights).sum().backward()
    (expected * weights).sum().backward()
    assert zero.log[3:] == ["fill backward"]
    for (key, found), wanted in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), key
        if wanted.grad is not None:
            assert torch.equal(found.grad, wanted.grad), key


def test_the_rewards_forward_takes_whole_logits_where_it_must(monkeypatch):
    monkeypatch.setattr(output_head_module, "SOFTCAPS", ())
    model, (_, packed) = make_model("gemma2", torch.float64), make_packed()
    attach_rewards_forward(model)
    found = model(**packed._asdict(), num_responses=5)
    monkeypatch.undo()
    whole = make_model("gemma2", torch.float64)
    attach_rewards_forward(whole)
    assert head_problem(model) is not None
    assert head_problem(whole) is None
    torch.testing.assert_close(found, whole(**packed._asdict(), num_responses=5))


def test_a_loop_of_ones_own_gets_the_whole_head(monkeypatch):
    """LinearPADLoss of ``output_head(model)`` is PADLoss of the model's own logits."""
    teacher = torch.tensor([[0.0, -1.0]])
    batch = encode_responses([[1, 2]], [[[3, 4], [5]]])
    for name in ("gemma2", "cohere", "granite", "phi"):
        model = make_model(name, torch.float64)
        hidden = decode(model, batch["input_ids"])
        loss = LinearPADLoss(divergence="kl", shift=True)
        found = loss(hidden, output_head(model), batch["labels"], teacher)
        logits = model(input_ids=batch["input_ids"]).logits
        wanted = PADLoss(divergence="kl", shift=True)(logits, batch["labels"], teacher)
        torch.testing.assert_close(found, wanted)
        with pytest.raises(ValueError, match=r"has its own bias, .* leave out softcap, or give"):
            loss(hidden, output_head(model), batch["labels"], teacher, softcap=9.0)
    monkeypatch.setattr(output_head_module, "DIVISORS", ())
    with pytest.raises(ValueError, match=r"and hidden states times its head miss .* take PADLoss"):
        output_head(make_model("granite"))


def test_rewards_of_a_batch_of_texts():
    """The call that wrappers see reads what encode_responses makes."""
    prompts, responses = [[1, 2, 3], [4]], [[[5, 6, 7], [8]], [[9, 5], [6, 7]]]
    model = make_model("gemma2")
    attach_rewards_forward(model)
    batch = encode_responses(prompts, responses)
    found = model(**batch, want_rewards=True)
    wanted = flat(score_responses(model, prompts, responses))
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape
    turned = {name: part.flip(1) for name, part in batch.items()}
    with pytest.raises(ValueError, match="got padding on the left; encode_responses pads on"):
        model(**turned, want_rewards=True)
    with pytest.raises(ValueError, match=r"must both be \(R, T\), .* got \(4, 6\) and \(4, 5\)"):
        model(batch["input_ids"], labels=batch["labels"][:, 1:], want_rewards=True)
