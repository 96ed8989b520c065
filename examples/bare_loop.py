"""The loss in a plain PyTorch loop, from hidden states and the weight of the output head.

    python examples/bare_loop.py

The student is a random tiny Llama. The "teacher" is a rule: the smaller a response's token ids, the
better. After training, the student ranks four responses to new prompts by that rule. It takes
seconds on a CPU.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pad_fast import LinearPADLoss, linear_response_rewards
from pad_fast.evaluation import ranking_agreement

V, P, N = 50, 16, 4  # vocabulary, prompts a batch, responses a prompt
PROMPT, RESPONSE = 6, 8  # tokens
IGNORE = -100


def make_batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and Hugging Face labels (R, T), prompt by prompt; the teacher's rewards (P, N)."""
    prompts = torch.randint(V, (P, PROMPT), generator=generator).repeat_interleave(N, dim=0)
    responses = torch.randint(V, (P * N, RESPONSE), generator=generator)
    # Labels cover the response, not its prompt.
    labels = torch.cat([torch.full_like(prompts, IGNORE), responses], dim=1)
    teacher_rewards = -responses.float().mean(dim=1).view(P, N) / V
    return torch.cat([prompts, responses], dim=1), labels, teacher_rewards


@torch.no_grad()
def agreement(student: LlamaForCausalLM) -> float:
    """Kendall's tau between the student's and the teacher's rankings of fixed new groups."""
    ids, labels, teacher_rewards = make_batch(torch.Generator().manual_seed(1))
    hidden = student.model(ids).last_hidden_state
    rewards = linear_response_rewards(hidden[:, :-1], student.lm_head.weight, labels[:, 1:])
    return ranking_agreement(rewards.view(P, N), teacher_rewards)["kendall_tau"].item()


def main(steps: int = 60) -> tuple[float, float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    student = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    # shift=True: each label is at its own token, as in Hugging Face's models.
    loss_fn = LinearPADLoss(divergence="kl", beta=10.0, teacher_beta=20.0, shift=True)

    before, generator = agreement(student), torch.Generator().manual_seed(0)
    for step in range(steps):
        ids, labels, teacher_rewards = make_batch(generator)
        hidden = student.model(ids).last_hidden_state  # (R, T, D); no (R, T, V) logits are made
        loss = loss_fn(hidden, student.lm_head.weight, labels, teacher_rewards)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}")
    after = agreement(student)
    print(f"Kendall's tau with the teacher on new groups: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
