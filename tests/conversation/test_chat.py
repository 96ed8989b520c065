"""Chat templates: nothing of a conversation is lost, and dates and ends are known."""

from __future__ import annotations

import datetime

import pytest
from made_tokenizers import TEMPLATE, chat_tokenizer

from pad_fast.conversation.chat import Chat

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>CONTENT</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = PLAIN.replace(
    "CONTENT",
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}",
)
TRIMS = PLAIN.replace("CONTENT", "{{ m.content | trim }}")
NO_SYSTEM = PLAIN.replace("CONTENT", "{{ m.content if m.role != 'system' }}")
FIRST_SYSTEM = PLAIN.replace("CONTENT", "{{ m.content if m.role != 'system' or loop.first }}")
NO_THOUGHTS = PLAIN.replace(
    "CONTENT", "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
)
LAST_TURN = "<|user|>{{ messages[-1].content }}<|assistant|>"
# Mistral's puts the system's message in front of the last question.
MOVES_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ m.content }}</s>{% endif %}{% endfor %}<|assistant|>"
)
# A list is written out as Python would, and so are not its texts alone.
WRITES_LISTS = PLAIN.replace("CONTENT", "{{ m.content if m.content is not string }}")

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello <there>"}
THOUGHT = {"role": "assistant", "content": "<think>hm</think>\n\nHi"}
MORE = {"role": "user", "content": "More"}


def chat(template: str, **options) -> Chat:
    return Chat(
        chat_tokenizer("byte-level", template), owner="the student's chat template", **options
    )


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (TRIMS, [{"role": "user", "content": "  Hello\n"}]),
        (TEMPLATE, [SYSTEM, USER, THOUGHT, MORE]),
        (MOVES_SYSTEM, [SYSTEM, USER, THOUGHT, MORE]),
        (FIRST_SYSTEM, [SYSTEM, USER, THOUGHT, MORE]),
        (NO_THOUGHTS, [USER, {"role": "assistant", "content": "Hi"}, MORE]),
        (PARTS, [SYSTEM, USER, THOUGHT, MORE]),
        (TEMPLATE, [USER, THOUGHT, USER]),
        (TEMPLATE, [SYSTEM, {"role": "user", "content": ""}]),
    ],
)
def test_templates_that_write_everything(template, messages):
    made = chat(template)
    made.check(messages)
    prompt = made.rendered(messages, add_generation_prompt=True)
    assert all(message["content"].strip() in prompt for message in messages)
    assert made.tokenizer.decode(made.prompt_ids(messages)) == prompt


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        (NO_SYSTEM, [SYSTEM, USER], "message 1 of 2, the system's 'Be brief.'"),
        # A text that also stands elsewhere is missed all the same.
        (NO_SYSTEM, [{**SYSTEM, "content": "user"}, USER], "the system's 'user'"),
        (NO_SYSTEM, [{**SYSTEM, "content": "Hello"}, USER], "the system's 'Hello'"),
        (FIRST_SYSTEM, [SYSTEM, USER, THOUGHT, SYSTEM, MORE], "message 4 of 5, the system's"),
        (NO_THOUGHTS, [USER, THOUGHT, MORE], "message 2 of 3, the assistant's '<think>hm</think>"),
        (LAST_TURN, [USER, THOUGHT, MORE], "message 2 of 3, the assistant's"),
        ("{% if false %}x{% endif %}", [USER], "message 1 of 1, the user's 'Hello <there>'"),
        (WRITES_LISTS, [USER], "message 1 of 1, the user's"),
    ],
)
def test_what_a_template_leaves_out_is_named(template, messages, lost):
    with pytest.raises(
        ValueError, match="the student's chat template leaves out text of "
    ) as found:
        chat(template, model="some/model").check(messages)
    assert lost in str(found.value)
    assert "(some/model)" in str(found.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1/0 }}", "division by zero"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{% for m in messages %}", "endfor"),
        ("{{ messages[0].content + 1 }}", "str"),
    ],
)
def test_errors_of_a_template_name_it(template, words):
    with pytest.raises(ValueError, match=r"the student's chat template refuses .*\(a/b\)") as found:
        chat(template, model="a/b").prompt_ids([USER])
    assert words in str(found.value)


def test_parts_are_given_where_they_are_read():
    strings = chat(PLAIN.replace("CONTENT", "{{ m.content }}"))
    assert chat(PARTS).prompt_ids([SYSTEM, USER]) == strings.prompt_ids([SYSTEM, USER])
    assert chat(PARTS).response_ids([USER], "Hi") == strings.response_ids([USER], "Hi")
    given = {"role": "user", "content": [{"type": "text", "text": "Hello <there>"}]}
    assert chat(PARTS).prompt_ids([given]) == strings.prompt_ids([USER])


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN, "</s>"),
        (TEMPLATE, "</s>"),
        (PARTS, "</s>"),
        (PLAIN.replace("</s>", " <|end_of_response|>"), "<|end_of_response|>"),
        (PLAIN.replace("</s>", "\n<|end_of_response|>"), "<|end_of_response|>"),
        (PLAIN.replace("</s>", ""), "</s>"),
        ("{{ raise_exception('no') if messages | length > 1 }}<|user|>", "</s>"),
    ],
)
def test_the_end_of_a_turn(template, end):
    tokenizer = chat_tokenizer("byte-level", template.replace("CONTENT", "{{ m.content }}"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end_of_response|>"]})
    assert tokenizer.convert_ids_to_tokens(Chat(tokenizer).end_of_turn_id) == end


def test_blanks_that_the_template_puts_in_front_of_a_response_are_read():
    # Llama 2's prompt ends in [/INST], and its turn goes on with a space.
    spaced = (
        "{% for m in messages %}{{ ' ' if m.role == 'assistant' }}{{ m.content }}"
        "{{ '</s>' if m.role == 'assistant' else '<|assistant|>' }}{% endfor %}"
    )
    made = Chat(chat_tokenizer("metaspace, first", spaced))
    for text in ("Hello", " Hello"):
        ids = made.response_ids([USER], text)
        assert "".join(made.tokenizer.convert_ids_to_tokens(ids)) == "▁Hello"
    assert made.response_ids([USER], "") == []
    # More than blanks, such as an empty thought, is no part of the response.
    thinking = spaced.replace("' ' if", "'<x>' if")
    made = Chat(chat_tokenizer("metaspace, first", thinking))
    ids = made.response_ids([USER], "Hello")
    assert "".join(made.tokenizer.convert_ids_to_tokens(ids)) == "Hello"


@pytest.mark.parametrize("dash", ["", "-"])
def test_a_date_is_that_of_the_run(dash):
    template = (
        f"{{%{dash} set today = strftime_now('%-d %d %b %Y %B') %}}"
        "{% if strftime_now is defined %}Today is {{ today }}, {{ strftime_now('%H:%M') }}."
        "{% endif %}"
        f"\n{PLAIN.replace('CONTENT', '{{ m.content }}')}"
    )
    now = datetime.datetime(2024, 2, 5, 16, 7)
    made = chat(template, now=now)
    rendered = made.rendered([USER])
    assert rendered.startswith("Today is 5 05 Feb 2024 February, 16:07.")
    usual = chat(template).rendered([USER])
    assert rendered.partition(".")[2] == usual.partition(".")[2]
    made.check([USER])
