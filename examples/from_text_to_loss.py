"""From prompts as texts to the loss, in a training loop of one's own.

    python examples/from_text_to_loss.py

The student answers prompts, the teacher scores the answers as texts, and the student learns to rank
them as the teacher does. Teacher and student are the tiny models within the package, so that it
runs offline, in seconds on a CPU. With real models, change TEACHER, STUDENT and `read_prompts`.
accelerate_loop.py is such a loop for several GPUs.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pad_fast
from pad_fast import LinearPADLoss, encode_responses, output_head, score_responses

WORLD = Path(pad_fast.__file__).parent / "tiny_world"
TEACHER, STUDENT = WORLD / "teacher", WORLD / "student"  # or names on the hub
N = 4  # responses a prompt
PROMPTS_A_STEP = 32


def read_prompts(split: str, count: int) -> list[list[dict[str, str]]]:
    """Conversations, each a list of messages; a prompt may also be a text."""
    lines = (WORLD / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:count]]


@torch.no_grad()
def sample(model, tokenizer, prompts: list) -> list[list[str]]:
    """N responses to each prompt, as texts."""
    encoded = tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    ids = model.generate(
        **encoded, do_sample=True, top_k=0, max_new_tokens=40, num_return_sequences=N
    )
    texts = tokenizer.batch_decode(
        ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [texts[i : i + N] for i in range(0, len(texts), N)]


def main(prompts: int = 512, held_out: int = 128) -> tuple[float, float]:
    torch.manual_seed(0)
    teacher, student = (AutoModelForCausalLM.from_pretrained(name) for name in (TEACHER, STUDENT))
    teachers, students = (AutoTokenizer.from_pretrained(name) for name in (TEACHER, STUDENT))
    groups = {}
    for split, count in (("train", prompts), ("heldout", held_out)):
        asked = read_prompts(split, count)
        answers = sample(student, students, asked)
        # Nats per token, in the teacher's own template and tokenizer. score_responses also takes
        # token ids, and finish_reasons for answers that were cut.
        scores = torch.tensor(score_responses(teacher, asked, answers, teachers))  # (P, N)
        groups[split] = asked, answers, scores

    loss_of = LinearPADLoss(divergence="kl", beta=3.0, teacher_beta=3.0, shift=True)

    def loss_on(split: str, part: slice = slice(None)) -> torch.Tensor:
        asked, answers, scores = (column[part] for column in groups[split])
        batch = encode_responses(asked, answers, students).to(student.device)
        inputs = batch["input_ids"], batch["attention_mask"]
        hidden = student.model(*inputs).last_hidden_state  # (P * N, T, D); no logits are made
        return loss_of(hidden, output_head(student), batch["labels"], scores)

    with torch.no_grad():
        before = loss_on("heldout").item()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.0)
    for step, start in enumerate(range(0, prompts, PROMPTS_A_STEP)):
        loss = loss_on("train", slice(start, start + PROMPTS_A_STEP))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}")
    with torch.no_grad():
        after = loss_on("heldout").item()
    print(f"Loss on new prompts, in nats: {before:.3f} before, {after:.3f} after")
    return before, after


if __name__ == "__main__":
    main()
