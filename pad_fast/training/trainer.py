"""PADTrainer: transformers' Trainer on preference distributions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.training_args import OptimizerNames

from pad_fast.models.causal_lm import causal_lm, vocabulary_size
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.causal_lm import model_window
from pad_fast.training.batch_layout import choose_slices, head_budget
from pad_fast.training.collator import PADCollator
from pad_fast.training.config import PADConfig
from pad_fast.training.metrics import prompt_metrics, summarize
from pad_fast.training.micro_batches import micro_batched_backward
from pad_fast.training.model_card import card_body, rewrite_card
from pad_fast.training.objective import live_prompts, preference_loss, saturates
from pad_fast.training.rows import RowReader, is_prepared, prepare_dataset

logger = logging.getLogger("pad_fast")

SATURATED = "loss/saturated"
SATURATION_HINT = (
    "%.0f%% of the prompts have a JSD above 0.95 ln 2, where it has next to no gradient: the teacher's and the student's preferences "
    'hardly overlap. A smaller teacher_beta, divergence="kl", or (where rewards are calibrated by multiple choice) a larger floor helps.'
)


class PADTrainer(Trainer):
    """Train a student so that its distribution over the rankings of given responses matches the teacher's (PAD, arXiv 2502.14272).

    The datasets have a row for each prompt: ``prompt`` or ``prompt_ids``, ``completions`` or ``completion_ids``,
    ``teacher_rewards``, optional ``finish_reasons``, see :class:`pad_fast.training.rows.RowReader`. A batch is counted in prompts,
    and the loss is the mean over the live prompts of the global batch, however it is split into micro-batches and ranks.

    The rewards are computed inside of the model's forward from the hidden states, without whole logits, so that DDP, FSDP,
    autocast and gradient checkpointing work as they do for any model. Checkpoints are ordinary ones.

    Args:
        model: a transformers causal language model, or the name or folder of one (loaded in float32, see model_init_kwargs).
        processing_class: the student's tokenizer; needed for texts, saved with checkpoints. By default that of a named model.
        peft_config: wraps the model in an adapter by PEFT; not on the output head.

    Raises:
        ValueError: unfit arguments; rows that cannot be read, by number; torch.nn.DataParallel.
    """

    args: PADConfig
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        args: PADConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[
            torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None
        ] = (None, None),
        peft_config: Any = None,
    ):
        args = PADConfig() if args is None else args
        if not isinstance(args, PADConfig):
            raise ValueError(f"args must be a PADConfig, got {type(args).__name__}")
        if args.n_gpu > 1:
            raise ValueError(
                f"PADTrainer does not run under torch.nn.DataParallel, got {args.n_gpu} GPUs in one process; "
                "start it with accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
        student = _student(model, args, peft_config)
        reader, use_cache = _reader(student, args, processing_class), student.config.use_cache
        super().__init__(
            model=student,
            args=args,
            data_collator=data_collator or PADCollator(),
            train_dataset=None
            if train_dataset is None
            else _prepared(_one(train_dataset), reader, args, "train"),
            eval_dataset=None
            if eval_dataset is None
            else _prepared(eval_dataset, reader, args, "eval"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "PADTrainer cannot split sequences over devices (context or sequence parallelism)"
            )
        student.config.use_cache = use_cache  # Trainer's False would go into the checkpoints; our forwards ask for no cache
        if isinstance(self.data_collator, PADCollator):
            sets = [
                self.train_dataset,
                *(
                    self.eval_dataset.values()
                    if isinstance(self.eval_dataset, dict)
                    else [self.eval_dataset]
                ),
            ]
            choose_slices(
                self.data_collator,
                student,
                args,
                self.accelerator,
                next((rows for rows in sets if rows is not None), ()),
            )
        self._read: Any = partial(_prepared, reader=reader, args=args)
        self.model_accepts_loss_kwargs = True  # what releases without loss_is_scaled_for_ga look at
        self._loss_of = preference_loss(args)
        self._normalize = args.normalize
        self._saturates = saturates(args)
        self._saturation_told = False
        self._eval_tables: list[Tensor] = []
        self._batch_number = 0
        self._start_window()

    # datasets that are given later

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        known = eval_dataset is None or isinstance(eval_dataset, str) or is_prepared(eval_dataset)
        return super().get_eval_dataloader(
            eval_dataset if known else self._read(eval_dataset, name="eval")
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(
            test_dataset if is_prepared(test_dataset) else self._read(test_dataset, name="test")
        )

    # a step

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Trainer's, or for a batch in several slices :func:`pad_fast.micro_batched_backward`."""
        count = len(inputs["slices"])
        if self.accelerator.num_processes > 1 and getattr(
            self.data_collator, "max_tokens", None
        ):  # FSDP's forwards meet
            count = int(
                self.accelerator.gather(torch.tensor([count], device=self.args.device)).max()
            )
        if count == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.is_deepspeed_enabled or self.args.optim in (
            OptimizerNames.LOMO,
            OptimizerNames.ADALOMO,
        ):
            raise ValueError(
                "a batch in slices (max_tokens_per_step) has several backwards a step, which DeepSpeed and LOMO do not take"
            )
        model.train()
        getattr(self.optimizer, "train", lambda: None)()  # schedule-free optimizers
        inputs = self._prepare_inputs(inputs)
        slices, shape, kept = inputs["slices"], inputs["teacher_rewards"].shape, []

        def rewards_of(k: int) -> Tensor:
            with self.compute_loss_context_manager():
                rewards = model(**slices[min(k, len(slices) - 1)], num_responses=shape.numel())
            return rewards if k < len(slices) else rewards * 0

        def loss_of(rewards: Tensor) -> Tensor:
            kept.append(self._preference_losses(rewards.view(shape), inputs, training=True))
            return self._mean_loss(kept[0], inputs, num_items_in_batch)

        def context(k: int) -> AbstractContextManager:
            return (
                self.accelerator.no_sync(model)
                if k < count - 1 and isinstance(model, DistributedDataParallel)
                else nullcontext()
            )

        loss, rewards = micro_batched_backward(
            rewards_of, range(count), loss_of, backward=self.accelerator.backward, context=context
        )
        self._note(kept[0], rewards.view(shape), inputs)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(super(PADTrainer, self).floating_point_ops(part) for part in inputs["slices"])

    # the loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Live prompts of the global batch: Trainer would count tokens."""
        self._batch_number = 0
        count = sum(
            (live_prompts(batch["mask"]) for batch in batch_samples),
            torch.zeros((), dtype=torch.long),
        ).to(device)
        return self.accelerator.gather(count).sum().clamp(min=1)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Under DeepSpeed, Trainer casts what is floating to bfloat16: not the teacher's rewards, which beta multiplies."""
        return {
            **super()._prepare_inputs(inputs),
            "teacher_rewards": inputs["teacher_rewards"].to(self.args.device),
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        losses, rewards = self._losses(model, inputs)
        loss = self._mean_loss(losses, inputs, num_items_in_batch)
        if model.training:
            self._note(losses, rewards, inputs)
        return (loss, rewards) if return_outputs else loss

    def _mean_loss(
        self, losses: Tensor, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if num_items_in_batch is None:
            return losses.sum() / live_prompts(inputs["mask"]).clamp(min=1)
        # DDP and FSDP take the mean over the ranks, where we want the sum
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def _losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(P,) losses, 0 for a prompt without a ranking, and (P, N) rewards of the student."""
        shape = inputs["teacher_rewards"].shape
        found = [model(**part, num_responses=shape.numel()) for part in inputs["slices"]]
        rewards = (found[0] if len(found) == 1 else torch.stack(found).sum(0)).view(shape)
        return self._preference_losses(rewards, inputs, model.training), rewards

    def _preference_losses(self, rewards: Tensor, inputs: dict[str, Any], training: bool) -> Tensor:
        return self._loss_of(
            rewards,
            inputs["teacher_rewards"],
            mask=inputs["mask"],
            seed=self._sampling_seed(training),
        )

    def _sampling_seed(self, training: bool) -> int:
        """Of this very micro-batch: a resumed run draws what the uninterrupted one would have drawn."""
        step = self.state.global_step if training else 0
        words = (self.args.seed, int(training), step, self._batch_number, self.args.process_index)
        self._batch_number += 1
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    # metrics

    def _note(self, losses: Tensor, rewards: Tensor, inputs: dict[str, Any]) -> None:
        self._tables.append(self._metrics_of(losses, rewards, inputs))
        self._num_tokens += inputs["num_tokens"]

    def _metrics_of(self, losses: Tensor, rewards: Tensor, inputs: dict[str, Any]) -> Tensor:
        fields = (inputs[name] for name in ("teacher_rewards", "mask", "lengths", "clipped"))
        return prompt_metrics(
            losses, rewards, *fields, normalize=self._normalize, saturates=self._saturates
        )

    def _start_window(self) -> None:
        self._tables: list[Tensor] = []
        self._num_tokens = 0
        self._window_start = time.perf_counter()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._start_window()
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if (
            "loss" in logs and self._tables
        ):  # Trainer's own line, which every rank writes at the same step
            logs.update(self._window_metrics())
        super().log(logs, start_time)

    def _window_metrics(self) -> dict[str, float]:
        table = self.accelerator.pad_across_processes(
            torch.cat(self._tables), dim=0, pad_index=torch.nan
        )
        found = summarize(self.accelerator.gather(table))
        found.pop("loss", None)  # Trainer has its own, of the same prompts
        tokens = (
            self.accelerator.gather(torch.tensor([self._num_tokens], device=self.args.device))
            .sum()
            .item()
        )
        found["perf/tokens_per_second"] = tokens / (time.perf_counter() - self._window_start)
        if found.get(SATURATED, 0.0) > 0.5 and not self._saturation_told:
            self._saturation_told = True
            logger.warning(SATURATION_HINT, 100 * found[SATURATED])
        self._start_window()
        return found

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses, rewards = self._losses(model, inputs)
        table = self._metrics_of(losses, rewards, inputs)
        self._eval_tables.append(
            self.accelerator.gather_for_metrics(table).cpu()
        )  # leaves out what pads the last batch
        return losses.mean(), None, None

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        started, self._eval_tables, self._batch_number = time.perf_counter(), [], 0
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._window_start += time.perf_counter() - started
        # Trainer's loss is a mean over batches, which weighs the prompts of a short last one more
        found = summarize(torch.cat(self._eval_tables))
        return output._replace(
            metrics={
                **(output.metrics or {}),
                **{f"{prefix}_{name}": value for name, value in found.items()},
            }
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, with a text that speaks of this training in the place of its draft."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            rewrite_card(Path(str(self.args.output_dir)) / "README.md", self.card_body())

    def card_body(self, base: str | None = None, note: str = "") -> str:
        """The text of the model card; ``base`` names the student before, by default as it was loaded from the hub."""
        name = str(base or getattr(getattr(self.model, "config", None), "_name_or_path", ""))
        return card_body(
            self.args, None if Path(name).exists() else name, self.state.log_history, note
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Of a resumed checkpoint, which holds one of two tied weights: the other is not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or ()
        super()._issue_warnings_after_load(
            load_result._replace(
                missing_keys=[key for key in load_result.missing_keys if key not in tied]
            )
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [
            "prompt_ids",
            "completion_ids",
            "teacher_rewards",
            "clipped",
        ]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in ``model`` to zero, those that attention keeps as plain numbers included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _student(model: Any, args: PADConfig, peft_config: Any) -> Any:
    """The model, with its adapter, as it is trained."""
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(
            model, **{"dtype": torch.float32, **_as_dict(args.model_init_kwargs)}
        )
    if peft_config is not None:
        try:
            from peft import get_peft_model
        except ImportError as error:
            raise ImportError(
                'peft_config needs PEFT, which is not installed: pip install "pad-fast[peft]"'
            ) from error
        model = get_peft_model(model, peft_config)
    if args.disable_dropout:
        disable_dropout(model)
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("normalize", "temperature", "impl")
    }
    attach_rewards_forward(model, memory_budget=head_budget(args), **options)
    return model


def _as_dict(options: dict | str | None) -> dict:
    return dict(options) if isinstance(options, dict) else {}


def _reader(model: Any, args: PADConfig, tokenizer: PreTrainedTokenizerBase | None) -> RowReader:
    lm = causal_lm(model)
    limits = [limit for limit in (args.max_length, model_window(lm)) if limit is not None]
    return RowReader(
        tokenizer=tokenizer,
        vocabulary=vocabulary_size(lm),
        max_length=min(limits) if limits else None,
        max_completion_length=args.max_completion_length,
        mask_truncated=args.mask_truncated_completions,
        template_options=_as_dict(args.chat_template_kwargs),
    )


def _one(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        raise ValueError(
            f"train_dataset must be one dataset, got several: {', '.join(map(repr, dataset))}; give one of them"
        )
    return dataset


def _prepared(
    dataset: Any, reader: RowReader, args: PADConfig, name: str
) -> Dataset | dict[str, Dataset]:
    if isinstance(dataset, dict):
        return {
            key: prepare_dataset(part, reader, name=f"{name} {key}", num_proc=args.dataset_num_proc)
            for key, part in dataset.items()
        }
    with args.main_process_first(desc=f"{name} data"):
        return prepare_dataset(dataset, reader, name=name, num_proc=args.dataset_num_proc)
