"""A small student, rows and a trainer for it, shared by the tests of training."""

import random

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pad_fast.training.collator import PADCollator
from pad_fast.training.config import PADConfig
from pad_fast.training.trainer import PADTrainer

VOCABULARY = 40

# PEFT reads, and transformers' Trainer writes, names that transformers has since renamed.
RENAMED = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
)


def make_model(seed: int = 0, **options):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def long_rope(switch: int):
    """A student whose positions are encoded otherwise in calls of more than ``switch`` tokens."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 30.0],
        "original_max_position_embeddings": switch,
    }
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24}
    config = transformers.Phi3Config(
        **sizes,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        original_max_position_embeddings=switch,
        initializer_range=0.3,
        pad_token_id=0,
        rope_parameters=rope,
    )
    return transformers.Phi3ForCausalLM(config)


def make_rows(count: int, seed: int = 0, most: int = 5) -> list[dict]:
    """Groups of 2 to ``most`` live responses, sometimes with one that is left out."""
    generator = random.Random(seed)

    def ids(low, high):
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(low, high))]

    rows = []
    for _ in range(count):
        n = generator.randint(2, most)
        rewards = [generator.gauss(-1, 0.5) for _ in range(n)] + [None] * generator.randint(0, 1)
        completions = [ids(1, 8) for _ in rewards]
        reasons = [generator.choice(["stop", "length"]) for _ in rewards]
        rows.append(
            {
                "prompt_ids": ids(1, 9),
                "completion_ids": completions,
                "teacher_rewards": rewards,
                "finish_reasons": reasons,
            }
        )
    return rows


def make_args(folder, **options) -> PADConfig:
    defaults = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "beta": 2.0,
        "learning_rate": 1e-2,
    }
    return PADConfig(output_dir=str(folder), **{**defaults, **options})


class SomeDead(PADCollator):
    """Leaves one live response to a prompt whose first token is even.

    Micro-batches then differ in their number of live prompts.
    """

    def __call__(self, rows):
        batch = super().__call__(rows)
        for p, row in enumerate(rows):
            if row["prompt_ids"][0] % 2 == 0:
                batch["mask"][p, 1:] = False
        return batch


def trained(folder, rows, model=None, collator=None, **options):
    trainer = PADTrainer(
        model or make_model(), make_args(folder, **options), rows, data_collator=collator
    )
    trainer.train()
    return trainer


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(found, wanted, **tolerance):
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


GOOD = {"prompt_ids": [1], "completion_ids": [[3], [4]], "teacher_rewards": [0.0, 1.0]}

# Adam would hide a wrong scale of the gradient.
PLAIN = {"optim": "sgd", "learning_rate": 0.3, "num_train_epochs": 2, "logging_steps": 1}


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<turn>",
        "<unk>",
        "user",
        "assistant",
        "one",
        "two",
        "three",
        "a",
        "response",
        ":",
    ]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(words[:4])
    # A BOS before each text, as Llama has it.
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    found.chat_template = (
        "<s>{% for m in messages %}{{ m.role }} : {{ m.content }} <turn> {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    return found
