"""The run: its folder, its rounds, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pad_fast.pipeline.option import option


@dataclass
class RunOptions:
    """The run: its folder, its rounds, and what it shows."""

    output_dir: str | None = option(
        None, "Run folder. Default: runs/ and the YAML file's name; without one, the student's."
    )
    rounds: int = option(1, "Rounds; each samples from the latest student.")
    prompts_per_round: int | None = option(None, "Prompts in a round. Default: all of them.")
    shard_size: int = option(
        256, "Prompts in a shard; a killed run loses at most the work on one shard."
    )
    seed: int = option(42, "Seed, from which all others are derived.")
    load_best_round: bool = option(
        True, "Name the round with the best validation as the run's student, not the last one."
    )
    patience: int = option(
        2, "Stop after so many rounds in a row without a better validation; 0 does all rounds."
    )
    baseline: Literal["none", "seqkd"] = option(
        "none",
        "seqkd: also train a student on one greedy answer of the teacher to each prompt, for as "
        "many steps.",
    )
    compare: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON object of methods to compare with the run's own, each a name with its "
            'loss and learning rate, such as {"DPO": {"loss": "dpo", "anchor": "start"}}: each '
            "trains the base student anew on the same scores, for as many steps."
        },
    )
    score_cache: str | None = option(
        None,
        "Folder of the teacher's scores that many runs share, also at the same time: what another "
        "run asked of the same weights is not asked again. Default: the run's own folder.",
    )
    hub_dataset_id: str | None = option(
        None,
        "With push_to_hub, the name on the Hub of a dataset with the scored responses, such as "
        "me/responses. Default: responses are not pushed.",
    )
    hub_dtype: Literal["trained", "base", "float32", "bfloat16", "float16"] = option(
        "trained",
        "With push_to_hub, the data type of the weights that are pushed. trained: train_dtype, as "
        "they are in the run folder; base: that in which the base student samples.",
    )
    accept_environment: bool = option(
        False,
        "Go on with a run folder that was begun with other versions or variables of the "
        "environment; its manifest tells of the change.",
    )
    disable_tqdm: bool = option(False, "Show no progress bars.")
