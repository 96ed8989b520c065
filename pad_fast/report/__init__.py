"""The page that a person reads after a run."""

from pathlib import Path

__all__ = ["write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write ``RUN_DIR/report/index.html`` and the PNGs beside it from what a run folder holds so far; returns the page's path.

    The page is one self-contained file: the pictures are inside it too. What the run has not (answers, a baseline, rounds that
    are still to come) is left out. Each file is written to a temporary name and renamed.

    Raises:
        ValueError: ``run_dir`` is not a run folder.
    """
    from pad_fast.report.page import (
        write,  # matplotlib, jinja2 and pyarrow are loaded only when a report is asked for
    )

    return write(Path(run_dir))
