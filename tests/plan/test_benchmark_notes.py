"""A plan says what benchmarks ask, whose time it does not know."""

from __future__ import annotations

import json

from benchmark_files import write_questions
from worlds import run_config

from pad_fast.plan.benchmark_notes import benchmark_notes


def test_benchmarks_are_counted_and_said_not_to_be_in_the_times(world, tmp_path):
    files = {name: str(write_questions(tmp_path, name)) for name in ("mt_bench", "gsm8k")}
    config = run_config(
        world,
        rounds=2,
        benchmarks=["mt_bench", "gsm8k", "alpaca_eval"],
        benchmark_questions=json.dumps(files),
        benchmark_max_new_tokens=10,
        benchmark_limit=2,
    )
    assert benchmark_notes(config) == [
        "mt_bench is not in these times: 4 models answer 2 questions in 4 turns of at most "
        "10 tokens, 160 in all; the judge compares 3 of them with the base student",
        "gsm8k is not in these times: 4 models answer 2 questions in 2 turns of at most "
        "10 tokens, 80 in all",
        "alpaca_eval is not in these times: 4 models answer it, and its questions are fetched "
        "when the run begins",
    ]
    assert benchmark_notes(run_config(world)) == []
