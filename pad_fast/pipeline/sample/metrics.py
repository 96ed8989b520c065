"""What is measured of sampled responses."""

from __future__ import annotations

from collections.abc import Sequence

from pad_fast.pipeline.whole_files import Row


def sampling_metrics(rows: Sequence[Row]) -> Row:
    """Metrics of the responses in ``rows``.

    They are the mean, least and greatest length in tokens, the share of responses that were cut at
    max_new_tokens, and the share that repeat another response to the same prompt.
    """
    groups = [[tuple(ids) for ids in row["completion_ids"]] for row in rows]
    lengths = [len(ids) for group in groups for ids in group]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    return {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": reasons.count("length") / len(reasons),
        "completions/duplicate_ratio": sum(len(group) - len(set(group)) for group in groups)
        / len(lengths),
    }
