"""The listwise losses by themselves: from rewards that you have, and from logits.

    python examples/listwise_losses.py

The rewards of a prompt's responses stand for a distribution over their rankings (Plackett-Luce). The probabilistic loss compares the
student's with the teacher's, the vanilla one asks for the teacher's ranking alone. Takes seconds on a CPU.
"""

import torch

from pad_fast import (
    PADLoss,
    probabilistic_preference_loss,
    response_rewards,
    vanilla_preference_loss,
)
from pad_fast.evaluation import ranking_agreement

V, P, N, T = 20, 32, 4, 8  # vocabulary, prompts a batch, responses a prompt, tokens of a response
IGNORE = -100


def from_rewards() -> None:
    """Two prompts, of which the second has three responses: nats per token in, a loss with a gradient out."""
    teacher = torch.tensor([[-1.0, -1.2, -0.9, -1.5], [-0.7, -0.8, -1.1, 0.0]])
    student = torch.tensor([[-1.4, -1.1, -1.3, -1.2], [-1.0, -0.9, -0.8, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    for divergence in ("jsd", "kl", "reverse_kl"):
        loss = probabilistic_preference_loss(student, teacher, divergence=divergence, mask=mask)
        print(f"probabilistic, {divergence:10s} {loss.item():.4f} nats")
    print(
        f"vanilla                   {vanilla_preference_loss(student, teacher, mask=mask).item():.4f} nats"
    )
    pairs = probabilistic_preference_loss(
        student, teacher, mask=mask, group_size=2
    )  # preference decomposing
    print(f"probabilistic, in pairs   {pairs.item():.4f} nats")
    probabilistic_preference_loss(student, teacher, mask=mask).backward()
    print(f"gradient in the rewards   {student.grad.tolist()[0]}\n")


def make_batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (R, T) and labels (R, T), already aligned, and a teacher's rewards (P, N): the smaller the token ids, the better."""
    responses = torch.randint(V, (P * N, T + 1), generator=generator)
    inputs, labels = responses[:, :-1], responses[:, 1:].clone()
    labels[::3, -2:] = IGNORE  # responses differ in length
    live = labels != IGNORE
    means = (labels * live).sum(1) / live.sum(1)
    return inputs, labels, (-means / V).view(P, N)


@torch.no_grad()
def agreement(student: torch.nn.Module) -> float:
    """Kendall's tau between the student's ranking and the teacher's on fixed new groups."""
    inputs, labels, teacher = make_batch(torch.Generator().manual_seed(1))
    return ranking_agreement(response_rewards(student(inputs), labels).view(P, N), teacher)[
        "kendall_tau"
    ].item()


def main(steps: int = 100) -> tuple[float, float]:
    from_rewards()
    torch.manual_seed(0)
    student = torch.nn.Embedding(
        V, V
    )  # the next token's logits by the token before: any model with logits (R, T, V) will do
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    loss_fn = PADLoss(
        divergence="kl", beta=10.0, teacher_beta=20.0
    )  # loss="vpd" is the vanilla one
    before, generator = agreement(student), torch.Generator().manual_seed(0)
    for step in range(steps):
        inputs, labels, teacher = make_batch(generator)
        loss = loss_fn(student(inputs), labels, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}")
    after = agreement(student)
    print(f"Kendall's tau with the teacher on new groups: {before:.2f} before, {after:.2f} after")
    return before, after


if __name__ == "__main__":
    main()
