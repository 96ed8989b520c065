"""Which two responses are a prompt's pair, where the best or the worst reward is tied."""

import math

import pytest
from students import RENAMED, make_args, make_model

from pad_fast.models.scoring import score_responses
from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


def row_of(rewards):
    ids = [[i, i + 1] for i in range(2, 2 + len(rewards))]
    return {"prompt_ids": [1], "completion_ids": ids, "teacher_rewards": rewards}


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [
        ([2.0, 1.0, 3.0, 3.0, 1.0], [2, 4]),
        ([None, 3.0, 1.0, 1.0, None], [1, 3]),
        ([2.0, 2.0, 2.0], [0]),  # no pair
        ([None, None], []),
    ],
)
def test_a_pair_is_the_first_and_the_last_of_the_teachers_ranking(rewards, kept):
    for train_on, wanted in (("pair", kept), ("best", kept[:1])):
        found = RowReader(train_on=train_on)(row_of(rewards), 0)["teacher_rewards"]
        assert [i for i, reward in enumerate(found) if reward is not None] == wanted


@pytest.mark.parametrize("train_on", ["all", "pair"])
def test_the_log_is_of_the_pair_that_is_trained(tmp_path, train_on):
    row = row_of([1.0, None, 3.0, 3.0, 1.0, 2.0])
    args = make_args(tmp_path, loss="simpo", beta=2.0, train_on=train_on)
    found = PADTrainer(make_model(), args, [row], [row]).evaluate()
    (group,) = score_responses(make_model(), [row["prompt_ids"]], [row["completion_ids"]])
    chosen, rejected = group[2], group[4]
    assert found["eval_rewards/chosen"] == pytest.approx(chosen, rel=1e-5)
    assert found["eval_rewards/rejected"] == pytest.approx(rejected, rel=1e-5)
    loss = math.log(1 + math.exp(-2.0 * (chosen - rejected)))
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
