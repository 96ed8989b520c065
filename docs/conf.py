"""The documentation site: ``make docs`` builds it strictly, into build/docs.

Nothing in it is fetched when a page is read: formulas are MathML, the search index is a file, and
the theme brings its fonts and scripts. docs/design.md says why these tools were chosen.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]

import pad_fast  # noqa: E402

project = "pad-fast"
author = "the authors of pad-fast"
project_copyright = "the authors of pad-fast, Apache-2.0"
version = release = pad_fast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "mathml",
    "made_tables",
    "repository_links",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",
    "myst.strikethrough",
]  # included parts begin below the first level

html_theme = "furo"
html_title = f"pad-fast {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_show_sphinx = html_copy_source = False
html_domain_indices = html_use_index = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"
exclude_patterns = ["extensions"]

# Docstrings are Google's; signatures stand with their defaults, types are in the text.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_custom_sections = ["Notes"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = ">>> |\\.\\.\\. "
copybutton_prompt_is_regexp = True

# Strict, but for names of other projects, whose sites a build does not ask.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|transformers|datasets|accelerate|numpy|collections|typing)(\..*)?"),
    ("py:.*", r"(optional|callable|Tensor|nn\.Module|LossOptions)"),
]
