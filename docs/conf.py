"""Sphinx configuration."""

import eestim

project = "eestim"
author = "the eestim developers"
copyright = "the eestim developers, BSD-3-Clause"
release = version = eestim.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give shapes, which annotations cannot
autodoc_default_options = {"members": True, "member-order": "bysource"}
# Attributes such as n_units belong to many classes; napoleon links them by bare name.
suppress_warnings = ["ref.python"]
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"eestim {version}"
html_static_path: list[str] = []
html_show_sphinx = False
