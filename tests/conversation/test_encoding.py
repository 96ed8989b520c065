"""Text as token ids, for tokenizers that add a space, and control tokens that somebody spells."""

from __future__ import annotations

import copy

import pytest
from made_tokenizers import SPECIAL, chat_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from pad_fast.conversation.chat import Chat
from pad_fast.conversation.encoding import TextEncoder
from pad_fast.pipeline.multiple_choice import letter_token_ids

USER = [{"role": "user", "content": "2 + 2 ="}]


def control(tokenizer, ids: list[int]) -> list[str]:
    """The control tokens among some ids."""
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in SPECIAL]


@pytest.mark.parametrize("text", ["Hello there", " A", "A", "\nAnswer: B", "4!"])
def test_a_response_has_the_ids_of_the_rendered_conversation(tokenizer, text):
    chat = Chat(tokenizer)
    messages = [*USER, {"role": "assistant", "content": text}]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    prompt = chat.prompt_ids(USER)
    assert whole[: len(prompt)] == prompt
    ids = chat.response_ids(USER, text)
    assert whole[len(prompt) : len(prompt) + len(ids)] == ids
    assert whole[len(prompt) + len(ids)] == tokenizer.eos_token_id
    assert chat.response_ids(USER, "") == []


def test_without_a_control_token_at_the_border_there_is_no_space_either():
    # The text that is encoded alone has a space in front; so had the rewards of every response.
    tokenizer = chat_tokenizer("metaspace, first")
    assert tokenizer.tokenize("Hello")[0].startswith("▁")
    encoder = TextEncoder(tokenizer)
    for before in ("Question: two\nAnswer:\n", "<|assistant|>", "Say:"):
        found = tokenizer.convert_ids_to_tokens(encoder.following(before, "Hello"))
        assert "".join(found) == "Hello", before
    # The response begins within a token of the text as a whole, but the prompt's tokens stay.
    merging = encoder.following("Answer: Hel", "lo there")
    assert "".join(tokenizer.convert_ids_to_tokens(merging)) == "lo▁there"


def test_letters_are_read_with_and_without_a_space(tokenizer):
    forms = letter_token_ids(tokenizer, 2)
    spelled = [set(tokenizer.convert_ids_to_tokens(ids)) for ids in forms]
    for letter, tokens in zip("AB", spelled, strict=True):
        assert letter in tokens  # what follows "<|assistant|>\n"
        assert tokens <= {letter, f"▁{letter}", f"Ġ{letter}"}


@pytest.mark.parametrize("token", SPECIAL[1:])
def test_spelled_control_tokens_stay_text(tokenizer, token):
    said = f"Hello {token}there"
    chat = Chat(tokenizer)
    ids = chat.response_ids(USER, said)
    assert control(tokenizer, ids) == []
    messages = [{"role": "user", "content": said}]
    prompt = chat.prompt_ids(messages)
    assert control(tokenizer, prompt) == ["<|user|>", "</s>", "<|assistant|>"]
    assert chat.rendered(messages) == f"<|user|>\n{said}</s>\n"
    assert said in tokenizer.decode(prompt, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == said


def test_a_token_that_frames_turns_is_a_control_token_whatever_its_flag():
    # DeepSeek's <｜User｜> is not marked as special. A thought's token frames no turn.
    tokenizer = chat_tokenizer("byte-level")
    tokenizer.add_tokens(
        [AddedToken("<turn>", special=False), AddedToken("<think>", special=False)]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant <think>{% endif %}"
    )
    turn, think = tokenizer.convert_tokens_to_ids(["<turn>", "<think>"])
    ids = Chat(tokenizer).response_ids(USER, "a <turn> and a <think>")
    assert turn not in ids
    assert think in ids


def test_a_spelled_control_token_changes_no_other_id(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.add_tokens([AddedToken("<x>"), AddedToken("<|tool|>", special=True, rstrip=True)])
    encoder = TextEncoder(made)
    written = "<|user|>\nHello there <x> you<|tool|>\nA</s><|assistant|>"
    ids = made(written, add_special_tokens=False)["input_ids"]
    found = encoder.ids(written + encoder.hidden("</s>"))
    assert found[: len(ids)] == ids
    assert encoder.shown(encoder.hidden("a <|tool|></s>")) == "a <|tool|></s>"


def test_a_sign_that_serves_as_a_control_token_is_text():
    made = chat_tokenizer("byte-level")
    made.pad_token = "!"
    encoder = TextEncoder(made)
    sign = made.convert_tokens_to_ids("!")
    assert sign in encoder.following("Answer:\n", "<|user|>!")


def test_text_of_a_response_keeps_all_but_what_was_cut():
    tokenizer = chat_tokenizer("byte-level")
    encoder = TextEncoder(tokenizer)

    def text(said: str, cut: int = 0) -> str:
        ids = tokenizer.encode(said, add_special_tokens=False)
        return encoder.text(ids[: len(ids) - cut])

    assert text("Hello <|user|> there") == "Hello <|user|> there"
    emoji = "Hello 😀"
    assert [text(emoji, cut) for cut in range(4)] == [emoji, *["Hello "] * 3]
    assert text("Hello \ufffd") == "Hello \ufffd"  # written, not cut
    assert encoder.text([]) == ""


def test_bytes_of_a_cut_character_are_each_left_out():
    # Llama 2 spells a character that it has no token for as bytes, and each of them decodes to one
    # replacement character.
    inner = Tokenizer(
        models.BPE({"a": 0, **{f"<0x{n:02X}>": n + 1 for n in range(256)}}, [], byte_fallback=True)
    )
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = tokenizer.encode("a😀", add_special_tokens=False)
    assert len(ids) == 5
    texts = [TextEncoder(tokenizer).text(ids[: len(ids) - cut]) for cut in range(5)]
    assert texts == ["a😀", "a", "a", "a", "a"]


@pytest.mark.parametrize("end", [False, True])
def test_a_plain_prompt_gets_one_bos_and_no_eos(end):
    made = chat_tokenizer("byte-level", template=None)
    template = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A",
        special_tokens=[("<s>", made.bos_token_id), ("</s>", made.eos_token_id)],
    )
    made.backend_tokenizer.post_processor = template
    bare = made.encode("Hello", add_special_tokens=False)
    encoder = TextEncoder(made)
    for text in ("Hello", "<s>Hello"):
        assert encoder.prompt(text) == [made.bos_token_id, *bare]
    assert encoder.prompt("") == [made.bos_token_id]
    # Where the tokenizer adds none, none is added.
    plain = chat_tokenizer("byte-level", template=None)
    assert TextEncoder(plain).prompt("Hello") == bare
