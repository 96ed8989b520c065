"""What is measured of sampled responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pad_fast.files.stored_rows import Row


def sampling_metrics(rows: Iterable[Row]) -> Row:
    """Metrics of the responses in ``rows``.

    They are the mean, least and greatest length in tokens, the share of responses that were cut at
    max_new_tokens, and the share that repeat another response to the same prompt.
    """
    lengths: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    repeated = 0
    for row in rows:
        lengths.update(map(len, row["completion_ids"]))
        reasons.update(row["finish_reasons"])
        repeated += len(row["completion_ids"]) - len(set(map(tuple, row["completion_ids"])))
    count = lengths.total()
    return {
        "completions/mean_length": sum(length * n for length, n in lengths.items()) / count,
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": reasons["length"] / reasons.total(),
        "completions/duplicate_ratio": repeated / count,
    }
