"""Plans of what others do: ranks, servers, whoever gave responses; and fewer questions."""

from __future__ import annotations

import json

import pytest
from planned_runs import config_of, estimator, piece, planned


@pytest.mark.usefixtures("paper_machine")
def test_ranks_share_the_work_and_split_the_weights(world, tmp_path):
    path = config_of(world, tmp_path, shard_size=1, prompts_per_step=8)
    alone, four = estimator(path), estimator(path, "--num_processes", "4")
    split = estimator(path, "--num_processes", "4", "--accelerate_config", "fsdp2")
    for kind in ("sample", "score", "ask"):
        assert piece(four, kind).seconds == pytest.approx(piece(alone, kind).seconds / 4)
    assert (alone.case.prompts_in_step, four.case.prompts_in_step) == (8, 8)
    assert four.case.train_settings["per_device_train_batch_size"] == 2
    assert split.step().peak < four.step().peak


def test_servers_and_given_responses_are_counted(world, tmp_path):
    """A server's work is counted in questions and tokens; given responses are not sampled."""
    served = planned(config_of(world, tmp_path, teacher_server=["http://127.0.0.1:9"]))
    pieces = {one.title: one for one in served.pieces}
    asked = pieces["round 1/1 · teacher: calibrate"]
    assert (asked.seconds, asked.peak, asked.batch) == (None, None, "by its server")
    assert asked.count == 8 * 6
    assert asked.tokens > 1000
    assert pieces["round 1/1 · sample"].seconds > 0
    assert served.fits
    rows = [
        {"prompt": f"{n}+1=?", "responses": ["1", "2", "3"], "scores": [0.1, 0.2, 0.3]}
        for n in range(8)
    ]
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"prompts": None, "responses": str(given), "teacher": None, "heldout": None}
    titles = {one.title for one in planned(config_of(world, tmp_path, **changes)).pieces}
    assert "round 1/1 · train" in titles
    assert not any("· sample" in title or "teacher" in title for title in titles)


@pytest.mark.usefixtures("paper_machine")
def test_many_questions_get_a_proposal(world, tmp_path):
    path = config_of(world, tmp_path, num_generations=8, max_new_tokens=4)
    (line,) = planned(path).advice
    assert "mcq_opponents: 2 asks 16 a prompt in place of 56, mcq_weight: 0 asks none" in line
