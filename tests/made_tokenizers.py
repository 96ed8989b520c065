"""Tokenizers of the kinds that models have, trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
SENTENCES = [
    "The cat says A or B, and the dog says C or D.",
    "Hello there, two and two is four: 2 + 2 = 4!",
    "Reply with a letter. Answer: A\nAnswer: B",
    "so <b> and </b> or <|x|>, as a user or a system may say",
] * 5
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """BPE over bytes, as GPT-2, Llama 3 and Qwen have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(made, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return made


def metaspace(scheme: str = "first") -> Tokenizer:
    """BPE with a visible space, as Llama 2 and Mistral have it.

    The scheme says where a space is added in front: of the first piece, or of what follows any
    control token ("always").
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _train(made, trainers.BpeTrainer(vocab_size=120))
    return made


def legacy() -> Tokenizer:
    """BPE whose normalizer adds the space, in front of what follows any control token too."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _train(made, trainers.BpeTrainer(vocab_size=120))
    return made


def unigram() -> Tokenizer:
    """Unigram with a visible space, as Gemma's and T5's; its vocabulary has the control tokens."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    _train(made, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>"))
    return made


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> None:
    trainer.special_tokens = SPECIAL
    trainer.show_progress = False
    tokenizer.train_from_iterator(SENTENCES, trainer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "metaspace, first": metaspace,
    "metaspace, always": lambda: metaspace("always"),
    "legacy": legacy,
    "unigram": unigram,
}


def chat_tokenizer(kind: str, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind in :data:`KINDS` with a chat template."""
    found = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
    )
    found.chat_template = template
    return found
