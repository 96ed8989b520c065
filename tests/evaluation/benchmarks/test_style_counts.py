"""Markdown is counted as arena-hard-auto counts it."""

from pad_fast.evaluation.benchmarks.style_counts import style_counts

TEXT = """# Title
## Part
####### none

1. one
2. two
- a
  * b
+ c

**bold** and __bold__ and **broken
over lines**

```python
# a comment, no header
- no item
**no bold**
```
"""


def test_counts_outside_of_code():
    assert style_counts(TEXT) == {
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 3},
        "bold_count": {"**": 1, "__": 1},
    }
    assert style_counts("")["list_count"] == {"ordered": 0, "unordered": 0}
