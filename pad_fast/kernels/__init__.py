"""The Triton kernels. The subpackages are the folders of the top-level ``kernels/``.

setup.py maps them here when the package is installed. In a checkout they are found through the
path below, so that the kernels also run uninstalled (``python -m benchmarks``).
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "kernels").is_dir():
    __path__.append(str(_CHECKOUT / "kernels"))
