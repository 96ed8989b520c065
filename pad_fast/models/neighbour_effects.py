"""Models that compute a sequence otherwise in the company of others, known by their configuration.

A trial on a few short rows sees none of this: it begins at a length, or it is small in short rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attributes of a config that, if set, make a token's place in its row matter, which is not its
# position where several sequences are in a row.
PLACES = {
    "alibi": "its position bias (ALiBi) counts places in the row",  # falcon
    "attention_chunk_size": "its attention is cut into chunks",  # llama4
    "attn_temperature_tuning": "its attention's temperature follows the place in the row",  # llama4
    "log_scaling_n_floor": "its attention's temperature follows the place in the row",  # inkling
    "index_topk": "its attention picks keys among those of the row",  # deepseek_v32, glm_moe_dsa
    "index_topk_blocks": "its attention picks blocks of the row",  # minimax_m3_vl
    "keep_window_size": "its attention picks keys among those of the row",  # doge
}
# Model types whose config has no such attribute of its own.
KINDS = {
    "bloom": PLACES["alibi"],
    "mpt": PLACES["alibi"],
    "gpt_neo": "its attention masks by the place in a row, of which its window is the last",
    "codegen": "its attention masks by the place in a row, of which its window is the last",
}
LONG_ROPE = ("longrope", "su")


def place_problem(lm: PreTrainedModel) -> str | None:
    """Why a row of the model cannot hold several sequences, from its config; None if it may."""
    config = lm.config.get_text_config()
    if config.model_type in KINDS:
        return KINDS[config.model_type]
    return next((why for name, why in PLACES.items() if getattr(config, name, None)), None)


@dataclass(frozen=True)
class Sides:
    """Which lengths of sequences may be read in one call of a model.

    Args:
        switches: LongRoPE takes other factors for all positions of a call if its longest sequence
            has more tokens than this.
        padded_up_to: longer sequences are read with others of their own length only, since their
            attention would pick among padding.

    Example:
        >>> sides = Sides(switches=(4096,))
        >>> sides(10) == sides(4096), sides(4096) == sides(4097)
        (True, False)
    """

    switches: tuple[int, ...] = ()
    padded_up_to: int | None = None

    def __bool__(self) -> bool:
        return bool(self.switches) or self.padded_up_to is not None

    def __call__(self, length: int) -> tuple[int, int]:
        """The side of a sequence; sequences of different sides are read in different calls."""
        exact = self.padded_up_to is not None and length > self.padded_up_to
        return bisect_left(self.switches, length), length if exact else 0


ONE_SIDE = Sides()


def sides_of(lm: PreTrainedModel) -> Sides:
    """The sides of a model: :data:`ONE_SIDE` unless its configuration is known for more."""
    config = lm.config.get_text_config()
    switches = {
        int(switch)
        for part in _rope_parts(config)
        if part.get("rope_type", part.get("type")) in LONG_ROPE
        and (switch := _original_length(config, part)) is not None
    }
    return Sides(tuple(sorted(switches)), getattr(config, "keep_window_size", None))


def _rope_parts(config: Any) -> Iterator[dict[str, Any]]:
    """The parameters of rotary embeddings, of which a model has one set or one for each layer type.

    Models with code of their own may still have the older name.
    """
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, dict):
            yield found
            yield from (part for part in found.values() if isinstance(part, dict))


def _original_length(config: Any, part: dict[str, Any]) -> int | None:
    name = "original_max_position_embeddings"
    return part.get(name) or getattr(config, name, None)
