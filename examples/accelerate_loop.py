"""A training loop of one's own on several GPUs, with gradient accumulation.

    accelerate launch examples/accelerate_loop.py    (--cpu where there is no GPU)

The student learns to rank answers as the teacher does. Both are the tiny models within the package,
so that it runs offline, in seconds on a CPU. The answers are the right one and those to other
prompts; examples/from_text_to_loss.py samples them from the student.
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import pad_fast
from pad_fast import attach_rewards_forward, encode_responses, preference_loss, score_responses

WORLD = Path(pad_fast.__file__).parent / "tiny_world"
TEACHER, STUDENT = WORLD / "teacher", WORLD / "student"  # or names on the hub
N = 4  # responses a prompt


def scored_groups(count: int) -> list[tuple]:
    """Prompts, each with N answers and the teacher's rewards of them."""
    lines = (WORLD / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    prompts = [row["prompt"] for row in rows]
    groups = [[rows[(p + i) % count]["answer"] for i in range(N)] for p in range(count)]
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER)
    scores = score_responses(teacher, prompts, groups, AutoTokenizer.from_pretrained(TEACHER))
    return list(zip(prompts, groups, scores, strict=True))


def main(prompts: int = 64, batch: int = 4, accumulate: int = 2) -> tuple[list[float], dict]:
    accelerator = Accelerator(gradient_accumulation_steps=accumulate)
    student = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    attach_rewards_forward(student)  # before prepare: the call goes through DDP, FSDP or ZeRO
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)

    def collate(rows: list[tuple]) -> dict[str, torch.Tensor]:
        asked, answers, scores = (list(column) for column in zip(*rows, strict=True))
        return {**encode_responses(asked, answers, tokenizer), "scores": torch.tensor(scores)}

    loader = DataLoader(scored_groups(prompts), batch_size=batch, collate_fn=collate)
    student, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    losses = []
    for rows in loader:
        with accelerator.accumulate(student):
            scores = rows.pop("scores")
            rewards = student(**rows, want_rewards=True).view_as(scores)
            loss = preference_loss("ppd", rewards, scores, divergence="kl")
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
    accelerator.print(f"loss of the first batch {losses[0]:.3f}, of the last {losses[-1]:.3f}")
    return losses, accelerator.get_state_dict(student)


if __name__ == "__main__":
    main()
