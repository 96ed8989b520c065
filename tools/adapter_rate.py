"""How far a few steps move a student's rewards, in full training and with a LoRA adapter.

    pad-fast sample CONFIG.yaml && pad-fast score CONFIG.yaml
    python tools/adapter_rate.py RUN [--steps 60] [--rates 8e-7 8e-6 8e-5]

RUN is the folder of a run whose first round is scored, of the tiny world for the numbers in
docs/scale.md. Each training begins with the base student and reads the same prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from pad_fast.models.scoring import score_responses
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.adapter import trainable
from pad_fast.pipeline.train.scored_rows import AT_START, COLUMNS
from pad_fast.progress.bar import quiet_libraries
from pad_fast.training.trainer import PADTrainer


def moved(
    run: RunContext, rows: Sequence[dict[str, Any]], *, use_peft: bool, rate: float, steps: int
) -> float:
    """The mean absolute change of the rewards of all responses, in nats a token."""
    config = dataclasses.replace(run.config, use_peft=use_peft)
    names = [name for name in COLUMNS if name in rows[0]]
    data = Dataset.from_list([{name: row[name] for name in names} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings.pad_config(
            Path(folder),
            learning_rate=rate,
            max_steps=steps,
            save_strategy="no",
            report_to="none",
            push_to_hub=False,
        )
        trainer = PADTrainer(
            model=trainable(config, run.student(0), args.seed),
            args=args,
            train_dataset=data,
            processing_class=run.student(0).tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    prompts, responses = ([row[name] for row in rows] for name in COLUMNS[:2])
    own = {"normalize": args.normalize, "temperature": args.temperature}
    after = score_responses(trainer.model.eval(), prompts, responses, **own)
    before = [row[AT_START] for row in rows]
    pairs = zip(np.concatenate(before), np.concatenate(after), strict=True)
    changes = [abs(new - old) for old, new in pairs if old is not None]
    return float(np.mean(changes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rates", type=float, nargs="+", default=[8e-7, 8e-6, 8e-5])
    given = parser.parse_args(arguments)
    quiet_libraries()
    disable_progress_bar()
    run = RunContext(parse_settings("run", [str(given.run), "--disable_tqdm", "true"]))
    rows = read_rows(run.folder.round(1) / "scores")
    print(f"nats a token after {given.steps} steps, on {len(rows)} prompts")
    print(f"| learning rate | all weights | LoRA, rank {run.config.lora_r} |")
    print("| ---: | ---: | ---: |")
    for rate in given.rates:
        found = [
            moved(run, rows, use_peft=adapter, rate=rate, steps=given.steps)
            for adapter in (False, True)
        ]
        print(f"| {rate:g} | {found[0]:.2g} | {found[1]:.2g} |", flush=True)


if __name__ == "__main__":
    main()
