"""What the pictures show: which prompts, which steps, and which probabilities."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_runs import make_run, write_rows

from pad_fast.report.page import choose
from pad_fast.report.pictures import first_place
from pad_fast.report.plots import global_steps, running_mean
from pad_fast.report.run_records import read_run


def test_shown_prompts_run_from_the_largest_fall_to_the_largest_rise(run_dir: Path) -> None:
    groups = read_run(run_dir).groups
    changes = [group.loss_after - group.loss_before for group in groups]
    shown = [group.loss_after - group.loss_before for group in choose(groups)]
    assert len(shown) == 6
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (min(changes), max(changes))
    assert len(choose(groups[:2])) == 2
    assert choose([]) == []


def test_steps_go_on_through_the_rounds() -> None:
    again = [{"round": r, "step": s} for r in (1, 2, 3) for s in (10, 20)]
    assert global_steps(again) == ([10, 20, 30, 40, 50, 60], [0, 20, 40])
    on = [{"round": 1, "step": 10}, {"round": 1, "step": 20}, {"round": 2, "step": 30}]
    assert global_steps(on) == ([10, 20, 30], [0, 20])


def test_the_running_mean_is_centred_and_keeps_a_line() -> None:
    line = np.arange(9.0)
    np.testing.assert_allclose(running_mean(line, 3)[1:-1], line[1:-1])
    np.testing.assert_allclose(running_mean(line, 1), line)
    np.testing.assert_allclose(running_mean(line, 4)[0], line[:3].mean())


def test_first_place_is_plackett_luces() -> None:
    reward = np.array([-1.0, -2.0, -700.0])
    found = first_place(10.0 * reward)
    assert found.sum() == pytest.approx(1.0)
    assert found[1] / found[0] == pytest.approx(math.exp(-10.0))
    # Rewards this far below 0 would underflow in a plain exp.
    np.testing.assert_allclose(first_place(np.array([-7000.0, -7000.0])), 0.5)


@pytest.mark.parametrize(
    ("config", "count"), [({"repeats": "once"}, 3), ({"repeats": "each"}, 4), ({}, 4)]
)
def test_equal_responses_are_shown_as_often_as_they_count(
    tmp_path: Path, config: dict[str, str], count: int
) -> None:
    run = make_run(tmp_path / "run", **config)
    path = run / "heldout" / "groups" / "part-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["completion_ids"][2] = rows[0]["completion_ids"][1]
    rows[0]["teacher_rewards"] = [-4.0, -1.0, -2.0, -3.0]
    write_rows(path, rows)
    first, *_, masked = read_run(run).groups[:4]
    kept = [0, 1, 3] if count == 3 else [0, 1, 2, 3]
    assert first.completions == [rows[0]["completions"][i] for i in kept]
    assert first.teacher.tolist() == ([-4.0, -1.5, -3.0] if count == 3 else [-4.0, -1, -2, -3])
    assert len(first.before) == len(first.after) == len(first.finish_reasons) == count
    assert [math.isnan(reward) for reward in masked.teacher] == [False, True, False, False]
