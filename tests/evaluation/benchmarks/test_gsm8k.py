"""GSM8K is scored as lm-eval scores it, verdict by verdict."""

import json
import math
from pathlib import Path

import benchmark_files
import pytest

from pad_fast.evaluation.benchmarks import gsm8k

VERDICTS = Path(__file__).parents[1] / "lm_eval_verdicts.jsonl"


def test_verdicts_are_those_that_lm_eval_gave():
    rows = [json.loads(line) for line in VERDICTS.read_text().splitlines()][1:]
    assert len(rows) > 100
    for row in rows:
        for name in gsm8k.FILTERS:
            assert gsm8k.is_right(row["response"], row["solution"], name) == row[name][1], row


def test_shares_and_their_errors():
    pairs = [("#### 4", "2 + 2 = 4\n#### 4"), ("It is 4", "2 + 2 = 4\n#### 4"), ("5", "#### 4")]
    found = gsm8k.shares(pairs)
    assert (found["strict-match"].right, found["flexible-extract"].right) == (1, 2)
    share = found["flexible-extract"]
    # lm-eval's mean_stderr: the sample standard deviation of 1, 1, 0 over the root of 3
    mean = 2 / 3
    deviation = math.sqrt(((1 - mean) ** 2 * 2 + mean**2) / 2)
    assert share.standard_error == pytest.approx(deviation / math.sqrt(3))


def test_the_interval_is_wilsons():
    from scipy.stats import binomtest

    for right, count in ((0, 12), (3, 12), (12, 12), (659, 1319)):
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        assert gsm8k.Share(right, count).interval == pytest.approx((wanted.low, wanted.high))
    assert math.isnan(gsm8k.Share(1, 1).standard_error)


def test_a_response_ends_at_the_first_stop():
    assert gsm8k.until_stop("#### 4\n\nQuestion: more\n#### 5") == "#### 4\n\n"
    assert gsm8k.until_stop("4<|im_end|>\n5") == "4"


def test_a_solution_without_its_number(tmp_path):
    rows = [*benchmark_files.QUESTION_ROWS["gsm8k"], {"question": "1+1?", "answer": "two"}]
    path = benchmark_files.write_lines(tmp_path / "q.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"q\.jsonl: line 5: answer must end with #### and a number"
    ):
        gsm8k.read_questions(path)


def test_shots_are_turns():
    (shot,) = gsm8k.from_rows([("1", {"question": "1+1?", "answer": "2\n#### 2"})])
    assert gsm8k.shot_messages([shot]) == [
        {"role": "user", "content": "Question: 1+1?\nAnswer:"},
        {"role": "assistant", "content": "2\n#### 2"},
    ]
