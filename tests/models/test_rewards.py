"""The call of a model that returns rewards: its gradients, wrappers and adapters."""

import copy

import pytest
import torch
from heads import flat, make_model, make_packed, make_texts, naive_rewards
from torch import nn

from pad_fast.functional import response_rewards
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.packing import PackedRows
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.scoring import score_responses


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_rewards_forward_has_the_gradients_of_whole_logits(name):
    model, (pairs, packed) = make_model(name, torch.float64), make_packed()
    twin = copy.deepcopy(model)
    attach_rewards_forward(model)
    weights = torch.tensor([0.3, 1.0, -2.0, 1.0, 0.7], dtype=torch.float64)
    rewards = model(**packed._asdict(), num_responses=5)
    (rewards * weights).sum().backward()
    expected = torch.zeros(5, dtype=torch.float64)
    for (prompt, response), number in zip(pairs, (4, 0, 2), strict=True):
        logits = twin(input_ids=torch.tensor([[*prompt, *response]])).logits[
            :, len(prompt) - 1 : -1
        ]
        expected[number] = response_rewards(logits, torch.tensor([response]))[0]
    (expected * weights).sum().backward()
    torch.testing.assert_close(rewards, expected)
    for (key, found), (_, wanted) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            found.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=key
        )  # norms are in float32


def test_ordinary_calls_are_unchanged_after_attaching():
    model = make_model("llama")
    ids, labels = torch.arange(6)[None], torch.arange(6)[None]
    expected = model(input_ids=ids, labels=labels)
    attach_rewards_forward(model)
    attach_rewards_forward(model, normalize="sum", temperature=0.5)  # replaces the options
    found = model(ids, labels=labels)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 9)
    pairs, packed = make_packed()
    prompts, responses = [prompt for prompt, _ in pairs], [[response] for _, response in pairs]
    sums = flat(score_responses(model, prompts, responses, normalize="sum", temperature=0.5))
    assert model(**packed._asdict(), num_responses=5)[[4, 0, 2]].tolist() == pytest.approx(
        sums, rel=1e-5
    )
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert (
        twin(**packed._asdict(), num_responses=5).abs().max()
        != model(**packed._asdict(), num_responses=5).abs().max()
    )
    with pytest.raises(ValueError, match="normalize must be one of"):
        attach_rewards_forward(model, normalize="none")


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT reads it
def test_adapters():
    peft = pytest.importorskip("peft")
    model, (prompts, responses) = make_model("llama"), make_texts()
    config = peft.LoraConfig(
        target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    lora = peft.get_peft_model(copy.deepcopy(model), config)
    assert causal_lm(lora) is lora.get_base_model()
    found = flat(score_responses(lora, prompts, responses))
    assert found == pytest.approx(flat(naive_rewards(lora.eval(), prompts, responses)), abs=2e-5)
    assert found != pytest.approx(
        flat(score_responses(model, prompts, responses)), abs=1e-3
    )  # the adapter is active
    on_head = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match="must not have an adapter on its output head"):
        score_responses(on_head, prompts, responses)
    saved = peft.get_peft_model(
        copy.deepcopy(model),
        peft.LoraConfig(
            target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
        ),
    )
    with pytest.raises(ValueError, match="must not have an adapter on its output head"):
        attach_rewards_forward(saved)
    virtual = peft.get_peft_model(
        copy.deepcopy(model), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match="must not have a prompt-learning adapter"):
        score_responses(virtual, prompts, responses)


# The compiler looks at the .grad of every tensor.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_the_rewards_forward_compiles():
    """Under torch.compile each call may have another number of rows, as in training."""
    model, (_, packed) = make_model("llama"), make_packed()
    attach_rewards_forward(model)
    expected = model(**packed._asdict(), num_responses=5)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**packed._asdict(), num_responses=5), expected)
    shorter = PackedRows(packed.input_ids, *(tensor[:5] for tensor in packed[1:4]))
    torch.testing.assert_close(
        compiled(**shorter._asdict(), num_responses=5), model(**shorter._asdict(), num_responses=5)
    )


def test_wrappers_are_looked_through():
    model = make_model("llama")
    assert causal_lm(nn.DataParallel(model)) is model
