"""The settings of a training by a low-rank adapter, with the names that TRL gives them."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.pipeline.option import option


@dataclass
class AdapterOptions:
    """What an adapter is made of (LoRA, Hu et al., 2021), and whether it lies on 4-bit weights."""

    use_peft: bool = option(
        False,
        "Train a LoRA adapter in place of all weights. The student of a round is saved "
        "with the adapter merged into it; the adapter itself is kept next to it.",
    )
    lora_r: int = option(16, "Rank of the adapter.")
    lora_alpha: int = option(32, "Scale of the adapter: its product is multiplied by alpha / r.")
    lora_dropout: float = option(
        0.05, "Dropout of the adapter's input. disable_dropout, the default, makes it 0."
    )
    lora_target_modules: list[str] | None = option(
        None,
        "Names of the modules that get an adapter, such as q_proj v_proj, or all-linear. Default: "
        "PEFT's for the student's architecture.",
    )
    load_in_4bit: bool = option(
        False,
        "Train the adapter on weights in 4 bits (QLoRA, NF4). Sampling and scoring read the merged "
        "student in dtype.",
    )

    def check_adapter(self) -> None:
        """Raise ValueError for settings that contradict one another."""
        if self.load_in_4bit and not self.use_peft:
            raise ValueError(
                "load_in_4bit: weights in 4 bits are not trained, only an adapter on them is; set "
                "use_peft to true"
            )
