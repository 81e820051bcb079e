"""Sphinx's settings for the site made of these pages. `python tools/build_docs.py` builds it.

Nothing is fetched: no other site's inventory, no font, no script. The package is read from the source tree and needs
no compiled part for it, so a page never describes another version than the one beside it.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.highlighting import lexers

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

os.environ["TIERPAGE_SKIP_NATIVE_CHECK"] = "1"
sys.path.insert(0, str(ROOT / "python"))

project = PROJECT["name"]
release = version = importlib.import_module(project).__version__
copyright = f"the authors of {project}; {PROJECT['license']}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["notebooks"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers"]  # a page about a class that derives from one of its own needs none of it
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
html_copy_source = False

# GitHub draws this language. Here it is shown as it is written, since drawing it would need a script from elsewhere.
lexers["mermaid"] = TextLexer()


# The decisions stand in a table of their own page. The site's table of contents finds them by this.
DECISIONS = """
```{toctree}
:hidden:
:glob:

0*
```
"""


def add_decisions(app: Sphinx, name: str, source: list[str]) -> None:
    """Not in the page itself, which is read in the repository as well."""
    if name == "decisions/README":
        source[0] += DECISIONS


def name_files_outside(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files of the repository that are no pages become their names: the site has no place for these files.

    A link to a file that is nowhere stays, and is a warning.
    """
    pages = Path(app.srcdir)
    folder = pages / Path(app.env.docname).parent
    for link in list(doctree.findall(addnodes.pending_xref)):
        target = link["reftarget"]
        if link["reftype"] in ("myst", "doc") and ("/" in target or "." in target):
            candidates = [base / (target + end) for base in (folder, ROOT) for end in ("", ".md")]
            found = next((path.resolve() for path in candidates if path.exists()), None)
            if found == ROOT / "README.md":
                link["reftarget"] = "index"  # which holds its text
            elif found is not None and pages not in found.parents:
                link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", add_decisions)
    app.connect("doctree-read", name_files_outside)
    return {"parallel_read_safe": True}
