"""From rows of a dataset to token ids, and from token ids to batches."""

import copy
import logging
import math

import pytest
from datasets import Dataset
from students import GOOD, RENAMED

from pad_fast.training.collator import PADCollator
from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.prepared_rows import prepare_dataset

pytestmark = RENAMED


def read(row: dict, **options) -> dict:
    return RowReader(**options)(row, 7)


def test_texts_get_the_end_of_turn_and_ids_are_taken_as_they_are(tokenizer):
    row = {
        "prompt": "one two",
        "completions": ["three", "two three"],
        "teacher_rewards": [0.5, -1.0],
        "finish_reasons": ["stop", "length"],
    }
    found = read(row, tokenizer=tokenizer)
    assert found["prompt_ids"] == [1, 7, 8]
    assert found["completion_ids"] == [[9, 2], [8, 9]]
    assert found["clipped"] == [False, True]
    # ids win over text, and nothing is appended
    found = read({**row, "prompt_ids": [5], "completion_ids": [[6], [6, 6]]})
    assert (found["prompt_ids"], found["completion_ids"]) == ([5], [[6], [6, 6]])


def test_conversations_pass_the_chat_template_once(tokenizer):
    prompt = [{"role": "user", "content": "one"}]
    answers = ["two", [{"role": "assistant", "content": "three"}]]
    found = read(
        {"prompt": prompt, "completions": answers, "teacher_rewards": [1, 2]}, tokenizer=tokenizer
    )
    assert found["prompt_ids"] == [1, 5, 12, 7, 3, 6, 12]  # one BOS, and the generation prompt
    assert found["completion_ids"] == [[8, 3], [9, 3]]  # the template's own end of turn


def test_other_tools_names_of_columns(tokenizer):
    for names in (
        ("instruction", "generations", "ratings"),
        ("question", "candidates", "scores"),
        ("prompt", "responses", "rewards"),
    ):
        row = dict(zip(names, ("one", ["two", "three"], [1.0, 2.0]), strict=True))
        found = read(row, tokenizer=tokenizer)
        assert (found["prompt_ids"], found["completion_ids"], found["teacher_rewards"]) == (
            [1, 7],
            [[8, 2], [9, 2]],
            [1.0, 2.0],
        )


def test_each_response_is_cut_by_itself():
    row = {
        "prompt_ids": [1] * 6,
        "completion_ids": [[3] * 2, [4] * 9, [5] * 4],
        "teacher_rewards": [0, 1, 2],
    }
    found = read(row, max_length=10)
    assert [len(ids) for ids in found["completion_ids"]] == [2, 4, 4]
    assert (found["clipped"], found["num_cut"]) == ([False, True, False], 1)
    found = read(row, max_length=10, max_completion_length=3)
    assert [len(ids) for ids in found["completion_ids"]] == [2, 3, 3]
    found = read(row, max_length=10, mask_truncated=True)
    assert found["teacher_rewards"] == [0.0, None, 2.0]


def test_responses_that_are_left_out():
    row = {
        "prompt_ids": [1],
        "completion_ids": [[3], [], [4], [5]],
        "teacher_rewards": [0.0, 1.0, None, 2.0],
    }
    found = read(row)
    assert found["teacher_rewards"] == [0.0, None, None, 2.0]
    assert found["num_live"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher_rewards": [0.0, math.nan]},
            "row 7: teacher_rewards must be finite.*got nan for response 1",
        ),
        ({"teacher_rewards": [0.0, -math.inf]}, "row 7: teacher_rewards must be finite.*got -inf"),
        ({"teacher_rewards": [0.0]}, "row 7: teacher_rewards.*2 completions, 1 teacher_rewards"),
        (
            {"finish_reasons": ["stop"]},
            "row 7: .*2 completions, 2 teacher_rewards and 1 finish_reasons",
        ),
        (
            {"teacher_rewards": None},
            r"row 7: a row must have teacher_rewards \(or rewards, scores, ratings\), "
            "got the columns prompt_ids",
        ),
        ({"completion_ids": None}, "row 7: a row must have completions or completion_ids"),
        ({"prompt_ids": None}, "row 7: a row must have prompt or prompt_ids"),
        (
            {"prompt_ids": None, "prompt": "one"},
            "row 7: prompt is text, which needs a processing_class",
        ),
        ({"prompt_ids": []}, "row 7: prompt must have at least one token"),
        (
            {"prompt_ids": [1] * 8},
            "row 7: prompt must leave room for a response in max_length=8 tokens, got 8",
        ),
        ({"completion_ids": [[3], [99]]}, "row 7: completion_ids must lie in 0..39, got 99"),
        ({"prompt_ids": [-1]}, "row 7: prompt_ids must lie in 0..39, got -1"),
        ({"prompt_ids": "23"}, "row 7: prompt_ids must be a list of token ids, got '23'"),
        ({"prompt_ids": ["2"]}, "row 7: prompt_ids must hold integers, got '2'"),
        (
            {"completion_ids": [[3], None]},
            "row 7: completion_ids must be lists of token ids, one a response, got None",
        ),
        (
            {"completion_ids": [3, 4]},
            "row 7: completion_ids must be lists of token ids, one a response, got 3",
        ),
        (
            {"teacher_rewards": 0.5},
            "row 7: teacher_rewards must be a list with one value for each response, got 0.5",
        ),
        (
            {"teacher_rewards": ["0.5", "1"]},
            "row 7: teacher_rewards must be finite.*got '0.5' for response 0",
        ),
        (
            {"teacher_rewards": [0.0, 1e39]},
            r"row 7: teacher_rewards must be finite in float32.*got 1e\+39 for response 1",
        ),
        ({"finish_reasons": "stop"}, "row 7: finish_reasons must be a list"),
        (
            {"teacher_rewards": [0.0, 10**5000]},
            "row 7: teacher_rewards must be finite.*got an integer of 16610 bits for response 1",
        ),
        (
            {"prompt_ids": [10**5000]},
            "row 7: prompt_ids must lie in 0..39, got an integer of 16",
        ),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        read({**GOOD, **change}, max_length=8, vocabulary=40)


def test_ids_of_an_unknown_vocabulary_fit_the_column():
    with pytest.raises(ValueError, match=r"row 7: prompt_ids must lie in 0..2147483647, got 2147"):
        read({**GOOD, "prompt_ids": [2**31]})


def test_half_of_a_character_is_named(tokenizer):
    row = {"prompt": "one", "completions": ["two", "a\ud83d"], "teacher_rewards": [0.0, 1.0]}
    with pytest.raises(ValueError, match=r"row 7: the text holds half of a character, '\\ud83d'"):
        read(row, tokenizer=tokenizer)


def test_bad_conversations(tokenizer):
    answer = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="one assistant message"):
        read(
            {"prompt": "one", "completions": [answer], "teacher_rewards": [1.0]},
            tokenizer=tokenizer,
        )
    for completions in (["two", None], ["two", 3], ["two", [{"role": "assistant"}]]):
        with pytest.raises(
            ValueError,
            match="row 7: a completion must be a text or a list of one assistant message, got",
        ):
            read(
                {"prompt": "one", "completions": completions, "teacher_rewards": [1.0, 2.0]},
                tokenizer=tokenizer,
            )
    with pytest.raises(
        ValueError,
        match="row 7: completions must be a list with one value for each response, got '23'",
    ):
        read(
            {"prompt": "one", "completions": "23", "teacher_rewards": [1.0, 2.0]},
            tokenizer=tokenizer,
        )
    for prompt in (3, [3], [{"content": "x"}], []):
        with pytest.raises(ValueError, match="row 7: prompt must be a text or a list of messages"):
            read(
                {"prompt": prompt, "completions": ["two"], "teacher_rewards": [1.0]},
                tokenizer=tokenizer,
            )
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(
        ValueError,
        match="row 7: the chat template refuses the conversation: no such role",
    ):
        read(
            {
                "prompt": [{"role": "x", "content": "y"}],
                "completions": ["two"],
                "teacher_rewards": [1.0],
            },
            tokenizer=picky,
        )
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="tokenizer with an EOS token"):
        read({"prompt": "one", "completions": ["two"], "teacher_rewards": [1.0]}, tokenizer=endless)


def test_dropped_rows_and_cut_responses_are_counted(caplog):
    one = {**GOOD, "teacher_rewards": [1.0, None]}
    long = {**GOOD, "completion_ids": [[3] * 9, [4] * 9]}
    with caplog.at_level(logging.WARNING, "pad_fast"):
        found = prepare_dataset([GOOD, one, long, one], RowReader(max_length=8))
    assert found["prompt_ids"] == [[1], [1]]
    assert "2 responses were cut" in caplog.text
    assert "dropped 2 of 4 rows with fewer than 2 live responses" in caplog.text
    with pytest.raises(ValueError, match="got none in 2 rows"):
        prepare_dataset([one, one], RowReader())
    with pytest.raises(ValueError, match="eval_dataset must not be empty"):
        prepare_dataset([], RowReader(), name="eval")
    with pytest.raises(ValueError, match="must have a length, got IterableDataset"):
        prepare_dataset(Dataset.from_list([GOOD]).to_iterable_dataset(), RowReader())
    with pytest.raises(ValueError, match="row 1: teacher_rewards must be finite"):
        prepare_dataset([GOOD, {**GOOD, "teacher_rewards": [0.0, math.inf]}], RowReader())
    for wrong in (0.5, ["a", "b"]):  # Arrow would refuse such a column without naming the row
        with pytest.raises(ValueError, match="row 1: teacher_rewards must be"):
            prepare_dataset([GOOD, {**GOOD, "teacher_rewards": wrong}], RowReader())


def test_types_do_not_depend_on_the_first_rows():
    """datasets writes 1,000 rows at a time, and takes a column's type from the first of these."""
    dead = {"prompt_ids": [1], "completion_ids": [[], []], "ratings": [0.0, 1.0]}
    assert (
        len(prepare_dataset([dead] * 1001 + [{**dead, "completion_ids": [[3], [4]]}], RowReader()))
        == 1
    )


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e300])
def test_the_collator_takes_finite_rewards_alone(bad):
    """The collator checks rows that were prepared elsewhere, where a NaN does not mask."""
    row = {
        "prompt_ids": [1],
        "completion_ids": [[2], [3], [4]],
        "teacher_rewards": [0.0, None, bad],
        "clipped": [False] * 3,
    }
    with pytest.raises(
        ValueError, match=r"finite in float32 or None, got \S+ for response 2 of row 1 of a batch"
    ):
        PADCollator()([{**row, "teacher_rewards": [0.0, 1.0, 2.0]}, row])


def test_batches():
    rows = [
        {
            "prompt_ids": [5, 6],
            "completion_ids": [[7, 8], [9]],
            "teacher_rewards": [0.5, 1.5],
            "clipped": [True, False],
        },
        {
            "prompt_ids": [1],
            "completion_ids": [[2], [3], [3, 4, 5]],
            "teacher_rewards": [0.0, None, -1.0],
            "clipped": [False, True, False],
        },
    ]
    batch = PADCollator()(rows)
    assert next(iter(batch)) == "teacher_rewards"
    assert batch["teacher_rewards"].tolist() == [[0.5, 1.5, 0.0], [0.0, 0.0, -1.0]]
    assert batch["mask"].tolist() == [[True, True, False], [True, False, True]]
    assert batch["lengths"].tolist() == [[2, 1, 0], [1, 1, 3]]
    assert batch["clipped"].tolist() == [[True, False, False], [False, True, False]]
    (part,) = batch["slices"]
    # Live responses without their last tokens, from which nothing is predicted.
    assert part["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0], [1, 0, 0], [1, 3, 4]]
    assert part["rows"].tolist() == [1, 2, 4, 6, 9, 10, 11]
    assert part["labels"].tolist() == [7, 8, 9, 2, 3, 4, 5]
    assert part["response_ids"].tolist() == [0, 0, 1, 3, 5, 5, 5]
    assert batch["num_tokens"] == 13
