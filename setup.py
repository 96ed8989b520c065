"""The package folders; everything else is in pyproject.toml.

The device code lies in ``kernels/`` and is imported as ``pad_fast.kernels``. ``kernels/`` has no
``__init__.py`` on purpose: Hugging Face publishes a package named ``kernels``, transformers looks
for it, and a folder of that name on ``sys.path`` must not be taken for it. Recipes and examples lie
at the top for those who read the repository.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
KERNEL_PACKAGES = sorted(init.parent.name for init in (ROOT / "kernels").glob("*/__init__.py"))
DATA = ("examples", "recipes")  # folders that the wheel has in pad_fast/, for `pad-fast init`


def description() -> str:
    """README.md as PyPI shows it, where links to the repository's files have to be whole."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (home,) = re.findall(r'^Homepage = "(.+)"$', project, re.M)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)", f"]({home}/blob/main/", text)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["pad_fast", "pad_fast.*"])
    + [f"pad_fast.kernels.{name}" for name in KERNEL_PACKAGES]
    + [f"pad_fast.{name}" for name in DATA],
    package_dir={"pad_fast": "pad_fast"}
    | {f"pad_fast.{name}": name for name in DATA}
    | {f"pad_fast.kernels.{name}": f"kernels/{name}" for name in KERNEL_PACKAGES},
)
