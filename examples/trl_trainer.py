"""The loss in a trainer of TRL: SFTTrainer with several responses a prompt and LinearPADLoss.

    pip install trl
    python examples/trl_trainer.py

TRL's arguments, PEFT, callbacks and `accelerate launch` work. The student is a random tiny Llama,
the "teacher" a rule: the smaller a response's token ids, the better.

This reads a prompt once for each response, as TRL does; PADTrainer reads it once for all. The two
side by side: docs/from-trl.md, by ``python -m benchmarks --suite trainers``.
"""

import random
import sys
import tempfile

try:
    from trl import SFTConfig, SFTTrainer
except ImportError:
    sys.exit("this example needs TRL, which is not installed: pip install trl")

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pad_fast import LinearPADLoss, output_head, score_responses
from pad_fast.evaluation import ranking_agreement

V, N = 50, 4  # vocabulary, responses a prompt
IGNORE = -100


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """P * N sequences from P rows, prompt by prompt, padded at the right.

    Labels are Hugging Face's, and leave out the prompt.
    """
    pairs = [(row["prompt_ids"], ids) for row in rows for ids in row["completion_ids"]]
    width = max(len(prompt) + len(ids) for prompt, ids in pairs)
    input_ids = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full((len(pairs), width), IGNORE)
    attention_mask = torch.zeros_like(input_ids)
    for r, (prompt, ids) in enumerate(pairs):
        end = len(prompt) + len(ids)
        input_ids[r, :end] = torch.tensor(prompt + ids)
        labels[r, len(prompt) : end] = torch.tensor(ids)
        attention_mask[r, :end] = 1
    teacher_rewards = torch.tensor([row["teacher_rewards"] for row in rows])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "teacher_rewards": teacher_rewards,
    }


class PADSFTTrainer(SFTTrainer):
    """SFTTrainer with a listwise loss."""

    def __init__(self, *args, loss: LinearPADLoss, **kwargs):
        super().__init__(*args, **kwargs)
        self.pad_loss = loss
        # The loss is a mean over prompts, so accumulated batches are averaged.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        teacher_rewards, labels = inputs.pop("teacher_rewards"), inputs.pop("labels")
        # A head on no position gives the last hidden states without logits, by the forward of the
        # whole model, as DDP and PEFT need it.
        outputs = model(
            **inputs, use_cache=False, output_hidden_states=True, logits_to_keep=slice(0, 0)
        )
        head = output_head(model)  # with its bias, softcap and scale
        loss = self.pad_loss(outputs.hidden_states[-1], head, labels, teacher_rewards)
        return (loss, outputs) if return_outputs else loss


def make_rows(count: int, seed: int) -> Dataset:
    generator = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [generator.randrange(V) for _ in range(generator.randint(low, high))]

    rows = []
    for _ in range(count):
        completions = [ids(4, 12) for _ in range(N)]
        rewards = [-sum(completion) / len(completion) / V for completion in completions]
        rows.append(
            {"prompt_ids": ids(3, 9), "completion_ids": completions, "teacher_rewards": rewards}
        )
    return Dataset.from_list(rows)


def agreement(student: LlamaForCausalLM, rows: Dataset) -> float:
    """Kendall's tau between the student's and the teacher's rankings."""
    rewards = score_responses(student, rows["prompt_ids"], rows["completion_ids"])
    teacher = torch.tensor(list(rows["teacher_rewards"]))
    return ranking_agreement(torch.tensor(rewards), teacher)["kendall_tau"].item()


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
    words = Tokenizer(WordLevel({str(i): i for i in range(V)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="0", eos_token="1", unk_token="0"
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            learning_rate=3e-3,
            per_device_train_batch_size=16,  # prompts, each with all of its responses
            num_train_epochs=1,
            bf16=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids already
            save_strategy="no",
            report_to="none",
        )
        trainer = PADSFTTrainer(
            student,
            args,
            data_collator=collate,
            train_dataset=make_rows(rows, seed=0),
            processing_class=tokenizer,
            loss=LinearPADLoss(divergence="kl", beta=10.0, teacher_beta=20.0, shift=True),
        )
        held_out = make_rows(100, seed=1)
        before = agreement(student, held_out)
        trainer.train()
        after = agreement(student, held_out)
    print(f"Kendall's tau with the teacher on new groups: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
