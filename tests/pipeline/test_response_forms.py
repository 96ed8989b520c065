"""The forms in which other projects keep responses, and the messages about those that are wrong."""

from __future__ import annotations

import math

import pytest

from pad_fast.pipeline.response_forms import given_in, holds_responses

USER, ANSWER = {"role": "user", "content": "2+2=?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}


def ultrafeedback(*answers: dict) -> dict:
    """A row as openbmb/UltraFeedback has it."""
    return {
        "source": "evol_instruct",
        "instruction": "2+2=?",
        "models": ["a", "b"],
        "completions": [
            {"model": "a", "principle": "honesty", "critique": "Good.", **answer}
            for answer in answers
        ],
        "correct_answers": ["4"],
        "incorrect_answers": ["5"],
    }


def annotations(*ratings: str) -> dict:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        name: {"Rating": rating, "Rationale": "Because."}
        for name, rating in zip(names, ratings, strict=True)
    }


@pytest.mark.parametrize("texts", ["completions", "responses", "generations", "candidates"])
@pytest.mark.parametrize("scores", ["teacher_rewards", "rewards", "scores", "ratings"])
def test_lists_of_texts_and_scores(texts, scores):
    given = given_in({"prompt": "2+2=?", texts: ["4", "5"], scores: [1.5, None], "answer": "4"})
    assert (given.texts, given.scores, given.reasons) == (["4", "5"], [1.5, None], ["stop"] * 2)
    assert given.prompt == {"prompt": "2+2=?", "answer": "4"}


def test_messages_are_texts_and_scores_may_be_missing():
    given = given_in({"prompt": [USER], "completions": [[ANSWER], WRONG]})
    assert (given.texts, given.scores) == (["4", "5"], None)


def test_numbers_as_files_write_them():
    row = {"prompt": "p", "completions": list("abcdef")}
    given = given_in({**row, "scores": [2, "3.5", "N/A", "", math.nan, -0.5]})
    assert given.scores == [2.0, 3.5, None, None, None, -0.5]


def test_ultrafeedback_by_its_overall_score():
    given = given_in(
        ultrafeedback(
            {"response": "4", "overall_score": 8.5, "annotations": annotations(*"1111")},
            {"response": "5", "overall_score": 2.0, "annotations": annotations(*"5555")},
        )
    )
    assert (given.texts, given.scores) == (["4", "5"], [8.5, 2.0])
    assert given.prompt["instruction"] == "2+2=?"


def test_ultrafeedback_by_its_ratings():
    """Some ratings are N/A; a response without any has no score."""
    given = given_in(
        ultrafeedback(
            {"response": "4", "annotations": annotations("5", "4", "N/A", "3")},
            {"response": "5", "fine-grained_score": 1.25, "annotations": annotations(*"5555")},
            {"response": "6", "annotations": annotations("N/A", "N/A", "N/A", "N/A")},
        )
    )
    assert given.scores == [4.0, 1.25, None]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2=?", "chosen": "4", "rejected": "5"}, "2+2=?"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, [USER]),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}, [USER]),
        ({"prompt": "2+2=?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, [USER]),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2=?\n\nAssistant: 4",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2=?\n\nAssistant: 5",
            },
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                USER,
            ],
        ),
    ],
    ids=["texts", "implicit prompt", "messages", "both", "HH-RLHF"],
)
def test_pairs(row, prompt):
    given = given_in({**row, "messages": [USER, ANSWER]})
    assert (given.texts, given.scores, given.pair) == (["4", "5"], None, True)
    assert given.prompt == {"prompt": prompt}


@pytest.mark.parametrize(
    "names",
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
    ],
)
def test_pairs_with_scores(names):
    row = {"prompt": "p", "chosen": "4", "rejected": "5", names[0]: 8.0, names[1]: "6"}
    assert given_in(row).scores == [8.0, 6.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "text": "4"}, "no responses: needs one of the columns completions, "),
        ({"completions": "4"}, "completions: must be a list, got '4'"),
        ({"completions": ["4", 5]}, r"completions\[1\]: must be a text or one assistant message"),
        ({"completions": ["4", "5"], "scores": [1.0]}, "scores: must hold one value for each of t"),
        ({"completions": ["4", "5"], "scores": ["good", 1]}, r"scores\[0\]: must be a number, or"),
        ({"completions": ["4", "5"], "scores": [True, 1]}, r"scores\[0\]: must be a number"),
        ({"completions": ["4", "5"], "scores": [1, math.inf]}, r"scores\[1\]: must be finite in"),
        ({"completions": ["4"], "finish_reasons": ["done"]}, "finish_reasons: must be stop or"),
        ({"completions": ["4"], "finish_reasons": []}, None),
        ({"chosen": [USER], "rejected": [USER]}, "chosen: must be a text, or messages of which"),
        ({"chosen": [USER, ANSWER], "rejected": [WRONG]}, "must answer one prompt, and begin diff"),
        ({"completions": [{"model": "a"}]}, r"completions\[0\]: must be a text"),
    ],
)
def test_what_is_wrong_is_named(row, message):
    if message is None:
        assert given_in(row).reasons == ["stop"]
        return
    with pytest.raises(ValueError, match=message):
        given_in(row)


def test_rows_of_prompts_hold_no_responses():
    assert not holds_responses({"prompt": "p", "chosen": None})
    assert not holds_responses("text")
    assert holds_responses({"prompt": "p", "chosen": "4"})
