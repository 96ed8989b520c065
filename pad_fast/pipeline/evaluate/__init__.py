"""The phase that evaluates on held-out prompts."""
