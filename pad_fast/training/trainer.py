"""PADTrainer: transformers' Trainer on preference distributions."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.training_args import OptimizerNames

from pad_fast import device
from pad_fast.environment import install_extra
from pad_fast.models.auto import model_class
from pad_fast.models.causal_lm import causal_lm, is_spread, model_window, vocabulary_size
from pad_fast.models.own_tokenizer import check_tokenizer
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.preference.loss_kinds import SATURATION_SHARE
from pad_fast.preference.reward_inputs import counted_prompts
from pad_fast.training.adapter_rate import warn_of_small_rate
from pad_fast.training.anchor import COLUMN as ANCHOR
from pad_fast.training.anchor import check_anchor_rewards, with_anchor_rewards
from pad_fast.training.batch_layout import head_budget, sliced_for
from pad_fast.training.collator import PADCollator
from pad_fast.training.config import PADConfig
from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.filled_batches import rows_of_its_own
from pad_fast.training.likelihood_watch import LikelihoodWatch
from pad_fast.training.metrics import (
    CHOSEN,
    NAMES,
    SATURATED,
    LossFacts,
    Summary,
    pooled,
    prompt_metrics,
    summarize,
)
from pad_fast.training.micro_batches import micro_batched_backward
from pad_fast.training.model_card import card_body, rewrite_card
from pad_fast.training.objective import (
    configured_loss,
    loss_columns,
    saturation,
    with_teacher_beta,
)
from pad_fast.training.predictions import own_metrics, prediction_of, response_numbers
from pad_fast.training.prepared_rows import (
    PreparedStream,
    first_rows,
    is_prepared,
    is_stream,
    prepare_dataset,
    values_of,
)
from pad_fast.training.resumed_log import ResumableLog
from pad_fast.training.stream_args import for_stream

logger = logging.getLogger("pad_fast")

SATURATION_HINT = (
    "%.0f%% of the prompts have a loss above %.0f%% of its largest value, where its gradient is "
    "negligible: the teacher's and the student's preferences hardly overlap. A smaller "
    'teacher_beta, divergence="kl", or (if mcq_formula is paper) a larger '
    "floor helps."
)


class PromptLosses(NamedTuple):
    """The losses (P,) of a batch, 0 for a prompt without a ranking.

    Args:
        total: what is trained.
        ranking: the loss of rankings alone, with the weight 1; what is trained if nothing is added.
    """

    total: Tensor
    ranking: Tensor


class PADTrainer(ResumableLog):
    """Trains a student to rank given responses as a teacher does (PAD, arXiv 2502.14272).

    A dataset has a row for each prompt, see :class:`pad_fast.training.dataset_rows.RowReader`.

    Args:
        model: a transformers causal language model, or its name or folder.
        args: the settings.
        train_dataset, eval_dataset: rows; ``eval_dataset`` may be a dictionary of datasets, and
            ``train_dataset`` an IterableDataset, with ``max_steps``.
        processing_class: the student's tokenizer; by default that of a model given by name.
        data_collator: by default a :class:`pad_fast.training.collator.PADCollator`.
        callbacks, optimizers: as in Trainer.
        peft_config: an adapter of PEFT, which may not change the output head.
        compute_metrics: as in Trainer; :func:`pad_fast.training.predictions.prediction_of` has
            what it receives.

    Raises:
        ValueError: an argument is wrong; a row cannot be read; torch.nn.DataParallel would run.

    Example:
        >>> responses = {"completions": ["Red.", "Seven."], "teacher_rewards": [-0.4, -2.1]}
        >>> rows = [{"prompt": "Name a colour.", **responses}]
        >>> trainer = PADTrainer("student", PADConfig("out"), rows)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP

    Notes:
        A batch is counted in prompts. The loss is the mean over the prompts of the global batch
        that have two live responses, however the batch is split into micro-batches and ranks.

        Rewards come from hidden states, without logits of whole sequences. DDP, FSDP, autocast and
        gradient checkpointing work as for any model.
    """

    args: PADConfig
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | Path,
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
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
    ):
        args = PADConfig() if args is None else args
        _check_args(args)
        _check_one_dataset(train_dataset)
        args = for_stream(args) if is_stream(train_dataset) else args
        model = str(model) if isinstance(model, Path) else model
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
        _check_one_gpu(model, args)
        student = _student(model, args, peft_config)
        _check_one_gpu(student, args)  # a device_map may have put all layers on one
        use_cache = vars(student.config).get("use_cache")
        self._read: Any = partial(
            _prepared, reader=_reader(student, args, processing_class), args=args
        )
        train_rows = self._read(train_dataset, name="train")
        eval_rows = self._read(eval_dataset, name="eval")
        super().__init__(
            model=student,
            args=_with_teacher_beta(args, (train_rows, *_parts(eval_rows))),
            data_collator=data_collator or PADCollator(),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
        )
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "PADTrainer cannot split sequences over devices (context or sequence parallelism)"
            )
        # Trainer's False would go into the checkpoints; our forwards ask for no cache anyway.
        _restore_use_cache(student.config, use_cache)
        self._choose_slices(student)
        self._prepare_columns()
        self.model_accepts_loss_kwargs = True  # read by releases without loss_is_scaled_for_ga
        self._loss_of = configured_loss(self.args)
        self._ranking_of = configured_loss(self.args, likelihood=False)
        self._facts = LossFacts(args.normalize, saturation(args), args.least_live)
        self._saturation_warned = False
        self._watch = LikelihoodWatch()
        self._eval_tables: list[Tensor] = []
        self._responses: list[Tensor] = []
        self._batch_number = 0
        self._start_window()

    def _choose_slices(self, student: nn.Module) -> None:
        """Choose how a batch is laid out, on rows of the first dataset that there is."""
        if not isinstance(self.data_collator, PADCollator):
            return
        parts = (self.train_dataset, *_parts(self.eval_dataset))
        rows: Any = first_rows(next((rows for rows in parts if rows is not None), ()))
        self.data_collator: Any = sliced_for(
            self.data_collator, student, self.args, self.accelerator, rows
        )

    def _prepare_columns(self) -> None:
        """Add the anchor's rewards to the datasets, and check that there are teacher's responses.

        A dataset that is given later must have them, since the model may have changed by then.
        """
        if self.args.likelihood_on == "teacher" and self.train_dataset is not None:
            rows: Any = first_rows(self.train_dataset)
            if not any(any(own) for own in values_of(rows, "from_teacher")):
                raise ValueError(
                    "likelihood_on=teacher needs responses of the teacher's own in train_dataset, "
                    "marked true in from_teacher; got none"
                )
        if self.args.anchor == "none":
            return
        if is_stream(self.train_dataset):
            check_anchor_rewards(first_rows(self.train_dataset))

        model: Any = self.model

        def anchored(rows: Any) -> Any:
            if rows is None or is_stream(rows):
                return rows
            return with_anchor_rewards(rows, model, self.args, self.accelerator)

        self.train_dataset, evaluated = anchored(self.train_dataset), self.eval_dataset
        if isinstance(evaluated, dict):
            self.eval_dataset = {name: anchored(rows) for name, rows in evaluated.items()}
        else:
            self.eval_dataset = anchored(evaluated)

    # Datasets that are given later.

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        known = eval_dataset is None or isinstance(eval_dataset, str) or is_prepared(eval_dataset)
        return super().get_eval_dataloader(
            eval_dataset if known else self._read(eval_dataset, name="eval")
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(
            test_dataset if is_prepared(test_dataset) else self._read(test_dataset, name="test")
        )

    # A step.

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Trainer's, or :func:`pad_fast.micro_batched_backward` for a batch in several slices."""
        count = self._most_slices(len(inputs["slices"]))
        if count == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.is_deepspeed_enabled or self.args.optim in (
            OptimizerNames.LOMO,
            OptimizerNames.ADALOMO,
        ):
            raise ValueError(
                "a batch in slices (for max_tokens_per_step, or for lengths that the model cannot "
                "read together) has several backwards a step, which DeepSpeed and LOMO do not take"
            )
        model.train()
        getattr(self.optimizer, "train", lambda: None)()  # schedule-free optimizers
        inputs = self._prepare_inputs(inputs)
        slices, size, kept = inputs["slices"], inputs["teacher_rewards"].numel(), []

        def rewards_of(k: int) -> Tensor:
            with self.compute_loss_context_manager():
                rewards = model(**slices[min(k, len(slices) - 1)], num_responses=size)
            return rewards if k < len(slices) else rewards * 0

        def loss_of(read: Tensor) -> Tensor:
            rewards = _of_all_responses(read, inputs)
            kept.append(self._preference_losses(rewards, inputs, training=True))
            return self._mean_loss(kept[0].total, inputs, num_items_in_batch)

        def context(k: int) -> AbstractContextManager:
            waits = k < count - 1 and isinstance(model, DistributedDataParallel)
            return self.accelerator.no_sync(model) if waits else nullcontext()

        loss, read = micro_batched_backward(
            rewards_of, range(count), loss_of, backward=self.accelerator.backward, context=context
        )
        self._record(kept[0], _of_all_responses(read, inputs), inputs)
        if (steps := self.args.torch_empty_cache_steps) and self.state.global_step % steps == 0:
            device.release_cached_memory()
        return self._count_loss(loss)

    def _most_slices(self, count: int) -> int:
        """The largest number of slices on a rank: under FSDP each forward waits for the others."""
        slicing = getattr(self.data_collator, "slicing", None)
        if self.accelerator.num_processes == 1 or not (slicing and slicing.cuts):
            return count
        counts = self.accelerator.gather(torch.tensor([count], device=self.args.device))
        return int(counts.max())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(super(PADTrainer, self).floating_point_ops(part) for part in inputs["slices"])

    # The loss.

    def _leave_out_repeats(self, batches: list[dict[str, Any]]) -> None:
        """Mask the rows with which accelerate fills the last batch of an epoch up."""
        if batches:
            mask = batches[-1]["mask"]
            mask[rows_of_its_own(self, len(mask)) :] = False

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """The live prompts of the global batch, where Trainer would count tokens."""
        self._batch_number = 0
        self._leave_out_repeats(batch_samples)
        count = sum(
            (self._counted(batch) for batch in batch_samples),
            torch.zeros((), dtype=torch.long),
        ).to(device)
        return self.accelerator.gather(count).sum().clamp(min=1)

    def _counted(self, batch: dict[str, Any]) -> Tensor:
        """The number of prompts of a batch that count in a mean, as a tensor ()."""
        return counted_prompts(batch["mask"], self._facts.least_live)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's, but given rewards stay float32, since beta multiplies their rounding.

        Under DeepSpeed, Trainer casts all floating inputs to bfloat16.
        """
        given = {name: inputs[name] for name in ("teacher_rewards", ANCHOR) if name in inputs}
        kept = {name: rewards.to(self.args.device) for name, rewards in given.items()}
        return {**super()._prepare_inputs(inputs), **kept}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        losses, rewards = self._losses(model, inputs)
        loss = self._mean_loss(losses.total, inputs, num_items_in_batch)
        if model.training:
            self._record(losses, rewards, inputs)
        return (loss, rewards) if return_outputs else loss

    def _mean_loss(
        self, losses: Tensor, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if num_items_in_batch is None:
            return losses.sum() / self._counted(inputs).clamp(min=1)
        # DDP and FSDP take the mean over the ranks; the loss is a sum over them.
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def _losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[PromptLosses, Tensor]:
        """The losses, and the student's rewards (P, N)."""
        size, slices = inputs["teacher_rewards"].numel(), inputs["slices"]
        count = len(slices) if model.training else self._most_slices(len(slices))
        found = [
            model(**slices[min(k, len(slices) - 1)], num_responses=size) for k in range(count)
        ][: len(slices)]
        read = found[0] if len(found) == 1 else torch.stack(found).sum(0)
        rewards = _of_all_responses(read, inputs)
        return self._preference_losses(rewards, inputs, model.training), rewards

    def _preference_losses(
        self, rewards: Tensor, inputs: dict[str, Any], training: bool
    ) -> PromptLosses:
        given: dict[str, Any] = {
            "teacher": inputs["teacher_rewards"],
            "mask": inputs["mask"],
            "seed": self._sampling_seed(training),
            **loss_columns(self.args, inputs),
        }
        losses = self._loss_of(rewards, **given)
        # Only its saturation is asked of the loss of rankings alone.
        if self._facts.saturation is None or self.args.is_ranking_alone:
            return PromptLosses(losses, losses)
        with torch.no_grad():
            return PromptLosses(losses, self._ranking_of(rewards.detach(), **given))

    def _sampling_seed(self, training: bool) -> int:
        """A seed of this micro-batch, so that a resumed run draws what it would have drawn."""
        step = self.state.global_step if training else 0
        words = (self.args.seed, int(training), step, self._batch_number, self.args.process_index)
        self._batch_number += 1
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    # Metrics.

    def _record(self, losses: PromptLosses, rewards: Tensor, inputs: dict[str, Any]) -> None:
        self._tables.append(self._metrics_of(losses, rewards, inputs))
        self._num_tokens += inputs["num_tokens"]

    def _metrics_of(self, losses: PromptLosses, rewards: Tensor, inputs: dict[str, Any]) -> Tensor:
        names = ("teacher_rewards", "mask", "lengths", "clipped")
        teacher, mask, lengths, clipped = (inputs[name] for name in names)
        return prompt_metrics(*losses, rewards, teacher, mask, lengths, clipped, self._facts)

    def _start_window(self) -> None:
        self._tables: list[Tensor] = []
        self._summary_before: Summary = {}  # what a resume found of this window
        self._tokens_before = self._num_tokens = 0
        self._window_start = time.perf_counter()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._start_window()
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer's own lines have a loss, and every rank writes them at the same step.
        if "loss" in logs and (self._tables or self._summary_before):
            logs.update(self._window_metrics())
        super().log(logs, start_time)

    def _window_table(self) -> Tensor:
        """The metrics of each prompt since the last line of the log, over all ranks."""
        nothing = torch.zeros(0, len(NAMES), device=self.args.device)
        table = self.accelerator.pad_across_processes(
            torch.cat([nothing, *self._tables]), dim=0, pad_index=torch.nan
        )
        found: Tensor = self.accelerator.gather(table)
        return found

    def _window_summary(self, table: Tensor) -> tuple[Summary, int]:
        """The metrics since the last line of the log, also from before a resume, and tokens."""
        counts = torch.tensor([self._num_tokens], device=self.args.device)
        tokens = int(self.accelerator.gather(counts).sum())
        return pooled(self._summary_before, summarize(table)), self._tokens_before + tokens

    def _window_metrics(self) -> dict[str, float]:
        """The metrics for a line of the log, after which the next window begins."""
        table = self._window_table()
        summary, tokens = self._window_summary(table)
        self._watch.add(table[:, NAMES.index(CHOSEN)])
        found = {name: value for name, (_, value) in summary.items()}
        found.pop("loss", None)  # Trainer logs it
        found["perf/tokens_per_second"] = tokens / (time.perf_counter() - self._window_start)
        if found.get(SATURATED, 0.0) > 0.5 and not self._saturation_warned:
            self._saturation_warned = True
            logger.warning(SATURATION_HINT, 100 * found[SATURATED], 100 * SATURATION_SHARE)
        self._start_window()
        return found

    def _kept_log(self) -> dict[str, Any]:
        summary, tokens = self._window_summary(self._window_table())
        seconds = time.perf_counter() - self._window_start
        window = {"metrics": summary, "tokens": tokens, "seconds": seconds}
        return {**super()._kept_log(), "window": window, "likelihood": self._watch.state()}

    def _restore_log(self, kept: dict[str, Any]) -> None:
        super()._restore_log(kept)
        window = kept["window"]
        if "likelihood" in kept:  # checkpoints of older versions have none
            self._watch.restore(kept["likelihood"])
        self._summary_before = {
            name: (count, value) for name, (count, value) in window["metrics"].items()
        }
        self._tokens_before = window["tokens"]
        self._window_start = time.perf_counter() - window["seconds"]

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
        # This leaves out the rows that pad the last batch.
        self._eval_tables.append(self.accelerator.gather_for_metrics(table).cpu())
        if not prediction_loss_only:
            numbers = self.accelerator.pad_across_processes(
                response_numbers(rewards, inputs), dim=1, pad_index=torch.nan
            )
            self._responses.append(self.accelerator.gather_for_metrics(numbers).cpu())
        return losses.total.mean(), None, None

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        started, self._batch_number = time.perf_counter(), 0
        self._eval_tables, self._responses = [], []
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._window_start += time.perf_counter() - started
        # Trainer's loss is a mean over batches, in which the prompts of a short last batch count
        # more.
        table = torch.cat(self._eval_tables)
        own = {f"{prefix}_{name}": value for name, (_, value) in summarize(table).items()}
        if self._responses:
            found = prediction_of(self._responses, table[:, NAMES.index("loss")])
            output = output._replace(predictions=found.predictions, label_ids=found.label_ids)
            if self.compute_metrics is not None:
                own = {**own_metrics(self.compute_metrics(found), prefix), **own}
        return output._replace(metrics={**(output.metrics or {}), **own})

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's card, with a description of this training instead of its draft."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            rewrite_card(Path(str(self.args.output_dir)) / "README.md", self.card_body())

    def card_body(self, base: str | None = None, note: str = "") -> str:
        """The text of the model card.

        Args:
            base: name of the model that was trained; by default the one it was loaded by.
            note: a sentence to add to the description.
        """
        name = str(base or getattr(getattr(self.model, "config", None), "_name_or_path", ""))
        return card_body(
            self.args, None if Path(name).exists() else name, self.state.log_history, note
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's, without tied weights: a checkpoint holds one of two, and none is missing."""
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
            ANCHOR,
            "from_teacher",
            "clipped",
        ]


def _of_all_responses(read: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Rewards (P, N) from those of the responses that were read (P * N,), each equal one once.

    The gradients of equal responses add up, as if each had been read.
    """
    shape, places = inputs["teacher_rewards"].shape, inputs.get("read_as")
    found = read if places is None else read.index_select(0, places.flatten())
    return found.view(shape)


def _loaded(name: str, options: dict[str, Any]) -> Any:
    """A model by its name or folder; ``options`` are those of from_pretrained."""
    of_config = ("revision", "subfolder", "trust_remote_code", "cache_dir", "token")
    config = options.pop("config", None) or AutoConfig.from_pretrained(
        name, **{key: options[key] for key in of_config if key in options}
    )
    return model_class(config).from_pretrained(name, config=config, **options)


def _restore_use_cache(config: Any, before: bool | None) -> None:
    """Undo Trainer's change to a configuration; one that wraps another has no such field."""
    if before is None:
        vars(config).pop("use_cache", None)
    else:
        config.use_cache = before


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, also those that attention holds as numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _student(model: Any, args: PADConfig, peft_config: Any) -> Any:
    """The model as it is trained: loaded, with its adapter, and with a forward for rewards."""
    if isinstance(model, str):
        model = _loaded(model, {"dtype": torch.float32, **_as_dict(args.model_init_kwargs)})
    if peft_config is not None:
        try:
            from peft import get_peft_model
        except ImportError as error:
            raise ImportError(
                f"peft_config needs PEFT, which is not installed: {install_extra('peft')}"
            ) from error
        model = get_peft_model(model, peft_config)
    warn_of_small_rate(model, args.learning_rate)
    if args.disable_dropout:
        disable_dropout(model)
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("normalize", "temperature", "impl")
    }
    attach_rewards_forward(model, memory_budget=head_budget(args), **options)
    return model


def _check_args(args: PADConfig) -> None:
    if not isinstance(args, PADConfig):
        raise ValueError(f"args must be a PADConfig, got {type(args).__name__}")
    loader: Any = args.accelerator_config
    if args.world_size > 1 and loader.even_batches is False:
        raise ValueError(
            "accelerator_config must have even_batches: true on several ranks, which would wait "
            "for one another without end; the rows that fill a batch up do not count"
        )
    if args.world_size > 1 and loader.dispatch_batches:
        raise ValueError(
            "accelerator_config must not have dispatch_batches: true, since the packed rows of a "
            "batch cannot be cut for several ranks; split_batches: true can"
        )


def _check_one_gpu(model: Any, args: PADConfig) -> None:
    """Raise ValueError for what Trainer would copy to all GPUs by torch.nn.DataParallel."""
    options = _as_dict(args.model_init_kwargs) if isinstance(model, str) else {}
    if args.n_gpu <= 1 or is_spread(model) or "device_map" in options:
        return
    raise ValueError(
        "PADTrainer does not run under torch.nn.DataParallel, "
        f"got {args.n_gpu} GPUs in one process; start it with accelerate launch or torchrun, set "
        "CUDA_VISIBLE_DEVICES to one of them, or load a model that one of them cannot hold with "
        'device_map="auto", which puts its layers on several'
    )


def _check_one_dataset(train_dataset: Any) -> None:
    if isinstance(train_dataset, dict):
        names = ", ".join(map(repr, train_dataset))
        raise ValueError(
            f"train_dataset must be one dataset, got several: {names}; give one of them, or "
            "Dataset.from_dict(...) if they are columns"
        )


def _as_dict(options: dict | str | None) -> dict:
    return dict(options) if isinstance(options, dict) else {}


def _today(tokenizer: PreTrainedTokenizerBase | None) -> datetime.datetime | None:
    """The day that is written by a chat template which writes one, the same in all rows.

    It is a part of what datasets hashes, so that rows are prepared once a day. Without a date in
    the template it is None.
    """
    if "strftime_now" not in str(getattr(tokenizer, "chat_template", None)):
        return None
    return datetime.datetime.combine(datetime.date.today(), datetime.time.min)


def _reader(model: Any, args: PADConfig, tokenizer: PreTrainedTokenizerBase | None) -> RowReader:
    lm = causal_lm(model)
    check_tokenizer(lm, tokenizer)
    limits = [limit for limit in (args.max_length, model_window(lm)) if limit is not None]
    return RowReader(
        tokenizer=tokenizer,
        vocabulary=vocabulary_size(lm),
        max_length=min(limits) if limits else None,
        max_completion_length=args.max_completion_length,
        mask_truncated=args.mask_truncated_completions,
        template_options=_as_dict(args.chat_template_kwargs),
        now=_today(tokenizer),
        train_on=args.train_on,
        repeats=args.repeats,
        max_prompt_length=args.max_prompt_length,
        long_prompts=args.long_prompts,
    )


def _prepared(
    dataset: Any, reader: RowReader, args: PADConfig, name: str
) -> Dataset | PreparedStream | dict[str, Dataset] | None:
    """A dataset or a dictionary of them, ready for the collator."""
    options: dict[str, Any] = {
        "num_proc": args.dataset_num_proc,
        "least_live": args.least_live,
    }
    if isinstance(dataset, dict):
        return {
            key: prepare_dataset(part, reader, name=f"{name} {key}", **options)
            for key, part in dataset.items()
        }
    if dataset is None:
        return None
    if is_stream(dataset) and name == "train":
        return PreparedStream(dataset, reader, args.least_live)
    with args.main_process_first(desc=f"{name} data"):
        return prepare_dataset(dataset, reader, name=name, **options)


def _parts(dataset: Any) -> list[Any]:
    """The datasets of a dictionary, or the one dataset."""
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def _with_teacher_beta(args: PADConfig, datasets: Sequence[Any]) -> PADConfig:
    """The arguments with the ``teacher_beta`` for the first dataset, if none is given."""
    rows = next((rows for rows in datasets if rows is not None), None)
    if not args.chooses_teacher_beta or rows is None:
        return args
    args = with_teacher_beta(args, values_of(first_rows(rows), "teacher_rewards"))
    logger.info(
        "teacher_beta is %g, chosen from the spread of the teacher's rewards", args.teacher_beta
    )
    return args
