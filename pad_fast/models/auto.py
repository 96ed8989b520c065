"""Which class of transformers a configuration is loaded by, and what it says about the model."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from pad_fast.models.whole import whole_models


def model_class(config: Any) -> Any:
    """The class that loads a language model of this configuration.

    A model that also reads images, such as Qwen3-VL, is one too; it is only given text.

    Raises:
        ValueError: the configuration is not that of a causal language model.
    """
    name = type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"must be a causal language model, got an encoder-decoder, {name}")
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
        raise ValueError(f"must be a causal language model, got bidirectional attention, {name}")
    for mapping, auto in (
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    ):
        if type(config) in mapping:
            return auto
    # The text part of some models, such as Mllama, is saved with a configuration that no mapping
    # has; it names its class.
    for architecture in config.architectures or ():
        found = getattr(transformers, architecture, None)
        if "CausalLM" in architecture and getattr(found, "config_class", None) is type(config):
            return found
    raise ValueError(f"must be a causal language model, got {name}")


def recompute_activations(model: Any, on: bool = True) -> None:
    """Let a model compute its activations again in the backward pass, or keep them all."""
    # transformers 5.23 renamed the method, and will drop the old name.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()


def build_model(config: Any, **options: Any) -> Any:
    """A model of this configuration with random weights; ``options`` are those of from_config.

    It has a copy of the configuration, into which transformers writes data type and attention.
    """
    found = model_class(config)
    make = found.from_config if hasattr(found, "from_config") else found._from_config
    with whole_models():
        return make(copy.deepcopy(config), **options)


def build_classifier(config: Any, **options: Any) -> Any:
    """A sequence classifier with random weights, made as :func:`build_model` makes its model."""
    return AutoModelForSequenceClassification.from_config(copy.deepcopy(config), **options)
