"""What a run reports about its models: right answers, and rankings like the teacher's.

:mod:`~pad_fast.evaluation.reported_metrics` is the one list of reported metrics.
"""

from pad_fast.evaluation.agreement import ranking_agreement
from pad_fast.evaluation.answers import exact_match

__all__ = ["exact_match", "ranking_agreement"]
