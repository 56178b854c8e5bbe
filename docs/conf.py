"""How the site is made: `make docs`, offline, every warning an error. The pages are Markdown, readable as they are."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

project = "rlhf-env"
author = "the authors of rlhf-env"
version = release = importlib.metadata.version("rlhf-env")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3  # links to headings work as they do where Markdown is read as it is

html_theme = "furo"
html_title = "rlhf-env"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False  # LICENSE says whose it is
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a name, and not the whole table that it stands for
autodoc_class_signature = "separated"
add_module_names = False
python_use_unqualified_type_names = True
nitpicky = False


# Links that lead out of this folder, to an example, work where the Markdown is read in the repository. On the site they
# lead to a copy of that file.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[\w./-]+\.(?:md|toml|py))(?:#[\w-]+)?\)")


def _copied(app: Any, page: str, source: list[str]) -> None:
    here = (Path(app.srcdir) / page).parent

    def link(found: re.Match[str]) -> str:
        file = (here / found[2]).resolve()
        inside = file.is_relative_to(Path(app.srcdir).resolve())
        return found[0] if inside else f"{{download}}`{found[1].replace('`', '')} <{found[2]}>`"

    source[0] = _OUTSIDE.sub(link, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _copied)
