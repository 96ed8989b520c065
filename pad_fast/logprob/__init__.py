"""Token log-probabilities of given logits, and their sums over responses."""
