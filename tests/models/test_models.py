"""Output heads and scoring, against each response alone through the model's own logits."""

import copy
import logging

import pytest
import torch
import transformers
from torch import nn

from pad_fast.functional import response_rewards
from pad_fast.models import output_head as output_head_module
from pad_fast.models.causal_lm import causal_lm
from pad_fast.models.output_head import head_problem, output_head
from pad_fast.models.packing import PackedRows, pack_rows
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.scoring import next_token_logprobs, score_responses

VOCABULARY, WINDOW = 61, 48
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# the ways in which heads differ: none, a softcap, a scale that multiplies, one that divides, one that divides the hidden states
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(**GPT2),
    "gemma2": transformers.Gemma2Config(**SMALL, final_logit_softcapping=3.0, sliding_window=8),
    "cohere": transformers.CohereConfig(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.3
    ),
    "granite": transformers.GraniteConfig(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=4.0
    ),
    "phi": transformers.PhiConfig(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}
    ),  # a bias on the head
    "bloom": transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=2
    ),  # alibi, no window
    "mamba": transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, state_size=4
    ),  # no attention
}


def make_model(name: str, dtype=torch.float32, seed: int = 0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[name]), dtype=dtype
    ).eval()
    with torch.no_grad():  # far from a random initialisation, where all log-probabilities are near -log V and a cap does nothing
        model.get_output_embeddings().weight.mul_(40.0)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    return model


def make_groups(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    prompts = [ids(length) for length in (5, 1, 13, 8)]
    responses = [
        [ids(length) for length in lengths] for lengths in ((3, 1, 20), (4,), (), (0, 7, 7, 2))
    ]
    return prompts, responses


def naive_rewards(model, prompts, responses, *, normalize="mean", temperature=1.0):
    rewards = []
    for prompt, group in zip(prompts, responses, strict=True):
        rewards.append([])
        for response in group:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
            logps = (logits / temperature).log_softmax(-1)
            found = [logps[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]
            rewards[-1].append(sum(found) / (max(1, len(found)) if normalize == "mean" else 1))
    return rewards


def flat(rewards):
    return [value for group in rewards for value in group]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_each_response_alone(name, dtype):
    model, (prompts, responses) = make_model(name, dtype), make_groups()
    expected = naive_rewards(model, prompts, responses)
    assert max(flat(expected)[:3]) < -1  # the test would see a wrong head
    assert head_problem(model) is None
    for budget in (1, 64, 8192):
        rewards = score_responses(model, prompts, responses, max_tokens_per_batch=budget)
        assert [len(group) for group in rewards] == [3, 1, 0, 4]
        # float64 buys little: every architecture takes its norms or its softmax in float32 on the way
        assert flat(rewards) == pytest.approx(
            flat(expected), abs=2e-5 if dtype == torch.float32 else 1e-5
        )
    assert rewards[3][0] == 0.0  # the empty response


def test_options_of_the_score():
    model, (prompts, responses) = make_model("gemma2"), make_groups()
    options = {"normalize": "sum", "temperature": 0.7}
    expected = naive_rewards(model, prompts, responses, **options)
    assert flat(score_responses(model, prompts, responses, **options)) == pytest.approx(
        flat(expected), abs=1e-4
    )


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "granite"])
def test_next_tokens(name):
    model, (prompts, _) = make_model(name), make_groups()
    tokens = [7, 3, 3, 60]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            expected.append(
                model(input_ids=torch.tensor([prompt]))
                .logits[0, -1]
                .log_softmax(-1)[tokens]
                .tolist()
            )
    for budget in (1, 20, 8192):
        done: list[int] = []
        found = next_token_logprobs(
            model, prompts, tokens, max_tokens_per_batch=budget, progress=done.append
        )
        assert flat(found) == pytest.approx(flat(expected), abs=2e-5)
        assert sum(done) == len(prompts)


def test_progress_counts_every_response_once():
    model, (prompts, responses) = make_model("llama"), make_groups()
    done: list[int] = []
    score_responses(model, prompts, responses, max_tokens_per_batch=20, progress=done.append)
    assert sum(done) == 8
    assert len(done) > 3


def test_whole_logits_are_never_made():
    model, (prompts, responses) = make_model("llama"), make_groups()
    head_problem(model)

    def refuse(module, args, output):
        assert output.ndim == 1, "the head made logits"

    model.get_output_embeddings().register_forward_hook(refuse)
    score_responses(model, prompts, responses)
    next_token_logprobs(model, prompts, [1])


def test_modes_and_gradients_are_left_alone():
    model, (prompts, responses) = make_model("llama"), make_groups()
    config = copy.deepcopy(CONFIGS["llama"])
    config.attention_dropout = 0.5
    noisy = transformers.AutoModelForCausalLM.from_config(config).train()
    noisy.load_state_dict(model.state_dict())
    noisy.model.layers[0].eval()
    before = [module.training for module in noisy.modules()]
    assert flat(score_responses(noisy, prompts, responses)) == pytest.approx(
        flat(score_responses(model, prompts, responses))
    )
    assert [module.training for module in noisy.modules()] == before
    assert all(parameter.grad is None for parameter in noisy.parameters())


def test_bad_sequences_are_named():
    model, (prompts, responses) = make_model("llama"), make_groups()
    with pytest.raises(ValueError, match="one list for each of the 4 prompts, got 3"):
        score_responses(model, prompts, responses[:3])
    with pytest.raises(ValueError, match="got prompt 1 with no token"):
        score_responses(model, [[1], []], [[[1]], [[1]]])
    with pytest.raises(
        ValueError, match=r"window of 48 tokens.*got prompt 0 of 40 and response 1 of 9 tokens"
    ):
        score_responses(model, [[1] * 40], [[[1] * 8, [1] * 9]])
    with pytest.raises(
        ValueError, match=r"responses\[0\]\[0\] must hold token ids in 0..60, got 61"
    ):
        score_responses(model, [[1]], [[[3, 61]]])
    with pytest.raises(ValueError, match=r"prompts\[0\] must hold token ids in 0..60, got -1"):
        next_token_logprobs(model, [[-1]], [2])
    with pytest.raises(ValueError, match="token_ids must not be empty"):
        next_token_logprobs(model, [[1]], [])
    with pytest.raises(ValueError, match="max_tokens_per_batch must be at least 1, got 0"):
        score_responses(model, prompts, responses, max_tokens_per_batch=0)
    with pytest.raises(ValueError, match="normalize must be one of mean, sum, got 'none'"):
        score_responses(model, prompts, responses, normalize="none")
    assert score_responses(model, [], []) == []


def test_the_head_is_read_from_the_config():
    assert output_head(make_model("gemma2")).softcap == 3.0
    assert output_head(make_model("cohere")).logit_scale == 0.3
    assert output_head(make_model("granite")).logit_scale == 0.25
    assert output_head(make_model("phi")).bias is not None
    with pytest.raises(ValueError, match="linear output head, got LlamaModel"):
        output_head(make_model("llama").model)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_an_unknown_head_takes_the_models_own_logits(name, monkeypatch, caplog):
    """A model that caps or scales under a name we do not know, at an initialisation where that hardly shows."""
    monkeypatch.setattr(output_head_module, "SOFTCAPS", ())
    monkeypatch.setattr(output_head_module, "MULTIPLIERS", ())
    monkeypatch.setattr(output_head_module, "DIVISORS", ())
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    prompts, responses = make_groups()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        rewards = score_responses(model, prompts, responses)
        tokens = next_token_logprobs(model, prompts, [5])
    assert [
        record.message
        for record in caplog.records
        if "takes whole logits" in record.message and "miss" in record.message
    ] != []
    assert len(caplog.records) == 1  # tried and told once
    assert flat(rewards) == pytest.approx(flat(naive_rewards(model, prompts, responses)), abs=2e-5)
    first = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)[5].item()
    assert tokens[0][0] == pytest.approx(first, abs=2e-5)


def test_heads_that_cannot_be_read_say_why():
    assert "offloaded" in str(head_problem(make_model("llama").to("meta")))


class Zero3:
    """What DeepSpeed's ZeRO-3 does to an output head: its weight is there only in the head's own forward and backward."""

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
        self.head.weight.data.fill_(torch.nan)  # whoever kept a view would see it
        self.head.weight.data = torch.empty(0, dtype=self.whole.dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attach_first", [False, True])
def test_zero3_finds_its_hooks_called(name, frozen, attach_first):
    """The head's weight is gathered for the call, freed after it, gathered again for the backward; values and gradients are right."""
    (_, packed), model = make_packed(), make_model(name, torch.float64)
    model.lm_head.weight = nn.Parameter(
        model.lm_head.weight.detach().clone()
    )  # untied: the embedding has hooks of its own
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


def make_packed():
    prompts, responses = make_groups()
    pairs = [(prompts[p], responses[p][i]) for p, i in ((0, 0), (0, 2), (3, 1))]
    return pairs, pack_rows(pairs, response_ids=[4, 0, 2])


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
        )  # norms inside are float32


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


def test_ordinary_calls_are_unchanged_after_attaching():
    model = make_model("llama")
    ids, labels = torch.arange(6)[None], torch.arange(6)[None]
    expected = model(input_ids=ids, labels=labels)
    attach_rewards_forward(model)
    attach_rewards_forward(
        model, normalize="sum", temperature=0.5
    )  # replaces the options, not wraps
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
)  # PEFT reads transformers' old name
def test_adapters():
    peft = pytest.importorskip("peft")
    model, (prompts, responses) = make_model("llama"), make_groups()
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


def test_bfloat16_models():
    model, (prompts, responses) = make_model("llama", torch.bfloat16), make_groups()
    assert head_problem(model) is None
    assert flat(score_responses(model, prompts, responses)) == pytest.approx(
        flat(naive_rewards(model.float(), prompts, responses)), rel=0.05, abs=0.05
    )


def test_the_rewards_forward_compiles():
    """torch.compile, with another number of rows at each call, as in training."""
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
