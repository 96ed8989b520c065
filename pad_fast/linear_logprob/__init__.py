"""Token log-probabilities of hidden states times the output head."""
