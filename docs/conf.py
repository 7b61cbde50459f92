"""Sphinx configuration: MyST pages, the furo theme, no network (intersphinx is off), warnings are errors."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

project = "kvm_mmu"
author = "The kvm_mmu contributors"
copyright = "2026, The kvm_mmu contributors"
release = installed("kvm_mmu")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "notebook_pages"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages link to files of the repository (LICENSE-MIT, tests/...): those are no pages.
suppress_warnings = ["myst.xref_missing"]
nitpicky = False

html_theme = "furo"
html_title = f"kvm_mmu {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# An `Attributes:` section is a list below the class, like the parameters.
napoleon_use_ivar = True
