"""Scoring responses and next tokens, against the model's own logits of each alone."""

import copy

import pytest
import torch
import transformers
from heads import CONFIGS, flat, make_model, make_texts, naive_rewards

from pad_fast.models import layout_trial, rewards, scoring
from pad_fast.models.output_head import head_problem
from pad_fast.models.scoring import next_token_logprobs, score_responses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_each_response_alone(name, dtype):
    model, (prompts, responses) = make_model(name, dtype), make_texts()
    expected = naive_rewards(model, prompts, responses)
    assert max(flat(expected)[:3]) < -1  # so that a wrong head would show
    assert head_problem(model) is None
    for budget in (1, 64, 8192):
        rewards = score_responses(model, prompts, responses, max_tokens_per_batch=budget)
        assert [len(group) for group in rewards] == [3, 1, 0, 4]
        # float64 gains little: every architecture has its norms or softmaxes in float32
        assert flat(rewards) == pytest.approx(
            flat(expected), abs=2e-5 if dtype == torch.float32 else 1e-5
        )
    assert rewards[3][0] == 0.0  # an empty response


def test_options_of_the_score():
    model, (prompts, responses) = make_model("gemma2"), make_texts()
    options = {"normalize": "sum", "temperature": 0.7}
    expected = naive_rewards(model, prompts, responses, **options)
    assert flat(score_responses(model, prompts, responses, **options)) == pytest.approx(
        flat(expected), abs=1e-4
    )


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "granite"])
def test_next_tokens(name):
    model, (prompts, _) = make_model(name), make_texts()
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
    model, (prompts, responses) = make_model("llama"), make_texts()
    done: list[int] = []
    score_responses(model, prompts, responses, max_tokens_per_batch=20, progress=done.append)
    assert sum(done) == 8
    assert len(done) > 3


def test_whole_logits_are_never_made():
    model, (prompts, responses) = make_model("llama"), make_texts()
    head_problem(model)

    def refuse(module, args, output):
        assert output.ndim == 1, "the head made logits"

    model.get_output_embeddings().register_forward_hook(refuse)
    score_responses(model, prompts, responses)
    next_token_logprobs(model, prompts, [1])


def test_modes_and_gradients_are_left_alone():
    model, (prompts, responses) = make_model("llama"), make_texts()
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
    model, (prompts, responses) = make_model("llama"), make_texts()
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


def test_bfloat16_models():
    model, (prompts, responses) = make_model("llama", torch.bfloat16), make_texts()
    assert head_problem(model) is None
    assert flat(score_responses(model, prompts, responses)) == pytest.approx(
        flat(naive_rewards(model.float(), prompts, responses)), rel=0.05, abs=0.05
    )


@pytest.mark.parametrize("share", [True, False])
def test_the_implementation_reaches_every_reward(share, monkeypatch):
    """The trial of the layout and the scores both take the implementation that is asked for."""
    model, (prompts, responses) = make_model("llama"), make_texts()
    asked = []
    own = rewards.packed_rewards

    def recorded(model, packed, count, options, **others):
        asked.append(options.impl)
        return own(model, packed, count, options, **others)

    for module in (layout_trial, scoring):
        monkeypatch.setattr(module, "packed_rewards", recorded)
    score_responses(model, prompts, responses, share_prefix=share, impl="torch")
    assert len(asked) > 2
    assert set(asked) == {"torch"}
