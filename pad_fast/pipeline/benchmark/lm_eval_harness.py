"""GSM8K by EleutherAI's lm-eval itself: the extra ``eval``."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pad_fast.device import default_device, is_gpu
from pad_fast.evaluation.benchmarks import gsm8k
from pad_fast.evaluation.benchmarks.gsm8k import Share
from pad_fast.evaluation.benchmarks.records import Answer, Question, json_line
from pad_fast.files.stored_rows import Row
from pad_fast.files.writing import replacing
from pad_fast.pipeline.benchmark.asking import CLOSED, Asking
from pad_fast.pipeline.checkpoint import Checkpoint

CPU_BATCH = 8


@dataclass(frozen=True)
class LmEvalRun:
    """What lm-eval made of GSM8K.

    Args:
        shares: of right answers by filter.
        errors: lm-eval's own standard errors by filter.
        answers: a response to each problem.
        version: of lm-eval.
    """

    shares: dict[str, Share]
    errors: dict[str, float]
    answers: list[Answer]
    version: str


def run_lm_eval(
    checkpoint: Checkpoint, asking: Asking, questions: Sequence[Question], folder: Path
) -> LmEvalRun:
    """Generate and score with lm-eval. Responses are cached as they come, for a killed command.

    Args:
        checkpoint: the model, whose folder or hub name lm-eval is given.
        asking: how the problems are asked.
        questions: the problems.
        folder: where the problems, the cache and lm-eval's results are.
    """
    import lm_eval

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    found: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args=_model_args(checkpoint, asking),
        tasks=[_task(asking, questions, folder)],
        num_fewshot=len(asking.shots),
        limit=len(questions),
        batch_size="auto" if is_gpu(default_device()) else CPU_BATCH,
        device=str(default_device()),
        use_cache=str(folder / "responses"),
        system_instruction=asking.system_prompt or None,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    result = found["results"][_NAME]
    samples = sorted(
        (s for s in found["samples"][_NAME] if s["filter"] == next(iter(gsm8k.FILTERS))),
        key=lambda sample: sample["doc_id"],
    )
    with replacing(folder / "samples.jsonl") as temporary:
        temporary.write_text(
            "".join(json_line(_plain(sample)) for sample in found["samples"][_NAME]), "utf-8"
        )
    answers = [
        Answer(question, (sample["resps"][0][0],), float(found["date"]))
        for question, sample in zip(questions, samples, strict=True)
    ]
    shares = {
        name: Share(round(result[f"exact_match,{name}"] * len(questions)), len(questions))
        for name in gsm8k.FILTERS
    }
    errors = {name: result[f"exact_match_stderr,{name}"] for name in gsm8k.FILTERS}
    return LmEvalRun(shares, errors, answers, importlib.metadata.version("lm-eval"))


_NAME = "gsm8k"
_SAMPLE_KEYS = ("doc_id", "doc", "target", "resps", "filtered_resps", "filter", "exact_match")


def _plain(sample: Row) -> Row:
    return {name: sample[name] for name in _SAMPLE_KEYS if name in sample}


def _model_args(checkpoint: Checkpoint, asking: Asking) -> Row:
    found: Row = {"pretrained": checkpoint.path, "dtype": checkpoint.dtype}
    if checkpoint.revision:
        found["revision"] = checkpoint.revision
    if checkpoint.attn_implementation:
        found["attn_implementation"] = checkpoint.attn_implementation
    if checkpoint.template_kwargs:
        found["chat_template_args"] = checkpoint.template_kwargs
    if asking.strip_thinking:
        found["think_end_token"] = CLOSED
    return found


def _task(asking: Asking, questions: Sequence[Question], folder: Path) -> Row:
    """lm-eval's own task ``gsm8k``; on problems and examples from files if they are the user's.

    With the hub's, lm-eval draws examples for each problem as it always does, so that its numbers
    compare with published ones.
    """
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task: Row = yaml.safe_load(path.read_text(encoding="utf-8"))
    task.pop("tag", None)
    generation = {**task["generation_kwargs"], "max_gen_toks": asking.longest}
    if asking.temperature:
        generation |= {"do_sample": True, "temperature": asking.temperature}
    task |= {
        "doc_to_text": task["doc_to_text"] + asking.suffix,
        "generation_kwargs": generation,
    }
    return task if asking.from_hub else _on_files(task, asking, questions, folder)


def _on_files(task: Row, asking: Asking, questions: Sequence[Question], folder: Path) -> Row:
    """The task with problems and examples that are written into ``folder``."""
    files = {"test": _write_problems(folder / "test.jsonl", questions)}
    del task["dataset_name"]
    if asking.shots:
        files["train"] = _write_problems(folder / "train.jsonl", asking.shots)
    else:
        del task["training_split"], task["fewshot_split"]
    return {
        **task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "fewshot_config": {"sampler": "first_n"},
    }


def _write_problems(path: Path, questions: Sequence[Question]) -> str:
    rows = [{"question": q.turns[0], "answer": q.solution} for q in questions]
    with replacing(path) as temporary:
        temporary.write_text("".join(map(json_line, rows)), encoding="utf-8")
    return str(path)
