"""The tokenizer of the tiny world: one token for a known word, else one for each character.

Vocabulary:
    A byte-pair model without merges, with ``ignore_merges``, looks a pre-token up in the vocabulary
    and falls back to its characters. So printable ASCII and the newline come back exactly, and any
    other character becomes ``<unk>``. Digits and the letters of string edits are one token each.

Spaces:
    A word, a sign or the first digit of a number carries the space before it, as in the
    vocabularies of Llama 3 and GPT-2, so that the decoder only has to join tokens.
"""

from __future__ import annotations

import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tiny_world.tasks import ITEMS, NAMES, UNITS

BOS, EOS, PAD, UNK = "<s>", "<|end|>", "<pad>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PATTERN = r" ?#+| ?[A-Za-z]+| ?[^A-Za-z\s]|\s"
STARTS = [
    "What",
    "Add",
    "Subtract",
    "Sort",
    "Reverse",
    "Swap",
    "Convert",
    "How",
    "Which",
    "units",
    "####",
]
SENTENCES = (
    " is from and units tens has buys more boxes of Then gives away many does have now are left up "
    'down the first and last letters " to Which answer best Reply with its letter '
    "#### + - * / = 0 1 2 3 4 5 6 7 8 9"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, got ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, the newline and printable ASCII, then the sorted tokens of words."""
    characters = ["\n", *(c for c in string.printable if c.isprintable())]
    units = [unit for row in UNITS for unit in row[:2]]
    words = " ".join((SENTENCES, *NAMES, *ITEMS, *units))
    pieces = {*re.findall(PATTERN, words), *STARTS, *NAMES} - {*characters}
    return [PAD, BOS, EOS, UNK, *ROLES, *characters, *sorted(pieces)]


def build() -> PreTrainedTokenizerFast:
    """A fast tokenizer with a chat template, which puts ``<s>`` first as Llama's and Gemma's do."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    core = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNK, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )
