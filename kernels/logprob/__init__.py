"""Token log-probabilities from logits: one read forward, one read and one write backward."""
