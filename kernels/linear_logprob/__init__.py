"""Token log-probabilities from hidden states and the output head.

Either a library's product writes chunks of logits (row_softmax.py), or no logits exist (fused.py).
"""
