"""A run's student and its responses on the Hugging Face Hub, once all rounds are done."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from pad_fast.pipeline.publish.dataset_card import write_dataset
from pad_fast.pipeline.run import RunContext

# Settings of this machine, and the state of a training that is over.
KEPT_HERE = ["training_args.bin", "trainer_state.json"]


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
    api.upload_folder(
        repo_id=model.repo_id,
        folder_path=student,
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
