"""The baseline, sequence-level distillation: SeqKD (Kim and Rush, 2016).

The base student is trained on one greedy answer of the teacher to each prompt of the run, with the
same optimizer, for as many steps of as many prompts as all rounds together.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from pad_fast.files.own_files import read_json
from pad_fast.files.stored_rows import Row, Rows, changed, take
from pad_fast.models.layout import IGNORE
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.common_rows import common_rows
from pad_fast.pipeline.parquet_rows import iter_rows, keep_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.shards import sample_shards, unfinished
from pad_fast.pipeline.sample.teacher_answers import with_ids_of
from pad_fast.pipeline.seeds import round_seed
from pad_fast.pipeline.train.checkpoints import STATE
from pad_fast.pipeline.train.train_round import bar_title, fit, loaded, training_args
from pad_fast.pipeline.train.training_rows import count_tokens
from pad_fast.training.filled_batches import rows_of_its_own
from pad_fast.training.resumed_log import ResumableLog


def answer_rows(run: RunContext, last: int) -> Rows:
    """Each prompt of the rounds up to the last one once, with the teacher's ``prompt_ids``."""
    rows = take(run.train_rows, run.places_until(last))
    return changed(rows, partial(with_ids_of, run.teacher))


def sample_answers(run: RunContext, last: int) -> None:
    """Write the teacher's answers that the folder ``seqkd/answers`` lacks, up to the last round."""
    folder, rows = run.folder.seqkd / "answers", answer_rows(run, last)
    if run.ranks.agree(unfinished(rows, folder, run.config.shard_size)):
        seed = round_seed(run.config.seed, 0, "seqkd")
        title, ranks = "SeqKD · teacher's answers", run.workers(run.teacher)
        with run.engine(run.teacher) as teacher:
            sample_shards(
                teacher, rows, folder, run.sampler(0), seed=seed, title=title, ranks=ranks
            )
        run.engines.close()  # the training needs the memory


def steps_of(student: Path) -> int:
    """The number of steps that a student was trained for, from the state that is saved with it."""
    return int(read_json(student / STATE)["global_step"])


def train_seqkd(run: RunContext, last: int) -> None:
    """Train the student of the folder ``seqkd`` on the teacher's answers, after the last round."""
    folder, student = run.folder.seqkd, run.student(0)
    steps = sum(steps_of(run.folder.student(r)) for r in range(1, last + 1))
    seed = round_seed(run.config.seed, 0, "train")
    args = training_args(run, student, folder / "trainer", seed, max_steps=steps)
    examples = map(partial(example, student), iter_rows(folder / "answers"))
    with common_rows(run, "train", partial(keep_rows, rows=examples)) as rows:
        trainer = _AnswersTrainer(
            model=loaded(run, student, bar_title(run, run.config.rounds, "seqkd"), args.seed),
            args=args,
            train_dataset=rows,
            processing_class=student.tokenizer,
            data_collator=DataCollatorForSeq2Seq(_with_padding(student.tokenizer)),
        )
        tokens = count_tokens(rows, "input_ids")
        fit(trainer, run, student, run.config.rounds, "seqkd", folder / "student", tokens)


class _AnswersTrainer(ResumableLog):
    """Trainer on answers, which counts no row twice on several ranks."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """The tokens of the global batch, without those that fill up its last part."""
        if batch_samples:
            labels = batch_samples[-1]["labels"]
            labels[rows_of_its_own(self, len(labels)) :] = IGNORE
        return super()._get_num_items_in_batch(batch_samples, device)


def _with_padding(tokenizer: Any) -> Any:
    """The tokenizer, or a copy that pads with the end of a text where it has nothing to pad with.

    Which token pads changes no number, since none is seen.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    return padded


def example(student: Checkpoint, row: Row) -> Row:
    """The student's token ids of a prompt and the teacher's answer; the answer alone has labels."""
    prompt = student.prompt_ids(row["prompt"])
    [text], [reason] = row["completions"], row["finish_reasons"]
    answer = student.response_ids(row["prompt"], text, reason)
    if student.window is not None:
        answer = answer[: student.window - len(prompt)]
    ids = prompt + answer
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORE] * len(prompt) + answer,
    }
