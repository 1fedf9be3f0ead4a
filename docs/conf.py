# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration of the documentation site; `make docs` builds it.

The pages are Markdown that a forge shows as well. What only the site can do (the commands as the program declares
them, structures, docstrings) is in the package `hibernaut_docs` beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hibernaut

sys.path.insert(0, str(Path(__file__).parent))

project = "hibernaut"
author = "the hibernaut developers"
version = release = hibernaut.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "hibernaut_docs"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["hibernaut_docs"]

# Every cross-reference must resolve; `hibernaut_docs.api` says which types of other projects are exempt.
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Names in docstrings are in single backquotes.
default_role = "code"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "hibernaut"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# The site is read from disk and without a network: nothing is fetched to show a result of a search.
html_show_search_summary = False
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "monokai"
