"""How long each kind of work takes on this machine, tried on models of random weights.

The code that samples, scores and trains runs in the sizes, data types and batches of the run: on
whole models if they are small, and else on models of a few layers. Two depths then tell what a
layer takes and what everything else does, Python included.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from transformers.initialization import no_init_weights

from pad_fast.device import default_device, release_cached_memory, synchronize
from pad_fast.footprint.fakes import count_parameters
from pad_fast.footprint.steps import GroupShape
from pad_fast.models.auto import build_model
from pad_fast.models.layout import PromptGroup
from pad_fast.models.layout_trial import choose_layout, forget_trials
from pad_fast.models.output_head import head_problem
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline.batch_sizes import REWARD_MODEL, SCORED, builder
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.sample.transformers_engine import generated_ids, generation_config
from pad_fast.plan.case import Case, group_tokens
from pad_fast.plan.machine import DISK
from pad_fast.plan.training_trial import StepTimes, trained_answers, trained_preferences

TOKENS = 8  # that are sampled in a trial
# A batch of a trial has at most so many tokens: it takes as long for each as a larger one.
MOST_TOKENS = 8192
WHOLE = 300_000_000  # weights of a model that is tried with all of its layers
CALLS = 3

Depths = tuple[int, int]


class Trials:
    """See :class:`pad_fast.plan.speeds.Speeds`.

    Args:
        case: what is planned, for this machine.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.config, self.device = case, case.config, default_device()
        self._models: dict[tuple[str, int], Any] = {}
        self.sampling, self.scoring = cache(self._sampling), cache(self._scoring)
        self._layouts = cache(self._trying)
        self.asking, self.answers = cache(self._asking), cache(self._answers)

    def close(self) -> None:
        """Give the models' memory back."""
        self._models.clear()
        release_cached_memory()

    # Work.

    def _sampling(self, role: str, n: int, prompts: int) -> tuple[float, float]:
        """A batch's prompts, and every further token with a cache that is half full."""
        case, each = self.case, max(1, n)
        prompt = case.lengths[role].mean
        half = min(self.config.max_new_tokens // 2, _room(case, role) - TOKENS - prompt)
        length, tokens = prompt + max(0, half), min(TOKENS, self.config.max_new_tokens)
        how = Sampling(tokens, 0.0) if not n else self._how(tokens)

        def tried(model: Any) -> tuple[float, float]:
            model.generation_config = generation_config(how, n, [_vocabulary(model)], 0)
            without = case.model(role).ids_without_token()
            model.generation_config.suppress_tokens = without or None
            clock = _Clock(model, self.device)
            rows = [_ids(model, length, index) for index in range(prompts)]
            generated_ids(model, rows[:1], each)  # loads libraries
            with clock:
                generated_ids(model, rows, each)
            return clock.first * prompt / length, clock.rest

        first, token = self._whole(role, tried)
        return first, token

    def _how(self, tokens: int) -> Sampling:
        config = self.config
        return Sampling(tokens, config.temperature, config.top_p, config.top_k)

    def _scoring(self, role: str, n: int, prompts: int) -> float:
        """The log-probabilities of ``n`` responses to each of a batch of prompts."""
        case, limit = self.case, self._score_tokens
        shape = GroupShape(case.lengths[role].mean, case.response, n)
        tokens = group_tokens(shape, case.reading(role, case.shares))
        few = max(1, min(prompts, MOST_TOKENS // tokens))

        def tried(model: Any) -> tuple[float]:
            if role == REWARD_MODEL:
                rows = _ids(model, few * n * (shape.prompt + shape.response), 0)
                return (self._time(partial(_classified, model, rows, few * n, limit)),)
            groups = _groups(model, shape, few)
            score = partial(
                score_responses,
                model,
                [group.prompt for group in groups],
                [group.responses for group in groups],
                share_prefix=self.config.share_prefix,
                max_tokens_per_batch=limit,
            )
            return (self._time(score),)

        return self._whole(role, tried)[0] * prompts / few

    def trying(self, role: str, n: int, prompts: int) -> float:
        """The check of the output head and the trial of layouts before a model's first scores."""
        return 0.0 if role == REWARD_MODEL else self._layouts(role, n)

    def _trying(self, role: str, n: int) -> float:
        shape = GroupShape(self.case.lengths[role].mean, self.case.response, n)

        def tried(model: Any) -> tuple[float]:
            groups = _groups(model, shape, 2)

            def choose() -> None:
                forget_trials(model)
                choose_layout(model, groups, self.config.share_prefix, gradients=False)
                head_problem(model)  # which a single response asks for without any trial

            return (self._time(choose),)

        return self._whole(role, tried)[0]

    def _asking(self, n: int, questions: int) -> float:
        case, limit = self.case, self._score_tokens
        tokens, shown = case.question_tokens(n, case.lengths["teacher"].mean, case.response)
        tokens = min(tokens, _room(case, "teacher") - 1)
        few = max(1, min(questions, MOST_TOKENS // tokens))

        def tried(model: Any) -> tuple[float]:
            rows, letters = [_ids(model, tokens, place) for place in range(few)], range(2 * shown)
            ask = partial(
                next_token_logprobs, model, rows, list(letters), max_tokens_per_batch=limit
            )
            return (self._time(ask),)

        return self._whole("teacher", tried)[0] * questions / few

    @property
    def _score_tokens(self) -> int:
        return self.case.batch_tokens(SCORED)

    def micro_batch(self, settings: dict[str, Any]) -> float:
        """Forward and backward of a micro-batch."""
        return self._preferences(tuple(sorted(settings.items()))).micro_batch

    def step(self, settings: dict[str, Any]) -> float:
        """What a step takes beside its micro-batches."""
        return self._preferences(tuple(sorted(settings.items()))).rest

    def _answers(self, prompts: int) -> float:
        settings = self.case.train_settings
        batch = min(prompts, settings["per_device_train_batch_size"])
        found = self._trained(lambda model: trained_answers(self.case, model, batch))
        return math.ceil(prompts / batch) * found.micro_batch + found.rest

    def loading(self, role: str) -> float:
        """Making the model and its tokenizer, and reading its file at the rate of a disk."""
        checkpoint = dataclasses.replace(self.case.model(role), check=None)
        started = time.perf_counter()
        _ = checkpoint.tokenizer  # anew: a model that is freed takes its tokenizer along
        with no_init_weights(), torch.device("meta"):
            model = builder(role)(checkpoint.config)
        stored = sum(weight.nbytes for weight in model.parameters())
        return time.perf_counter() - started + stored / DISK

    @cache  # noqa: B019  the trials live as long as a plan
    def _preferences(self, settings: tuple[tuple[str, Any], ...]) -> StepTimes:
        return self._trained(lambda model: trained_preferences(self.case, model, dict(settings)))

    # Depths.

    def _whole(self, role: str, tried: Callable[[Any], tuple[float, ...]]) -> tuple[float, ...]:
        """The times of a whole model from those of two depths."""
        few, more = depths(self.case.model(role).config, builder(role))
        layers = _text(self.case.model(role).config).num_hidden_layers
        high = tried(self._model(role, more))
        low = high if few == more else tried(self._model(role, few))
        pairs = zip(low, high, strict=True)
        return tuple(_line(a, b, (few, more), layers) for a, b in pairs)

    def _trained(self, tried: Callable[[Any], StepTimes]) -> StepTimes:
        config = self.case.student.config
        both, layers = depths(config), _text(config).num_hidden_layers
        make = partial(trial_model, self.case, "student")
        dtype = self.case.training_options.dtype
        high = tried(make(both[1], dtype, self.device))
        low = high if both[0] == both[1] else tried(make(both[0], dtype, self.device))
        pairs = zip(dataclasses.astuple(low), dataclasses.astuple(high), strict=True)
        return StepTimes(*(_line(a, b, both, layers) for a, b in pairs))

    def _model(self, role: str, layers: int) -> Any:
        if (role, layers) not in self._models:
            dtype = self.case.dtype(role)
            self._models[role, layers] = trial_model(self.case, role, layers, dtype, self.device)
        return self._models[role, layers]

    def _time(self, call: Callable[[], object]) -> float:
        """The time of a call, the fastest of a few: the first one loads libraries."""
        times = []
        for _ in range(CALLS):
            synchronize(self.device)
            started = time.perf_counter()
            call()
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return min(times)


def trial_model(case: Case, role: str, layers: int, dtype: torch.dtype, device: Any) -> Any:
    """A model like one of the run's with random weights and fewer layers."""
    attention = case.config.attn_implementation
    options = {"attn_implementation": attention} if attention else {}
    config = shortened(case.model(role).config, layers)
    with no_init_weights(), torch.device(device):
        model = builder(role)(config, dtype=dtype, **options)
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.02)
    return model.eval()


def shortened(config: Any, layers: int) -> Any:
    """A model's configuration with fewer layers, the first ones."""
    found = copy.deepcopy(config)
    text = _text(found)
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return found


def depths(config: Any, build: Callable[..., Any] = build_model) -> Depths:
    """Two numbers of layers whose difference is a period of the kinds of layers.

    They are both the whole number for a small model: its weights may lie in a cache if they are
    few, and a trial of all of them costs little.
    """
    text = _text(config)
    if count_parameters(config, build) <= WHOLE:
        return text.num_hidden_layers, text.num_hidden_layers
    kinds = list(getattr(text, "layer_types", None) or ["layer"])
    period = next(p for p in range(1, len(kinds) + 1) if kinds[p:] == kinds[:-p] or p == len(kinds))
    first = getattr(text, "first_k_dense_replace", None) or 0
    few = min(first + period, text.num_hidden_layers)
    return few, min(few + period * max(1, 2 // period), text.num_hidden_layers)


def _line(low: float, high: float, both: Depths, layers: int) -> float:
    """A time at ``layers`` from those at two depths; no layer takes less than nothing."""
    few, more = both
    if more == few:
        return high
    return low + max(0.0, high - low) / (more - few) * (layers - few)


class _Clock:
    """The times between the tokens of ``generate``, as its processors of logits see them."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device, self.times = model, device, list[float]()

    def __enter__(self) -> None:
        head = self.model.get_output_embeddings()
        self._hook = head.register_forward_hook(lambda *_: self._tick())
        self._tick()

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        self._tick()

    def _tick(self) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())

    @property
    def first(self) -> float:
        """Until the first token's logits."""
        return self.times[1] - self.times[0]

    @property
    def rest(self) -> float:
        """A further token: the median of those that were sampled."""
        between = sorted(b - a for a, b in zip(self.times[1:], self.times[2:], strict=False))
        return between[len(between) // 2]


@torch.inference_mode()
def _classified(model: Any, ids: list[int], rows: int, limit: int) -> None:
    """Read rows of one length as a reward model does, in batches of ``limit`` tokens."""
    tokens = torch.tensor(ids, device=model.device).view(rows, -1)
    text = model.config.get_text_config()
    text.pad_token_id = text.pad_token_id or 0  # a decoder without one reads single rows
    for batch in tokens.split(max(1, limit // tokens.shape[1])):
        model(input_ids=batch, attention_mask=torch.ones_like(batch))


def _text(config: Any) -> Any:
    return config.get_text_config()


def _room(case: Case, role: str) -> int:
    return case.model(role).window or 2**31


def _vocabulary(model: Any) -> int:
    """An id that no token has, so that no response ends."""
    return int(_text(model.config).vocab_size)


def _groups(model: Any, shape: GroupShape, number: int) -> list[PromptGroup]:
    """Groups of random tokens."""
    prompt, response, n = shape
    return [
        PromptGroup(
            _ids(model, prompt, place),
            [_ids(model, response, place * n + i) for i in range(n)],
            range(place * n, (place + 1) * n),
        )
        for place in range(number)
    ]


def _ids(model: Any, length: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(_vocabulary(model), (length,), generator=generator).tolist()
