"""PADTrainer, used like transformers' Trainer.

    python examples/transformers_trainer.py

The student is a random tiny Llama, the rows are token ids, and the "teacher" is a rule: the smaller
a response's token ids, the better. It takes seconds on a CPU, and runs on many GPUs under
`accelerate launch`.

With a real student, give its name and rows of text:
{"prompt": ..., "completions": [...], "teacher_rewards": [...]}. Groups may differ in size, and a
reward of None leaves a response out.
"""

import random
import tempfile

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from pad_fast import PADConfig, PADTrainer

V = 50  # vocabulary


def make_rows(count: int, seed: int) -> Dataset:
    generator = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [generator.randrange(V) for _ in range(generator.randint(low, high))]

    rows = []
    for _ in range(count):
        completions = [ids(4, 12) for _ in range(generator.randint(3, 5))]
        rewards = [-sum(completion) / len(completion) / V for completion in completions]
        rows.append(
            {"prompt_ids": ids(3, 9), "completion_ids": completions, "teacher_rewards": rewards}
        )
    return Dataset.from_list(rows)


def main(rows: int = 800) -> tuple[float, float]:
    torch.manual_seed(0)
    student = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        args = PADConfig(
            output_dir=folder,
            divergence="kl",
            beta=10.0,
            teacher_beta=20.0,
            learning_rate=3e-3,
            per_device_train_batch_size=8,  # prompts, each with all of its responses
            gradient_accumulation_steps=2,  # the loss is the mean over all 16 prompts
            gradient_checkpointing=False,  # saves memory that a tiny model does not need
            eval_strategy="epoch",
            save_strategy="no",
        )
        trainer = PADTrainer(student, args, make_rows(rows, seed=0), make_rows(100, seed=1))
        before = trainer.evaluate()["eval_ranking/kendall_tau"]
        trainer.train()
        after = trainer.evaluate()["eval_ranking/kendall_tau"]
    print(f"Kendall's tau with the teacher on new groups: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
