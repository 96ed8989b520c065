"""Multiple-choice questions to the teacher, and the rewards that they calibrate."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest
import worlds

from pad_fast.pipeline import multiple_choice
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.multiple_choice import Style
from pad_fast.pipeline.score.asked_questions import configured_questions


def test_question_wording():
    assert multiple_choice.choice_question("2+2?", ["4", "{options} 5"]) == (
        "Choose the best answer to the request.\n\nRequest: 2+2?\n\nA. 4\nB. {options} 5\n\n"
        "Which answer is best, A or B?\n\nAnswer:"
    )
    with pytest.raises(ValueError, match="between 2 and 26"):
        multiple_choice.choice_question("x", ["a"] * 27)
    with pytest.raises(ValueError, match="template"):
        multiple_choice.choice_question("x", ["a", "b"], "{query}")
    assert multiple_choice.choice_question("x", "abc", "{query} {options} {letters}?") == (
        "x A. a\nB. b\nC. c A, B or C?"
    )


@pytest.mark.parametrize("n", [2, 3, 8])
def test_small_groups_ask_every_pair_in_both_orders(n):
    asked = multiple_choice.questions(n, "pairwise", every_place=True)
    assert sorted(asked) == sorted(itertools.permutations(range(n), 2))
    released = multiple_choice.questions(n, "pairwise", every_place=False)
    assert sorted(released) == sorted(itertools.combinations(range(n), 2))


@pytest.mark.parametrize("n", [9, 10, 17, 64])
def test_large_groups_ask_a_balanced_part(n):
    asked = multiple_choice.questions(n, "pairwise", every_place=False)
    assert len(asked) == len(set(asked)) == 4 * n
    counts = [sum(i in pair for pair in asked) for i in range(n)]
    assert counts == [8] * n
    assert all(a < b for a, b in asked)


@pytest.mark.parametrize(
    ("n", "opponents"), [(4, 2), (5, 2), (8, 2), (8, 6), (9, 4), (3, 2), (4, 6)]
)
def test_opponents_choose_a_balanced_part(n, opponents):
    asked = multiple_choice.questions(n, "pairwise", every_place=False, opponents=opponents)
    assert len(asked) == len(set(asked))
    assert [sum(i in pair for pair in asked) for i in range(n)] == [min(opponents, n - 1)] * n


def test_listwise_questions_and_too_few_responses():
    assert multiple_choice.questions(4, "listwise", every_place=True) == [
        (0, 1, 2, 3),
        (1, 2, 3, 0),
        (2, 3, 0, 1),
        (3, 0, 1, 2),
    ]
    assert multiple_choice.questions(12, "listwise", every_place=False) == [tuple(range(12))]
    for style in multiple_choice.STYLES:
        assert multiple_choice.questions(1, style, every_place=True) == []


@pytest.mark.parametrize("style", ["pairwise", "listwise"])
@pytest.mark.parametrize("opponents", [None, 2, 6])
def test_a_fondness_for_places_gives_every_response_the_same(style, opponents):
    """Whatever a teacher that does not read likes: A, the last, the middle, at random."""
    rng = random.Random(0)
    for n in (*range(2, 28), 40, 64):
        asked = multiple_choice.questions(n, style, every_place=True, opponents=opponents)
        size = max(map(len, asked))
        always_first = [0.0, *[-math.inf] * (size - 1)]
        for fondness in (always_first, [rng.gauss(0, 3) for _ in range(size)]):
            probs = [
                multiple_choice.letter_probs(fondness[: len(shown)], [[0]] * len(shown), True)[0]
                for shown in asked
            ]
            chosen = multiple_choice.choice_probs(n, asked, probs)
            assert max(chosen) - min(chosen) < 1e-12, (n, fondness)
            assert chosen[0] == pytest.approx(1 / size)


@pytest.mark.parametrize("style", ["pairwise", "listwise"])
def test_every_response_stands_in_every_place_equally_often(style):
    for n, opponents in itertools.product((*range(2, 28), 64), (None, 2, 4, 24)):
        asked = multiple_choice.questions(n, style, every_place=True, opponents=opponents)
        assert all(len(set(shown)) == len(shown) for shown in asked)
        assert len(asked) == len(set(asked))
        for place in range(max(map(len, asked))):
            counts = [sum(shown[place] == i for shown in asked) for i in range(n)]
            assert len(set(counts)) == 1, (n, opponents, place)
    many = multiple_choice.questions(64, "listwise", every_place=True)
    assert (len(many), {len(shown) for shown in many}) == (64, {8})


def test_fondness_for_a_letter_cancels():
    """With P(A) = sigmoid(difference + 3), equal qualities still tie over both orders."""
    quality = [0.0, 0.0, 1.0]
    asked = multiple_choice.questions(3, "pairwise", every_place=True)
    forms = [[0], [1]]
    logits = [(quality[a] + 3.0, quality[b]) for a, b in asked]
    probs = [multiple_choice.letter_probs(pair, forms, renormalize=True)[0] for pair in logits]
    chosen = multiple_choice.choice_probs(3, asked, probs)
    assert chosen[0] == pytest.approx(chosen[1])
    assert chosen[2] > chosen[0]
    assert sum(chosen) == pytest.approx(1.5)  # each of the three pairs adds one
    one_order = multiple_choice.questions(3, "pairwise", every_place=False)
    biased = multiple_choice.choice_probs(
        3, one_order, [p for p, shown in zip(probs, asked, strict=True) if shown in one_order]
    )
    assert biased[0] - biased[1] > 0.3


def test_letter_probs_sum_over_forms_and_survive_underflow():
    probs, mass = multiple_choice.letter_probs(
        [math.log(0.1), math.log(0.2), math.log(0.1)], [[7, 8], [9]], renormalize=False
    )
    assert probs == pytest.approx([0.3, 0.1])
    assert mass == pytest.approx(0.4)
    tiny, _ = multiple_choice.letter_probs([-2000.0, -2001.0], [[7], [9]], renormalize=True)
    assert tiny == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])


def test_the_default_question_is_the_best_of_the_record():
    """The record of tools/choose_question.py on a real model: over 100 pairs for each wording."""
    record = Path(__file__).parents[2] / "tools" / "choose_question.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert min(row["own_pairs"] + row["planted_pairs"] for row in rows) >= 100
    best = max(rows, key=lambda row: row["letter_mass"] - abs(row["position_bias"]))
    assert best["template"] == multiple_choice.DEFAULT_TEMPLATE


def test_letters_need_tokens_of_their_own():
    assert multiple_choice.letter_token_ids(worlds.character_tokenizer(), 2) == [
        [32],
        [33],
    ]  # the tokenizer lists 6 special tokens and a to z before them
    without = worlds.character_tokenizer([c for c in worlds.CHARACTERS if c != "B"])
    with pytest.raises(ValueError, match="letter B"):
        multiple_choice.letter_token_ids(without, 2)


def test_a_style_is_an_entry_of_the_table(monkeypatch, tmp_path):
    """A new style can be chosen and asked without a change elsewhere."""
    first_two = Style("the first two responses", lambda n, opponents: [(0, 1)])
    monkeypatch.setitem(multiple_choice.STYLES, "first_two", first_two)
    words = ["--student", "s", "--teacher", "t", "--prompts", "p", "--output_dir", str(tmp_path)]
    config = parse_settings("run", [*words, "--mcq_style", "first_two"]).run
    assert (config.asks, config.letters) == (True, 2)
    assert configured_questions(config, 4) == [(0, 1), (1, 0)]
    with pytest.raises(ValueError, match=r"mcq_style: must be one of pairwise, .*first_two"):
        RunConfig(student="s", teacher="t", prompts="p", output_dir="o", mcq_style="pairs")
