"""A run's student and its responses on the Hugging Face Hub, once all rounds are done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.data_types import dtype_name
from pad_fast.pipeline.publish.dataset_card import write_dataset
from pad_fast.pipeline.run import RunContext

# Settings of this machine, and the state of a training that is over.
KEPT_HERE = ["training_args.bin", "trainer_state.json"]
WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json", *KEPT_HERE)


def push(run: RunContext, student: Path) -> list[str]:
    """Push the student, and with ``hub_dataset_id`` also the scored responses.

    Args:
        run: the run.
        student: the folder of the student that the run ends with.

    Returns:
        The addresses of what was pushed.
    """
    args = run.training
    api = HfApi(token=args.hub_token)
    made = "PAD with pad-fast"
    model = api.create_repo(str(args.hub_model_id), private=args.hub_private_repo, exist_ok=True)
    if args.hub_revision is not None:
        api.create_branch(model.repo_id, branch=args.hub_revision, exist_ok=True)
    with _to_push(run, student) as folder:
        api.upload_folder(
            repo_id=model.repo_id,
            folder_path=folder,
            revision=args.hub_revision,
            ignore_patterns=KEPT_HERE,
            commit_message=made,
        )
    if run.config.hub_dataset_id is None:
        return [str(model)]
    dataset = api.create_repo(
        run.config.hub_dataset_id,
        repo_type="dataset",
        private=args.hub_private_repo,
        exist_ok=True,
    )
    with TemporaryDirectory() as folder:
        write_dataset(run, Path(folder))
        api.upload_folder(
            repo_id=dataset.repo_id, repo_type="dataset", folder_path=folder, commit_message=made
        )
    return [str(model), str(dataset)]


@contextlib.contextmanager
def _to_push(run: RunContext, student: Path) -> Iterator[Path]:
    """The student's folder, or a copy for a while with weights in the data type ``hub_dtype``."""
    wanted: str = run.config.hub_dtype
    if wanted == "trained":
        yield student
        return
    if wanted == "base":
        wanted = dtype_name(run.student(0).loaded_dtype)
    with TemporaryDirectory() as folder:
        model = Checkpoint("student", str(student), dtype=wanted).load("cpu")
        shutil.copytree(student, folder, ignore=WEIGHTS, dirs_exist_ok=True)
        model.save_pretrained(folder)
        yield Path(folder)
