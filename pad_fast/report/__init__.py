"""The page that a person reads after a run: :func:`write_report`."""

from pathlib import Path

__all__ = ["write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write the page of a run, ``RUN_DIR/report/index.html``, and its pictures as SVG files.

    The page is one file without links to others: the pictures are inside it too, and take the
    colours of a light or dark page. Parts that the
    run does not have, such as right answers, a baseline or rounds still to come, are left out.
    Each file is written under a temporary name and renamed.

    Args:
        run_dir: the ``output_dir`` of a run, finished or not.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``run_dir`` is not a run folder.

    Example:
        >>> from pad_fast.report import write_report
        >>> write_report("runs/demo")  # doctest: +SKIP
        PosixPath('runs/demo/report/index.html')
    """
    # matplotlib, jinja2 and pyarrow are loaded only when a report is written.
    from pad_fast.report.page import write

    return write(Path(run_dir))
