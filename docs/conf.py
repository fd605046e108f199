"""Sphinx configuration."""

import ast
from pathlib import Path
from typing import Any

import eestim

HERE = Path(__file__).resolve().parent

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
exclude_patterns = ["_build", "_templates", "_generated"]

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


def list_theory_checks(_app: Any) -> None:
    """Write the table of `theory_checks/`, each with the claim that it states."""
    rows = ["| file | claim |", "|:---|:---|"]
    for check in sorted((HERE.parent / "theory_checks").glob("*.py")):
        told = ast.get_docstring(ast.parse(check.read_text(encoding="utf-8"))) or ""
        claim = told.partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{check.name}` | {claim.removeprefix('Claim: ')} |")
    target = HERE / "_generated" / "theory_checks.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(rows) + "\n", encoding="utf-8")


def setup(app: Any) -> None:
    """Write what is generated before the pages are read."""
    app.connect("builder-inited", list_theory_checks)
