"""Token log-probabilities from hidden states and the output head: chunks of logits from a library's product, or none at all."""
