"""Whole trainers side by side: steps of PADTrainer and of TRL's DPOTrainer on the same responses.

Each trainer runs in a process of its own, with the same model, ids, optimizer and threads. TRL's
has its fused head, and reference log-probabilities precomputed. With two responses both have DPO's
loss, whose values are recorded to be compared; with more, TRL has pairs and ours one distribution.

``python -m benchmarks.trainers CASE CONTESTANT`` is such a process, CASE in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from benchmarks import machine, memory
from benchmarks.contestants import OURS, Participant
from benchmarks.records import Record
from benchmarks.step_cases import MODELS, StepCase, make_model

TRL = "TRL DPOTrainer"
THREADS = 2
MINUTES = 5  # after which a process is ended
SHARED: dict[str, Any] = {  # the arguments that both trainers have
    "beta": 0.1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class TrainerCase:
    """Steps on one prompt with ``n`` responses each; lengths in tokens."""

    model: str
    n: int
    prompt: int
    response: int
    steps: int = 5  # after one that warms up

    @property
    def label(self) -> str:
        """The case in words, as the tables show it."""
        return f"{self.model}, n={self.n} P={self.prompt:,} R={self.response:,}, float32"

    @property
    def vocabulary(self) -> int:
        return int(MODELS[self.model][1]["vocab_size"])

    def make_model(self) -> Any:
        """The model, whose weights are the same in every process."""
        case = StepCase("training step", self.model, self.n, self.prompt, self.response)
        return make_model(case, torch.device("cpu"))

    def rows(self) -> list[dict[str, Any]]:
        """A prompt for each step with its responses, the best first, which end with token 0."""
        generator = torch.Generator().manual_seed(0)

        def ids(count: int) -> list[int]:
            return torch.randint(1, self.vocabulary, (count,), generator=generator).tolist()

        return [
            {
                "prompt_ids": ids(self.prompt),
                "completion_ids": [[*ids(self.response - 1), 0] for _ in range(self.n)],
                "teacher_rewards": [-0.3 * i for i in range(self.n)],
            }
            for _ in range(self.steps + 1)
        ]


@dataclass(frozen=True)
class TrainerContestant(Participant):
    """A trainer: ``build(case, folder, callback)`` makes it, ready for ``train()``."""

    build: Callable[[TrainerCase, str, TrainerCallback], Any]


def _ours(case: TrainerCase, folder: str, callback: TrainerCallback) -> Any:
    from pad_fast import PADConfig, PADTrainer

    # DPO where both can have it, else the package's own loss
    loss = {"loss": "dpo", "anchor": "start", "normalize": "sum"} if case.n == 2 else {}
    options = SHARED | {"max_steps": case.steps + 1, "per_device_train_batch_size": 1} | loss
    return PADTrainer(
        case.make_model(), PADConfig(folder, **options), case.rows(), callbacks=[callback]
    )


def _trl(case: TrainerCase, folder: str, callback: TrainerCallback) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    options = SHARED | {
        "max_steps": case.steps + 1,
        "per_device_train_batch_size": case.n // 2,
        "precompute_ref_log_probs": True,
    }
    return DPOTrainer(
        case.make_model(),
        args=DPOConfig(folder, **options),
        train_dataset=Dataset.from_list(pairs(case)),
        processing_class=words(case.vocabulary),
        callbacks=[callback],
    )


def pairs(case: TrainerCase) -> list[dict[str, str]]:
    """The responses as pairs of texts, a word for each token but the last, which TRL adds."""

    def text(ids: Sequence[int]) -> str:
        return "".join(f" w{token}" for token in ids)

    found = []
    for row in case.rows():
        answers = [text(ids[:-1]) for ids in row["completion_ids"]]
        for chosen, rejected in zip(answers[::2], answers[1::2], strict=True):
            prompt = text(row["prompt_ids"])
            found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found


def words(vocabulary: int) -> Any:
    """A tokenizer in which token 17 is the word "w17", and token 0 ends a response."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    table = {"</s>": 0} | {f"w{token}": token for token in range(1, vocabulary)}
    tokenizer = Tokenizer(WordLevel(table, unk_token="</s>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="</s>"
    )


TRAINER_CONTESTANTS = (
    TrainerContestant(
        TRL,
        ("training",),
        _trl,
        note="pairs; its fused head, which on a CPU scores the prompt's positions too; reference "
        "log-probabilities precomputed",
        package="trl",
    ),
    TrainerContestant(OURS, ("training",), _ours, package="pad_fast"),
)


class Watch(TrainerCallback):
    """The end of each step, the tokens that the model read in it, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        others["model"].get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self._read += args[0].numel()

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._read = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.ends.append(time.perf_counter())
        self.tokens.append(self._read)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if "loss" in (logs := others.get("logs") or {}):
            self.losses.append(float(logs["loss"]))


def train(case: TrainerCase, contestant: TrainerContestant) -> Record:
    """Train in this process; what was measured, without the step that warms up.

    A step lasts from the end of the one before to its own, with its batch, optimizer and log. The
    peak is that of the whole process from the beginning of the training on, imports included.
    """
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = contestant.build(case, folder, watch)
        memory.forget_peak()
        trainer.train()
    seconds = [after - before for before, after in zip(watch.ends, watch.ends[1:], strict=False)]
    return {
        "times_ms": [round(1000 * one, 2) for one in seconds],
        "median_ms": round(1000 * median(seconds), 2),
        "rss_bytes": memory.resident("VmHWM"),
        "tokens": int(median(watch.tokens[1:])),
        "losses": watch.losses,
    }


def run_trainer_case(
    case: TrainerCase,
    contestants: Sequence[TrainerContestant],
    device: torch.device,
    roofs: dict[str, float],
) -> list[Record]:
    """Measure all contestants at a case, each in a process of its own."""
    return [
        _record(case, contestant, _in_a_process(case, contestant)) for contestant in contestants
    ]


def _in_a_process(case: TrainerCase, contestant: TrainerContestant) -> Record:
    """The figures, or the status and the reason why there are none."""
    command = [sys.executable, "-m", "benchmarks.trainers", json.dumps(asdict(case))]
    given = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    try:
        done = subprocess.run(
            [*command, contestant.name],
            capture_output=True,
            text=True,
            env=given,
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"{MINUTES} minutes were not enough"}
    if done.returncode == 0:
        return {"status": "ok"} | json.loads(done.stdout.splitlines()[-1])
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    absent = reason.startswith(("ModuleNotFoundError", "ImportError"))
    return {"status": "absent" if absent else "failed", "reason": reason[:300]}


def _record(case: TrainerCase, contestant: TrainerContestant, found: Record) -> Record:
    """The keys that records of all suites have, and those of a trainer."""
    nothing = ("median_ms", "rss_bytes", "tokens", "losses", "reason")
    return {
        "job": "training",
        "shape": {"N": case.n, "P": case.prompt, "R": case.response},
        "model": case.model,
        "case": case.label,
        "dtype": "float32",
        "same_job": True,
        "contestant": contestant.name,
        "contestant_version": machine.version(contestant.package),
        "note": contestant.note,
        "clock": "wall",
        "threads_used": THREADS,
        "ratio_to_naive": None,
        "peak_bytes": None,
        "roof_share": None,
        "error": None,
        "times_ms": [],
        **dict.fromkeys(nothing),
        **found,
    }


def main(case: str, name: str) -> None:
    torch.set_num_threads(THREADS)
    (contestant,) = (one for one in TRAINER_CONTESTANTS if one.name == name)
    print("\n" + json.dumps(train(TrainerCase(**json.loads(case)), contestant)))


if __name__ == "__main__":
    main(*sys.argv[1:])
