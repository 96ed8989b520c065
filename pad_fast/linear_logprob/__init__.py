"""Token log-probabilities of hidden states times the output head, without all logits in memory."""
