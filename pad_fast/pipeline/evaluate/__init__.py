"""The phase that evaluates models on held-out prompts."""
