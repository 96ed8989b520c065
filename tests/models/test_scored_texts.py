"""Prompts and responses in the forms in which a caller has them, and those that are refused."""

from __future__ import annotations

import copy
import json

import made_tokenizers
import numpy as np
import pytest
import torch
from datasets import Dataset
from made_tokenizers import chat_tokenizer
from students import GOOD, VOCABULARY, make_args, make_model, word_tokenizer
from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerFast

from pad_fast import PADTrainer
from pad_fast.models.own_tokenizer import check_tokenizer
from pad_fast.models.scoring import score_responses
from pad_fast.models.token_ids import TokenIdReader
from pad_fast.training.dataset_rows import RowReader

CHAT = [{"role": "user", "content": "2 + 2 ="}]
ANSWERS = ["A", " B </s>", [{"role": "assistant", "content": "two and <|user|>"}], ""]


@pytest.mark.parametrize("prompt", ["Answer:\n", CHAT])
@pytest.mark.parametrize("kind", made_tokenizers.KINDS)
def test_texts_become_the_ids_that_the_trainer_makes(kind, prompt):
    tokenizer = chat_tokenizer(kind)
    reasons = ["stop", "length", "length", "stop"]
    row = {"prompt": prompt, "completions": ANSWERS, "teacher_rewards": [0.0] * 4}
    wanted = RowReader(tokenizer, repeats="each")({**row, "finish_reasons": reasons}, 0)
    prompts, groups = TokenIdReader(tokenizer).read([prompt], [ANSWERS], [reasons])
    assert prompts == [wanted["prompt_ids"]]
    assert groups == [wanted["completion_ids"]]
    ids = row | {"prompt_ids": wanted["prompt_ids"]}  # a prompt as ids, and responses as texts
    assert TokenIdReader(tokenizer).read([wanted["prompt_ids"]], [ANSWERS])[1] == [
        RowReader(tokenizer, repeats="each")(ids, 0)["completion_ids"]
    ]


def test_options_reach_the_template():
    tokenizer = chat_tokenizer("byte-level")
    tokenizer.chat_template += "{% if quiet %}Hush{% endif %}"
    plain, quiet = (TokenIdReader(tokenizer, {"quiet": on}).read([CHAT], [[]])[0] for on in (0, 1))
    assert len(quiet[0]) > len(plain[0])


def test_scores_of_texts_are_those_of_their_ids():
    model, tokenizer = make_model(), word_tokenizer()
    wanted = score_responses(model, [[1, 7], [7]], [[[8, 2], [9, 9, 2]], [[8]]])
    found = score_responses(model, ["one", [7]], [["two", "three three"], [[8]]], tokenizer)
    assert found == wanted
    cut = score_responses(model, ["one"], [["two"]], tokenizer, finish_reasons=[["length"]])
    assert cut == score_responses(model, [[1, 7]], [[[8]]])


@pytest.mark.parametrize(
    ("prompts", "responses"),
    [
        (((1, 7), (3, 4)), (((8, 2), (5,)), ((6,),))),
        (torch.tensor([[1, 7], [3, 4]]), [[torch.tensor([8, 2]), [5]], torch.tensor([[6]])]),
        (np.array([[1, 7], [3, 4]]), [[np.array([8, 2]), np.array([5])], [[np.int64(6)]]]),
        ([[torch.tensor(1), 7], range(3, 5)], [[[8, 2], [5]], [[6]]]),
        (
            Dataset.from_dict({"ids": [[1, 7], [3, 4]]})["ids"],
            Dataset.from_dict({"ids": [[[8, 2], [5]], [[6]]]})["ids"],
        ),
    ],
)
def test_ids_in_other_sequences(prompts, responses):
    found = TokenIdReader(None).read(prompts, responses)
    assert [list(ids) for ids in found[0]] == [[1, 7], [3, 4]]
    assert [[list(ids) for ids in group] for group in found[1]] == [[[8, 2], [5]], [[6]]]


BATCH = BatchEncoding({"input_ids": [[1, 7]], "attention_mask": [[1, 1]]})
ONE = [{"role": "user", "content": "one"}]


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("one", [["two"]], "^prompts must be a list of prompts, got the text 'one'"),
        (["one"], "two", "^responses must be a list with a list of responses .* text 'two'"),
        (["one"], ["two"], r"^responses\[0\] must be a list of the responses to prompts\[0\], got"),
        (["one"], [["two"], ["a"]], "one list for each of the 1 prompts, got 2"),
        (
            BATCH,
            [["two"]],
            "^prompts must be .* got a BatchEncoding with the keys input_ids, .*give",
        ),
        ([BATCH], [["two"]], r"^prompts\[0\] must be .* BatchEncoding with the keys input_ids"),
        (["one"], [[BATCH]], r"^responses\[0\]\[0\] must be .* got a BatchEncoding with the keys"),
        (
            ONE,
            [["two"]],
            r"^prompts\[0\] must be .* got a single message; a conversation is a list",
        ),
        ([["one"]], [["two"]], r"^prompts\[0\] must be .* got the text 'one' within a list"),
        ([[1, 7]], [[3, 4]], r"^responses\[0\]\[0\] must be a text, .* token ids, got 3$"),
        ([[1, 7]], [[[[3]]]], r"^responses\[0\]\[0\] must be .* got \[3\] within a list"),
        ([torch.ones(1, 2).long()], [[]], r"^prompts\[0\] must be .* got \[1, 1\] within a Tensor"),
        ([[1.0, 2.0]], [[]], r"^prompts\[0\] must be .* got 1.0 within a list"),
        ([torch.ones(2)], [[]], r"^prompts\[0\] must be .* got 1.0 within a Tensor"),
        ([[1, True]], [[]], r"^prompts\[0\] must be .* got True within a list"),
        ([[1, None]], [[]], r"^prompts\[0\] must be .* got None within a list"),
        ([None], [[]], r"^prompts\[0\] must be .* got None$"),
        ([b"one"], [[]], r"^prompts\[0\] must be .* got a bytes$"),
        (torch.tensor(3), [], "^prompts must be a list of prompts, got a Tensor"),
        ((x for x in "ab"), [], "^prompts must be a list of prompts, got a generator$"),
        ({"a": 1}, [], "^prompts must be a list of prompts, got a dict with the keys a$"),
        ([[{"role": "user"}]], [[]], r"^prompts\[0\]: prompt must be .* role and a content"),
        ([[*ONE, {"role": "assistant", "content": "x"}]], [[]], "must end before the assistant's"),
        (["one"], [[ONE]], r"^responses\[0\]\[0\]: a completion must be .* one assistant message"),
        ([[VOCABULARY]], [[]], r"^prompts\[0\] must hold token ids in 0..39, got 40"),
    ],
)
def test_what_is_refused_is_named(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        score_responses(make_model(), prompts, responses, word_tokenizer())


def test_texts_need_a_tokenizer_and_reasons_their_places():
    model = make_model()
    with pytest.raises(
        ValueError, match=r"prompts\[0\] is the text 'one', which needs the model's"
    ):
        score_responses(model, ["one"], [[[3]]])
    with pytest.raises(ValueError, match=r"responses\[0\]\[1\] is the text 'x', which needs"):
        score_responses(model, [[1]], [[[3], "x"]])
    with pytest.raises(
        ValueError, match=r"tokenizer must be a transformers .* got the text 'gpt2'"
    ):
        score_responses(model, ["one"], [["two"]], "gpt2")
    for reasons, message in (
        ("stop", "finish_reasons must be a list with a list of reasons a prompt, got the text"),
        ([["stop"], []], "finish_reasons must hold one list for each of the 1 prompts, got 2"),
        ([[]], r"finish_reasons\[0\] must hold one for each of the 1 responses to prompts\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            score_responses(model, [[1]], [[[3]]], finish_reasons=reasons)
    with pytest.raises(ValueError, match=r"got str with None; load it, by AutoModelForCausalLM"):
        score_responses("gpt2", [[1]], [[[3]]])


@pytest.fixture
def shuffled(tmp_path):
    """A model's folder with its tokenizer, and the tokenizer of another model."""
    model, own = make_model(), chat_tokenizer("byte-level")
    model.save_pretrained(tmp_path / "own")
    own.save_pretrained(tmp_path / "own")
    content = json.loads(own.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    ids = [vocabulary[token] for token in sorted(vocabulary)]
    content["model"]["vocab"] = dict(zip(sorted(vocabulary), ids[1:] + ids[:1], strict=True))
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    return type(model).from_pretrained(tmp_path / "own"), own, other


def test_the_tokenizer_of_another_model(shuffled, tmp_path):
    """Its ids are other tokens to the model, and the rewards would be noise."""
    model, own, other = shuffled
    message = "tokenizer must be the model's own: .* ids that it has .* other tokens in .*own, such"
    with pytest.raises(ValueError, match=message):
        score_responses(model, ["one"], [["two"]], other)
    with pytest.raises(ValueError, match=message):
        PADTrainer(model, make_args(tmp_path), None, [GOOD], processing_class=other)
    check_tokenizer(model, own)
    added = copy.deepcopy(own)
    added.add_tokens(["fox", "brown"])  # more tokens than the folder has are no other tokenizer
    check_tokenizer(model, added)
    (tmp_path / "own" / "tokenizer.json").unlink()  # nothing to compare with
    check_tokenizer(model, other)
