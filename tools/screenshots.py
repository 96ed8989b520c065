"""Pictures of pages as a browser without a network shows them: wide and narrow, light and dark.

    python tools/screenshots.py OUT PAGE.html [PAGE.html ...] [--height 1600]

Writes OUT/PAGE-1200-light.png and so on. It needs Chromium (`chromium` on the PATH).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from itertools import product
from pathlib import Path

WIDTHS = (1200, 400)
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def screenshot(page: Path, picture: Path, size: tuple[int, int], scheme: str) -> None:
    """Write what a window of a size, in pixels, shows of a page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium",
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={picture.resolve()}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--height", type=int, default=1600)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for page, width, scheme in product(given.pages, WIDTHS, SCHEMES):
        picture = given.out / f"{page.stem}-{width}-{scheme}.png"
        screenshot(page, picture, (width, given.height), scheme)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
