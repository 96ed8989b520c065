"""Scores: was the answer right, and does the student rank as the teacher does."""

from pad_fast.evaluation.agreement import ranking_agreement
from pad_fast.evaluation.answers import exact_match

__all__ = ["exact_match", "ranking_agreement"]
