"""``python -m pad_fast`` is ``pad-fast``, for launchers that start a module."""

import sys

from pad_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
