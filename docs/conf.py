"""How the documentation is built: ``python -m sphinx -W --keep-going docs docs/build``."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import vqfast
from vqfast.cli.parser import make_parser

project = "vqfast"
version = release = vqfast.__version__
highlight_language = "text"
html_show_copyright = False
html_title = f"vqfast {release}"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["vqfast.css"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Links to torch's documentation need its index from the network, which a build in a test doesn't have.
if os.environ.get("VQFAST_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!vqfast\.).*"),
    ("py:class", r"vqfast\.(data\.protocol\.Piece|files\.HiddenFile)"),  # what the pipeline alone handles
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88


class _Pair(NamedTuple):
    field: int


def _skip(app: Any, what: str, name: str, member: object, skip: bool, options: Any) -> bool:
    """Leaves out the fields of named tuples, which the docstring of the class describes."""
    return skip or isinstance(member, type(_Pair.field))


class Commands(SphinxDirective):
    """``{commands}``: the help of every command, each a section."""

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        os.environ["COLUMNS"] = "88"
        commands = next(a.choices for a in make_parser()._actions if isinstance(a.choices, dict))
        sections = []
        for name, parser in commands.items():
            block = nodes.literal_block(text=parser.format_help(), language="text")
            sections.append(nodes.section("", nodes.title(text=f"vqfast {name}"), block, ids=[name]))
        return sections


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_directive("commands", Commands)
    app.connect("autodoc-skip-member", _skip)
