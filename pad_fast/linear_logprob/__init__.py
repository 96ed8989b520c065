"""Token log-probabilities of hidden states times the output head, whose logits are never whole."""
