"""The listwise losses, from rewards and from logits.

    python examples/listwise_losses.py

The rewards of a prompt's responses define a distribution over their rankings (Plackett-Luce). The
probabilistic loss compares the student's distribution with the teacher's. The vanilla loss is the
negative log-likelihood of the teacher's ranking. It takes seconds on a CPU.
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
    """Losses of two prompts, of which the second has three responses, from nats per token."""
    teacher = torch.tensor([[-1.0, -1.2, -0.9, -1.5], [-0.7, -0.8, -1.1, 0.0]])
    student = torch.tensor([[-1.4, -1.1, -1.3, -1.2], [-1.0, -0.9, -0.8, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    for divergence in ("jsd", "kl", "reverse_kl"):
        loss = probabilistic_preference_loss(student, teacher, divergence=divergence, mask=mask)
        print(f"probabilistic, {divergence:10s} {loss.item():.4f} nats")
    vanilla = vanilla_preference_loss(student, teacher, mask=mask)
    print(f"vanilla                   {vanilla.item():.4f} nats")
    # Preference decomposing: responses are ranked in groups of two.
    pairs = probabilistic_preference_loss(student, teacher, mask=mask, group_size=2)
    print(f"probabilistic, in pairs   {pairs.item():.4f} nats")
    probabilistic_preference_loss(student, teacher, mask=mask).backward()
    print(f"gradient in the rewards   {student.grad.tolist()[0]}\n")


def make_batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (R, T), labels (R, T) of the next tokens, and a teacher's rewards (P, N).

    The teacher is a rule: the smaller the token ids, the better.
    """
    responses = torch.randint(V, (P * N, T + 1), generator=generator)
    inputs, labels = responses[:, :-1], responses[:, 1:].clone()
    labels[::3, -2:] = IGNORE  # some responses are shorter
    live = labels != IGNORE
    means = (labels * live).sum(1) / live.sum(1)
    return inputs, labels, (-means / V).view(P, N)


@torch.no_grad()
def agreement(student: torch.nn.Module) -> float:
    """Kendall's tau between the student's and the teacher's rankings of fixed new groups."""
    inputs, labels, teacher = make_batch(torch.Generator().manual_seed(1))
    rewards = response_rewards(student(inputs), labels).view(P, N)
    return ranking_agreement(rewards, teacher)["kendall_tau"].item()


def main(steps: int = 100) -> tuple[float, float]:
    from_rewards()
    torch.manual_seed(0)
    # Logits of the next token by the token before; any model with logits (R, T, V) will do.
    student = torch.nn.Embedding(V, V)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    # loss="vpd" would be the vanilla loss.
    loss_fn = PADLoss(divergence="kl", beta=10.0, teacher_beta=20.0)
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
