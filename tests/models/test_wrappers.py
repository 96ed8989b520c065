"""Models whose configuration wraps that of a text model."""

from __future__ import annotations

import pytest
import students
import torch
import transformers
from heads import flat, naive_rewards
from students import RENAMED, make_args
from worlds import character_tokenizer
from wrappers import VOCABULARY, wrapped_model, wrapper

from pad_fast.models.auto import model_class
from pad_fast.models.causal_lm import decoder, input_embedding, model_window, vocabulary_size
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED

PROMPTS = [[10, 11, 12, 13], [14, 15, 16]]
RESPONSES = [[[20, 21], [22, 23, 24], [25]], [[26, 27], [28], [30, 31]]]
ROWS = [
    {"prompt_ids": prompt, "completion_ids": group, "teacher_rewards": [-0.1, -0.5, -0.9]}
    for prompt, group in zip(PROMPTS, RESPONSES, strict=True)
]


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "llava", "idefics3", "mllama", "llama4"])
def test_scores_and_a_training(name, tmp_path):
    model = wrapped_model(name)
    assert (vocabulary_size(model), model_window(model)) == (VOCABULARY, 64)
    wanted = torch.tensor(flat(naive_rewards(model, PROMPTS, RESPONSES)))
    for share in ("auto", False):
        found = torch.tensor(flat(score_responses(model, PROMPTS, RESPONSES, share_prefix=share)))
        torch.testing.assert_close(found.double(), wanted.double(), atol=1e-5, rtol=1e-5)
    assert len(next_token_logprobs(model, PROMPTS, [1, 2])) == 2
    before = vars(model.config).get("use_cache")
    args = make_args(tmp_path, max_steps=1, learning_rate=0.01, save_strategy="no")
    trainer = PADTrainer(model, args, ROWS)
    assert vars(model.config).get("use_cache") == before
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    character_tokenizer().save_pretrained(tmp_path / "saved")
    again = PADTrainer(str(tmp_path / "saved"), args, ROWS).model
    wanted = score_responses(trainer.model, PROMPTS, RESPONSES)
    assert flat(score_responses(again, PROMPTS, RESPONSES)) == pytest.approx(flat(wanted), abs=1e-5)


def test_a_head_within_the_decoder_is_left_out():
    torch.manual_seed(0)
    model = transformers.Llama4ForConditionalGeneration(wrapper("llama4")).eval()
    assert model.get_decoder() is model.language_model  # which predicts logits
    assert type(decoder(model)).__name__ == "Llama4TextModel"
    assert type(decoder(model.language_model)).__name__ == "Llama4TextModel"


def test_models_that_are_not_causal():
    with pytest.raises(ValueError, match="got bidirectional attention, PaliGemmaConfig"):
        model_class(wrapper("paligemma"))
    with pytest.raises(ValueError, match="got an encoder-decoder, T5Config"):
        model_class(transformers.T5Config())
    with pytest.raises(ValueError, match="causal language model, got ViTConfig"):
        model_class(transformers.ViTConfig(architectures=["LlamaForCausalLM"]))
    # Nothing in its config says that its tokens see later ones.
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=64, intermediate_size=16, **sizes)
    model = model_class(bert).from_config(bert)
    with pytest.raises(ValueError, match="another last token moves the logits before it by"):
        score_responses(model, PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [20, 30]},
    ],
)
def test_adapters_on_the_embedding(options, tmp_path):
    peft = pytest.importorskip("peft")
    model = students.make_model()
    before = vocabulary_size(model)
    args = make_args(tmp_path, max_steps=2, learning_rate=0.1, save_strategy="no")
    adapter = peft.LoraConfig(r=2, init_lora_weights=False, **options)
    trainer = PADTrainer(model, args, ROWS, peft_config=adapter)
    assert vocabulary_size(model) == before
    assert input_embedding(model).shape == (before, 16)
    untrained = flat(score_responses(trainer.model, PROMPTS, RESPONSES))
    trainer.train()
    trainer.model.eval()
    found = flat(score_responses(trainer.model, PROMPTS, RESPONSES))
    assert found == pytest.approx(flat(naive_rewards(trainer.model, PROMPTS, RESPONSES)), abs=1e-5)
    assert found != pytest.approx(untrained, abs=1e-3)
