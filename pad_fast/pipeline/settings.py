"""Settings: what one YAML file and the flags say, for the run and for its trainings."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pad_fast.device_errors import name_the_device
from pad_fast.files.system_errors import first_line
from pad_fast.launch import process
from pad_fast.pipeline.compared import options_of
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.step_size import BATCH, divided, with_product
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.secret_values import without_secrets
from pad_fast.training.adapter_rate import ADAPTER_RATE

if TYPE_CHECKING:
    from pad_fast.training.config import PADConfig


# Fields of TrainingArguments that a run sets itself; they are not keys of the YAML file.
MANAGED = frozenset({"do_train", "do_eval", "do_predict", "resume_from_checkpoint"})
# Arguments of Trainer that a run takes one value of, and why.
FIXED = {
    "eval_strategy": ("no", "a run evaluates every round itself"),
    "save_only_model": (False, "checkpoints only serve to resume, which takes the optimizer too"),
    "model_init_kwargs": (
        None,
        "a run loads its models itself, as dtype, train_dtype and attn_implementation say",
    ),
    "save_on_each_node": (False, "all machines share the run folder"),
    "ignore_data_skip": (False, "a training that is resumed would read other rows"),
}
# Arguments of Trainer that are files or need libraries.
LOADED = ("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config")
RATE = "learning_rate"
NO_SETTINGS = MANAGED | {"local_rank"}


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    """Without secrets, and without what is asked for each time."""
    left_out = ("accept_environment",)
    return {name: value for name, value in without_secrets(values).items() if name not in left_out}


@dataclass(frozen=True)
class Settings:
    """The settings of one YAML file.

    Args:
        run: the run's own fields.
        training: PADConfig's fields, those that differ from their defaults.

    Raises:
        ValueError: the training cannot be done with them.
    """

    run: RunConfig
    training: dict[str, Any]

    def __post_init__(self) -> None:
        # A wrong setting of the training has to fail now and not after hours of sampling.
        training = self._built()
        self._check_responses(training)
        for name in self.run.methods:
            try:
                self._check_responses(self.method_config(name, Path("unused")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"compare: {name}: {error}") from None
        for name, (only, why) in FIXED.items():
            given = getattr(training, name)
            if given != only:
                given = getattr(given, "value", given)  # an enumeration has one
                raise ValueError(f"{name}: must be {str(only).lower()}, since {why}, got {given}")

    def _check_responses(self, training: PADConfig) -> None:
        """Raise ValueError unless a training's loss can read the groups that the run makes."""
        n = self.run.most_generations
        kind = LOSSES[training.loss].kind(training.divergence)
        kind.check_exact(training.method, min(n, training.group_size or n))
        for name in ("likelihood_on", "train_on"):
            if getattr(training, name) == "teacher" and self.run.teacher_response == "none":
                raise ValueError(
                    f"{name}: teacher needs the teacher's own responses; set teacher_response to "
                    "greedy or sampled"
                )

    def _built(self) -> PADConfig:
        """The training's arguments, whose errors all name a setting."""
        try:
            return self.pad_config(Path("unused"))
        except ValueError:
            raise
        except ImportError as error:
            named = [name for name in self.training if name in str(error)] or [*self.training]
            raise ValueError(
                f"{' or '.join(named)}: a package that it needs is not installed: {error}"
            ) from None
        except Exception as error:  # such as a file that a setting names, and is not there
            if (meeting := process.cannot_meet(error)) is not None:
                raise ValueError(meeting) from error
            name_the_device(error)
            given = [name for name in LOADED if self.training.get(name)]
            raise ValueError(
                f"{' or '.join(given or self.training)}: the training's arguments cannot be "
                f"built: {first_line(error)}"
            ) from error

    def pad_config(
        self,
        output_dir: Path,
        seed: int | None = None,
        training: dict[str, Any] | None = None,
        **changes: Any,
    ) -> PADConfig:
        """The PADConfig of one training that writes to ``output_dir``, without making the folder.

        Args:
            output_dir: the trainer's folder.
            seed: of this training; the run's seed if not given.
            training: in place of the run's own.
            changes: PADConfig fields that override the settings.
        """
        from pad_fast.training.config import PADConfig

        training = self.training if training is None else training
        # Checkpoints only serve to resume a training, and for that the last one is enough.
        values: dict[str, Any] = {"save_total_limit": 1, **training, **changes}
        if self.run.prompts_per_step is not None:
            usual: Any = PADConfig.__dataclass_fields__[BATCH].default
            values |= divided(self.run.prompts_per_step, training, usual)
        if self.run.use_peft and values.get(RATE) is None:
            values[RATE] = ADAPTER_RATE
        owned: dict[str, Any] = {"temperature": self.run.reward_temperature}
        owned |= {name: getattr(self.run, name) for name in ("disable_tqdm", "share_prefix")}
        args = PADConfig(
            **values,
            **owned,
            output_dir=str(output_dir),
            seed=self.run.seed if seed is None else seed,
        )
        if args.n_gpu > 1:
            # A process of a run uses one GPU, the first. Trainer would copy the model to all that
            # it sees (torch.nn.DataParallel), and sets this number itself to prevent that.
            args._n_gpu = 1
        return args

    def method_config(
        self, name: str, output_dir: Path, seed: int | None = None, **changes: Any
    ) -> PADConfig:
        """The PADConfig of a compared method: the run's, with the method's own loss.

        Args:
            name: of the method, a key of ``compare``.
            output_dir, seed, changes: as in :meth:`pad_config`.
        """
        training = options_of(self.training, self.run.methods[name])
        return self.pad_config(output_dir, seed, training=training, **changes)

    @property
    def on_cpu(self) -> bool:
        """Whether the run leaves the GPUs alone: all of it does where its trainings do."""
        return bool(self.training.get("use_cpu")) or process.is_on_cpu()

    @property
    def has_anchor(self) -> bool:
        """Whether a training of the run compares its student with the one that it starts from."""
        methods = (options_of(self.training, own) for own in self.run.methods.values())
        return any(each.get("anchor") == "start" for each in (self.training, *methods))

    def flat(self) -> dict[str, Any]:
        """The settings as they were given, and the run's own, as one mapping for JSON.

        A setting that follows from others is open in it, as it was: read again with another of
        these, it follows from that one.
        """
        return _kept({**self.run.given(), **self.training})

    def resolved(self, training: PADConfig) -> dict[str, Any]:
        """Every setting as one mapping for JSON, the training's defaults included.

        Args:
            training: what :meth:`pad_config` returns. Some of its values depend on the device and
                on the environment, such as ``mixed_precision``.
        """
        values = {
            **training.to_dict(),
            "mixed_precision": getattr(training, "mixed_precision", None),
        }
        values = {name: value for name, value in values.items() if name not in NO_SETTINGS}
        values |= dataclasses.asdict(self.run)
        values = with_product(values, self.run.prompts_per_step)
        return _kept(json.loads(json.dumps(values, default=str)))
