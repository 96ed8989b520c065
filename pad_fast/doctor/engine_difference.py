"""The same responses scored by a run's servers and by this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pad_fast.device import all_memory, default_device
from pad_fast.evaluation.evaluated_model import Rewards
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.batch_sizes import held_bytes
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.chosen_batches import scores_here
from pad_fast.pipeline.findings import engines
from pad_fast.pipeline.findings.finding import Finding
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.teacher_view import teacher_view
from pad_fast.pipeline.server_settings import servers_of

COMPARED = 16  # rows


def of_engines(run: RunContext, rows: Sequence[Row]) -> list[Finding]:
    """A finding for each model that servers run.

    Args:
        run: its servers are not needed any more, and are ended.
        rows: sampled and scored by them.
    """
    run.engines.close()
    rows, asked, found = rows[:COMPARED], servers_of(run.config), []
    if any(asked["student"]):
        found.append(_student(run, rows))
    scored = rows[0]["teacher_logps"] is not None  # not so where scores are given
    if any(asked["teacher"]) and run.config.teacher and scored:
        found.append(_teacher(run, rows))
    return found


def _student(run: RunContext, rows: Sequence[Row]) -> Finding:
    prompts, responses = ([row[c] for row in rows] for c in ("prompt_ids", "completion_ids"))
    lengths = [[len(ids) for ids in group] for group in responses]
    served: Rewards = [row["student_rewards"] for row in rows]
    student = run.student(0)
    engine = TransformersEngine(student, scores_here(run, student))
    own: Rewards = engine.rewards(prompts, responses)
    engine.close()
    if run.scores.normalize == "sum":
        served, own = (engines.per_token(group, lengths) for group in (served, own))
    return engines.difference("student", rows[0]["sampled_by"], served, own)


def _teacher(run: RunContext, rows: Sequence[Row]) -> Finding:
    teacher, identity = run.teacher, rows[0]["scored_by"]
    if why := _too_large(teacher):
        return engines.not_compared("teacher", identity, why)
    same = teacher.same_tokenizer(run.student(0))
    views = [teacher_view(teacher, row, reuse_ids=same) for row in rows]
    engine = TransformersEngine(teacher, scores_here(run, teacher))
    found = engine.logps(
        [view.prompt for view in views],
        [[view.responses[i] for i in view.readable] for view in views],
    )
    engine.close()
    own = [view.for_all(logps) for view, logps in zip(views, found, strict=True)]
    lengths = [row["teacher_num_tokens"] for row in rows]
    served = [row["teacher_logps"] for row in rows]
    return engines.difference(
        "teacher", identity, engines.per_token(served, lengths), engines.per_token(own, lengths)
    )


def _too_large(teacher: Checkpoint) -> str:
    """Why this process cannot run the teacher; empty if it can."""
    if not Path(teacher.path).is_dir() or not teacher.has_weights():
        return "its weights are not in a folder of this machine"
    held = held_bytes(teacher, teacher.loaded_dtype)
    memory = all_memory(default_device())
    if held > 0.8 * memory:
        return f"its {held / 2**30:.0f} GiB do not fit into {memory / 2**30:.0f} GiB"
    return ""
