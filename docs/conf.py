"""Sphinx settings; ``make docs`` treats every warning as an error."""

from __future__ import annotations

import jobq

project = "jobq"
copyright = "the jobq authors"  # noqa: A001  (Sphinx' name)
version = release = jobq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jobq {release}"
nitpicky = False
autodoc_typehints = "description"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
