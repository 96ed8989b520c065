"""Each public operation on tensors, called with small inputs that need a gradient."""

import torch

import pad_fast


def operations(impl, device="cpu"):
    """The results of all public operations by name, each from inputs of its own."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    labels = torch.randint(9, (2, 4), generator=generator).to(device)
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], device=device)
    live = torch.tensor([[True, True, True], [True, True, False]], device=device)
    results = {
        "token_logprobs": pad_fast.token_logprobs(draw(2, 4, 9), labels, impl=impl),
        "of strided logits": pad_fast.token_logprobs(draw(2, 5, 9)[:, :-1], labels, impl=impl),
        "of one token": pad_fast.token_logprobs(draw(9), labels[0, 0], impl=impl),
        "linear_token_logprobs": pad_fast.linear_token_logprobs(
            draw(2, 4, 5), draw(9, 5), labels, impl=impl
        ),
        "response_rewards": pad_fast.response_rewards(draw(2, 4, 9), labels, impl=impl),
        "packed response_rewards": pad_fast.response_rewards(
            draw(8, 9), labels.flatten(), response_ids=ids, normalize="sum", impl=impl
        ),
        "linear_response_rewards": pad_fast.linear_response_rewards(
            draw(2, 4, 5), draw(9, 5), labels, impl=impl
        ),
        "response_lengths": pad_fast.response_lengths(labels),
        "packed response_lengths": pad_fast.response_lengths(labels.flatten(), response_ids=ids),
    }
    for mask in (None, live):
        options = {"mask": mask, "reduction": "none", "impl": impl}
        for divergence in ("jsd", "kl", "reverse_kl"):
            for method in ("exact", "sampled"):
                name = f"{method} {divergence}, {'all' if mask is None else 'some'} live"
                results[name] = pad_fast.probabilistic_preference_loss(
                    draw(2, 3), draw(2, 3).detach(), divergence=divergence, method=method, **options
                )
        results[f"vpd, {'all' if mask is None else 'some'} live"] = (
            pad_fast.vanilla_preference_loss(draw(2, 3), draw(2, 3).detach(), **options)
        )
    loss, rewards = pad_fast.linear_preference_loss(
        draw(2, 4, 5), draw(9, 5), labels, draw(1, 2).detach(), impl=impl
    )
    return {**results, "linear_preference_loss": loss, "its rewards": rewards}


def check_in_place(result):
    """Assert that a result can be changed, and that what was overwritten gets no gradient."""
    result[...] = 0
    assert not result.any()
    if result.requires_grad:
        result.sum().backward()
