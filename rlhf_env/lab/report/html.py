"""What our HTML pages share: one look, and an environment that lets text through as text only."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from rlhf_env.shown_text import for_page


def environment(package: str = "rlhf_env.lab.report") -> jinja2.Environment:
    """For the templates of a package; every value is escaped, and nothing in it is missing unnoticed."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def style() -> str:
    """The style sheet of the report, which stands in its template."""
    report = resources.files("rlhf_env.lab.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return report.partition("<style>")[2].partition("</style>")[0]


def _shown(value: object) -> Any:
    """Every text on a page goes through here, before it is escaped; what is HTML already has gone through."""
    return for_page(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
