"""The footprint of a batch that a reward model, a sequence classifier, reads."""

from __future__ import annotations

from typing import Any

import torch

from pad_fast.footprint.fakes import fake, fake_model
from pad_fast.footprint.meter import Footprint
from pad_fast.models.auto import build_classifier


def classified_batch(
    config: Any, rows: int, tokens: int, dtype: torch.dtype, attention: str | None = None
) -> Footprint:
    """The logits of so many conversations, padded to one length.

    Args:
        config: the classifier's.
        rows: conversations.
        tokens: of each.
        dtype: of the weights.
        attention: its name in transformers; None for its choice.
    """
    with fake() as meter, torch.no_grad():
        model = fake_model(config, dtype, attention, build_classifier).eval()
        # A decoder without padding of its own reads one row at a time; any token would do.
        text = model.config.get_text_config()
        before, text.pad_token_id = text.pad_token_id, text.pad_token_id or 0
        try:
            ids = torch.zeros(rows, tokens, dtype=torch.long)
            meter.restart()
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            text.pad_token_id = before
        return meter.footprint()
