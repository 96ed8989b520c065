"""``python runs_in_turn.py CONFIG ...``: runs one after the other in one process, without reports.

The pictures of a report take longer than the rest of a small run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pad_fast import cli, report


def main(configs: list[str]) -> int:
    report.write_report = lambda root: Path(root) / "report" / "index.html"
    codes = [cli.main(["run", config]) for config in configs]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
