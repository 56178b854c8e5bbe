"""The layouts in which data sets of preferences are published, one file for each family.

A layout is one declaration (`Layout`): the columns that it is known by, what each column becomes and who says so, and
the function that reads a row. `registry.py` lists them; docs/preference-layouts.md is made of the declarations.
"""

from rlhf_env.feedback.interchange.layouts.layout import Layout, PublishedColumn
from rlhf_env.feedback.interchange.layouts.page import layouts_page
from rlhf_env.feedback.interchange.layouts.registry import LAYOUTS, detected, in_layout, layout_named, out_of_layouts

__all__ = [
    "LAYOUTS",
    "PublishedColumn",
    "Layout",
    "detected",
    "in_layout",
    "layout_named",
    "layouts_page",
    "out_of_layouts",
]
