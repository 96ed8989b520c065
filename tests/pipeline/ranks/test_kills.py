"""SIGKILL of either of two ranks, in each phase, under torchrun's restarts: the same end."""

from __future__ import annotations

from pathlib import Path

import launched
import pytest
import runs_in_turn
import worlds

pytestmark = [pytest.mark.slow, pytest.mark.long]

PLAIN = {"per_device_train_batch_size": 2, "validation_size": 0, "heldout_size": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.write_config(folder)
    worlds.write_prompts(folder / "train.jsonl", 10)
    return folder


def end(world: Path, folder: Path, **killed: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    config = worlds.changed_config(world, folder, output_dir=str(folder / "run"), **PLAIN)
    launched.script(2, runs_in_turn.__file__, config, restarts=3, **killed)
    return worlds.contents(folder / "run")


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> dict[str, str]:
    return end(world, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("phase", ["sample", "score", "train", "evaluate"])
def test_the_end_is_that_of_an_undisturbed_run(world, undisturbed, tmp_path, phase, rank):
    mark = tmp_path / "killed"
    killed = {"KILLED_IN": phase, "KILLED_RANK": rank, "KILLED_MARK": str(mark)}
    found = end(world, tmp_path / "run", **killed)
    assert mark.exists()
    assert found == undisturbed
