"""Pairs, prompts that are too long, and rows from a stream."""

from __future__ import annotations

import logging
import re

import pytest
from datasets import Dataset
from students import GOOD, PLAIN, RENAMED, assert_same, make_args, make_model, make_rows, parameters
from torch.utils import data

from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.prepared_rows import LOOKED_AT, PreparedStream, prepare_dataset
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED
TURN = "\n\nHuman: one\n\nAssistant:"
USER = {"role": "user", "content": "one"}
TWO, THREE = ({"role": "assistant", "content": text} for text in ("two", "three"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "one", "chosen": "two", "rejected": "three"},
        {"prompt": [USER], "chosen": [TWO], "rejected": [THREE]},
        {"prompt": [USER], "chosen": TWO, "rejected": THREE},
        {"prompt": "one", "chosen": [USER, TWO], "rejected": [USER, THREE]},
        {"chosen": [USER, TWO], "rejected": [USER, THREE]},
        {
            "chosen": "\n\nHuman: one\n\nAssistant: two",
            "rejected": "\n\nHuman: one\n\nAssistant: three",
        },
    ],
)
def test_a_pair_is_a_group_of_two(row, tokenizer):
    plain = row.get("prompt") == "one" and row["chosen"] == "two"
    same = {"prompt": "one" if plain else [USER], "completions": ["two", "three"]}
    read = RowReader(tokenizer)
    wanted = read({**same, "teacher_rewards": [1.0, 0.0]}, 0)
    assert read(row, 0) == {**wanted, "num_by_rank": 1}
    scored = {**row, "score_chosen": 8, "score_rejected": "2.5"}
    assert read(scored, 0) == read({**same, "teacher_rewards": [8.0, 2.5]}, 0)
    own = {**scored, "rewards": [0.5, -1.0]}  # the teacher's come before other scores
    assert read(own, 0)["teacher_rewards"] == [0.5, -1.0]
    missing = {**row, "chosen_rating": 3.0, "rejected_rating": None}
    assert read(missing, 0)["teacher_rewards"] == [3.0, None]


def test_pairs_that_are_refused_and_counted(tokenizer, caplog):
    read = RowReader(tokenizer)
    for row, message in (
        ({"chosen": [USER, TWO], "rejected": [THREE]}, "row 3: chosen and rejected: must answer"),
        ({"chosen": [USER], "rejected": [THREE]}, "row 3: chosen: must be a text, or messages of"),
        ({"chosen": "two", "rejected": "three"}, "row 3: a row must have prompt or prompt_ids"),
        ({"prompt": "one", "chosen": "two"}, "row 3: a row must have completions"),
        (
            {"prompt": "one", "chosen": "two", "rejected": "x", "score_chosen": "best"},
            "row 3: score_chosen: must be a number",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(row, 3)
    pair = {"prompt": "one", "chosen": "two", "rejected": "three"}
    with caplog.at_level(logging.INFO, "pad_fast"):
        prepare_dataset([pair, {**pair, "score_chosen": 2, "score_rejected": 1}, pair], read)
    assert "2 pairs have no scores; chosen counts 1 and rejected 0" in caplog.text


def long_row(tokens: int) -> dict:
    return {**GOOD, "prompt_ids": [1, *range(5, 4 + tokens)]}


def test_long_prompts_are_dropped_or_cut(tokenizer, caplog):
    rows = [long_row(3), long_row(6), long_row(4)]
    with pytest.raises(ValueError, match=r"row 1: .* at most max_prompt_length=4 .*6 t"):
        prepare_dataset(rows, RowReader(tokenizer, max_prompt_length=4))
    dropped = prepare_dataset(rows, RowReader(max_prompt_length=4, long_prompts="drop"))
    assert dropped["prompt_ids"] == [long_row(3)["prompt_ids"], long_row(4)["prompt_ids"]]
    assert "1 of 3 prompts are too long and drop their rows" in caplog.text
    assert "live responses" not in caplog.text
    cut = RowReader(tokenizer, max_prompt_length=4, max_length=6, long_prompts="cut")
    assert prepare_dataset(rows, cut)["prompt_ids"][1] == [1, 7, 8, 9]  # its BOS, and its end
    assert "1 of 3 prompts are too long and are cut at their start" in caplog.text
    assert RowReader(max_prompt_length=4, long_prompts="cut")(rows[1], 0)["prompt_ids"] == [
        6,
        7,
        8,
        9,
    ]
    room = RowReader(max_length=4, long_prompts="cut")(rows[1], 0)  # one token for a response
    assert (len(room["prompt_ids"]), room["completion_ids"]) == (3, [[3], [4]])
    with pytest.raises(ValueError, match="none in 1 rows, 1 of which have prompts that are too"):
        prepare_dataset(rows[1:2], RowReader(max_length=4, long_prompts="drop"))


def test_the_trainer_takes_the_options_of_a_run(tmp_path):
    with pytest.raises(ValueError, match="long_prompts must be one of error, drop, cut, got"):
        make_args(tmp_path, long_prompts="trim")
    args = make_args(tmp_path, long_prompts="drop", max_prompt_length=3)
    rows = PADTrainer(make_model(), args, [long_row(3), long_row(6)]).train_dataset
    assert rows["prompt_ids"] == [long_row(3)["prompt_ids"]]


class Rows(data.IterableDataset):
    """A stream of torch's."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class InOrder(PADTrainer):
    """Takes the rows of a dataset in their order, as those of a stream are taken."""

    def _get_train_sampler(self, *_):
        return data.SequentialSampler(self.train_dataset)


ONE_ALIVE = {**GOOD, "teacher_rewards": [1.0, None]}


@pytest.mark.parametrize("kind", [Rows, lambda rows: Dataset.from_list(rows).to_iterable_dataset()])
def test_a_stream_trains_as_its_rows_do(kind, tmp_path):
    rows = make_rows(12, seed=2)
    given = [*rows[:5], ONE_ALIVE, *rows[5:]]
    options = {**PLAIN, "num_train_epochs": 1, "per_device_train_batch_size": 2, "max_steps": 8}
    found = []
    for dataset in (given, kind(given)):
        trainer = InOrder(make_model(), make_args(tmp_path, **options), dataset)
        trainer.train()
        assert trainer.state.global_step == 8  # a pass has 6
        found.append(parameters(trainer.model))
    assert_same(found[1], found[0])


def test_what_a_stream_has_to_have(tmp_path):
    stream = Rows(make_rows(4))
    with pytest.raises(ValueError, match="max_steps must be given for a train_dataset without"):
        PADTrainer(make_model(), make_args(tmp_path), stream)
    args = make_args(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=r"eval_dataset must have a length, got Rows; take a"):
        PADTrainer(make_model(), args, stream, stream)
    with pytest.raises(ValueError, match="first 1 rows of the train_dataset must have a row with"):
        PADTrainer(make_model(), args, Rows([ONE_ALIVE]))
    with pytest.raises(ValueError, match="train_dataset must be a dataset, got the text 'my/data'"):
        PADTrainer(make_model(), args, "my/data")
    anchored = make_args(tmp_path, max_steps=2, loss="dpo", anchor="start")
    with pytest.raises(ValueError, match="anchor=start needs anchor_rewards in each row of"):
        PADTrainer(make_model(), anchored, stream)


def test_the_start_of_a_stream_chooses_teacher_beta(tmp_path):
    far = [{**GOOD, "teacher_rewards": [0.0, 10.0]}] * LOOKED_AT
    stream = Rows([*far, {**GOOD, "teacher_rewards": [0.0, 1e6]}])
    trainer = PADTrainer(make_model(), make_args(tmp_path, max_steps=1, beta=10.0), stream)
    assert trainer.args.teacher_beta == 1.0
    assert len(trainer.train_dataset.first) == LOOKED_AT


def test_a_stream_is_shuffled_anew_in_each_pass():
    source = Dataset.from_list(make_rows(9)).to_iterable_dataset().shuffle(seed=1, buffer_size=9)
    stream = PreparedStream(source, RowReader())

    def order() -> list[list[int]]:
        return [row["prompt_ids"] for row in stream]

    first = order()
    stream.set_epoch(1)
    assert order() != first
    assert sorted(order()) == sorted(first)


def test_streams_on_several_ranks_read_the_same_rows(tmp_path, monkeypatch):
    """Each rank takes its part of a batch, which accelerate would send to others otherwise."""
    from pad_fast.training.stream_args import for_stream

    args = make_args(tmp_path, max_steps=3)
    monkeypatch.setattr(type(args), "world_size", 2)
    found = for_stream(args)
    assert type(found.accelerator_config) is type(args.accelerator_config)
    assert (found.accelerator_config.dispatch_batches, found.dataloader_drop_last) == (False, True)
    assert (args.accelerator_config.dispatch_batches, args.dataloader_drop_last) == (None, False)
