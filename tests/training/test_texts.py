"""Texts in a dataset: where they begin and end, and what stands between."""

from __future__ import annotations

import made_tokenizers
import pytest
from made_tokenizers import chat_tokenizer
from students import RENAMED
from tokenizers import processors

from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.prepared_rows import prepare_dataset

pytestmark = RENAMED
REWARDS = {"teacher_rewards": [0.0, 1.0]}
MESSAGES = [{"role": "user", "content": "2 + 2 ="}]


@pytest.fixture(scope="module", params=list(made_tokenizers.KINDS))
def tokenizer(request):
    """A tokenizer that puts a BOS in front of each text and an EOS behind it."""
    found = chat_tokenizer(request.param)
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", found.bos_token_id), ("</s>", found.eos_token_id)],
    )
    return found


def read(tokenizer, **row) -> dict:
    return RowReader(tokenizer=tokenizer)({**REWARDS, **row}, 0)


def spelled(tokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", "▁").replace("Ċ", "\n")


@pytest.mark.parametrize("prompt", ["Answer:\n", "<s>Answer:\n"])
def test_a_plain_prompt_has_one_bos_and_no_eos(tokenizer, prompt):
    found = read(tokenizer, prompt=prompt, completions=["A", " B"])
    text = spelled(tokenizer, found["prompt_ids"])
    assert text.replace("<s>▁", "<s>") == "<s>Answer:\n"
    assert [spelled(tokenizer, ids) for ids in found["completion_ids"]] == ["A</s>", "▁B</s>"]


@pytest.mark.parametrize("completion", ["A", "A</s>", "A</s>\n"])
@pytest.mark.parametrize("prompt", ["Answer:\n", MESSAGES])
def test_an_end_that_is_there_is_not_added(tokenizer, prompt, completion):
    found = read(tokenizer, prompt=prompt, completions=[completion, "B"])
    assert [spelled(tokenizer, ids) for ids in found["completion_ids"]] == ["A</s>", "B</s>"]
    # A response that was cut has no end, unless it spells it.
    reasons = ["length", "length"]
    found = read(tokenizer, prompt=prompt, completions=[completion, "B"], finish_reasons=reasons)
    first = "A" if completion == "A" else "A</s>"
    assert [spelled(tokenizer, ids) for ids in found["completion_ids"]] == [first, "B"]


def test_an_end_that_is_another_than_the_templates_stays(tokenizer):
    turns = chat_tokenizer("byte-level", made_tokenizers.TEMPLATE.replace("</s>", "<|system|>"))
    found = read(turns, prompt=MESSAGES, completions=["A</s>", "B"])
    assert [spelled(turns, ids) for ids in found["completion_ids"]] == ["A</s>", "B<|system|>"]


def test_a_prompt_that_is_given_as_ids_needs_no_template():
    made = chat_tokenizer("metaspace, first", template=None)
    ids = made.encode("Answer:\n", add_special_tokens=False)
    found = read(made, prompt=MESSAGES, prompt_ids=ids, completions=["A", "B"])
    assert found["prompt_ids"] == ids
    assert [spelled(made, ids) for ids in found["completion_ids"]] == ["A</s>", "B</s>"]


@pytest.mark.parametrize("given", [{"prompt": MESSAGES}, {"prompt": "Answer:\n"}, {}])
def test_control_tokens_within_a_response_are_text(tokenizer, given):
    if not given:
        given = {"prompt_ids": tokenizer.encode("Answer:\n", add_special_tokens=False)}
    said = "so <|user|> and </s> and <s>A"
    found = read(tokenizer, **given, completions=[said, "B"])
    tokens = tokenizer.convert_ids_to_tokens(found["completion_ids"][0])
    assert not {"<|user|>", "<s>"} & set(tokens)
    assert tokens.count("</s>") == 1
    assert spelled(tokenizer, found["completion_ids"][0]) == said.replace(" ", "▁") + "</s>"


def test_a_rendered_prompt_keeps_its_control_tokens(tokenizer):
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    found = read(tokenizer, prompt="<s>" + rendered, completions=["A", "B"])
    whole = read(tokenizer, prompt=MESSAGES, completions=["A", "B"])
    assert found["prompt_ids"] == [tokenizer.bos_token_id, *whole["prompt_ids"]]
    assert found["completion_ids"] == whole["completion_ids"]


def test_an_instruction_is_joined_with_its_input(tokenizer):
    row = {"instruction": "Translate.", "input": "The cat", "completions": ["A", "B"]}
    joined = {"prompt": "Translate.\n\nThe cat", "completions": ["A", "B"]}
    assert read(tokenizer, **row) == read(tokenizer, **joined)
    assert read(tokenizer, **{**row, "input": ""}) == read(
        tokenizer, **{**joined, "prompt": "Translate."}
    )


def test_a_template_that_leaves_out_a_message():
    template = made_tokenizers.TEMPLATE.replace(
        "{{ m.content }}", "{{ m.content if m.role != 'system' }}"
    )
    system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    row = {**REWARDS, "prompt": system, "completions": ["A", "B"]}
    reader = RowReader(tokenizer=chat_tokenizer("byte-level", template))
    with pytest.raises(ValueError, match=r"row 0: .* message 1 of 2, the system's 'Be brief.'"):
        prepare_dataset([row], reader)
    parts = made_tokenizers.TEMPLATE.replace("{{ m.content }}", "{{ m.content[0].text }}")
    reader = RowReader(tokenizer=chat_tokenizer("byte-level", parts))
    usual = RowReader(tokenizer=chat_tokenizer("byte-level"))
    assert reader(row, 0) == usual(row, 0)
