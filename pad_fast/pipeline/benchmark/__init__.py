"""Answers of a model to the paper's benchmarks, their scores, and a judge for them."""
