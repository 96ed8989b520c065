"""The rows that a training reads of a finished run's scores."""

from __future__ import annotations

import torch
from students import make_args
from transformers import AutoModelForCausalLM

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.scored_rows import keep_scored_rows
from pad_fast.training.trainer import PADTrainer


def test_cut_responses_are_left_out_of_training(finished, tmp_path):
    """They change neither the live responses nor the tokens that a training reads."""
    run = RunContext(parse_settings("run", [str(finished / "config.yaml")]))
    scored = read_rows(run.folder.round(1) / "scores")
    reasons = [["stop", "length", "stop"], ["length", "stop", "stop"]] * (len(scored) // 2)
    scores = tmp_path / "scores"
    rows = [{**row, "finish_reasons": own} for row, own in zip(scored, reasons, strict=True)]
    write_rows(scores / "part-00000.parquet", rows)
    student = AutoModelForCausalLM.from_pretrained(finished / "student")
    found = {}
    for masked in (False, True):
        args = make_args(tmp_path, mask_truncated_completions=masked)
        args.per_device_eval_batch_size = len(reasons)
        kept = [*keep_scored_rows(run.files, run, scores, args)]
        [found[masked]] = PADTrainer(student, args, kept, eval_dataset=kept).get_eval_dataloader()
    ended = torch.tensor([[reason == "stop" for reason in group] for group in reasons])
    assert found[False]["mask"].all()
    assert torch.equal(found[True]["mask"], ended)
    read = {
        masked: sum(part["labels"].numel() for part in batch["slices"])
        for masked, batch in found.items()
    }
    cut = [
        len(ids)
        for row in rows
        for ids, reason in zip(row["completion_ids"], row["finish_reasons"], strict=True)
        if reason == "length"
    ]
    assert read[False] - read[True] == sum(cut) > 0
