"""Judgements as files that other programs write and read.

| format               | holds                        | is read by                                          |
|----------------------|------------------------------|-----------------------------------------------------|
| `jsonl`              | judgements of all kinds      | this package, one JSON object a line                |
| `csv`                | judgements of all kinds      | spreadsheets; cells that look like formulas quoted  |
| `trl`                | weighted pairs               | TRL: JSON lines of prompt, chosen, rejected         |
| `trl-conversational` | weighted pairs               | TRL: the same as messages with roles                |
| `trl-unpaired`       | weighted pairs and ratings   | TRL: JSON lines of prompt, completion, label        |
| `datasets`           | weighted pairs               | `datasets.load_from_disk`, columns as in `trl`      |
| `argilla`            | judgements of all kinds      | Argilla 2: what `dataset.records.to_json` writes    |
| `label-studio`       | judgements of all kinds      | Label Studio 1: the "JSON" export and import        |

What a format has no place for is in its `provenance` (who wrote a response, token ids, order shown, ...), so that
`read_judgements(path)` gives back exactly what `write_judgements` was given, or the weighted pairs of it where the
format holds pairs. Files of other programs have no provenance, and are read without.

    write_judgements("pairs.jsonl", store.judgements(), "trl")
    store.add(read_judgements("pairs.jsonl"))

Data sets of preferences as others publish them are read, too: `layouts` has a declaration for each.

TRL's formats are those of its documentation since 0.11, Argilla's those of its Python SDK 2.0 to 2.8.
"""

from rlhf_env.feedback.interchange.files import (
    FORMATS,
    Format,
    judgements_in,
    may_hold_judgements,
    read_judgements,
    without_emails,
    write_judgements,
)
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.jsonl import read_jsonl, write_jsonl
from rlhf_env.feedback.interchange.label_config import LabelConfig
from rlhf_env.feedback.interchange.layouts import LAYOUTS, Layout, layout_named, layouts_page

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Format",
    "LabelConfig",
    "Layout",
    "Reading",
    "judgements_in",
    "layout_named",
    "layouts_page",
    "may_hold_judgements",
    "read_judgements",
    "write_judgements",
    "without_emails",
    "read_jsonl",
    "write_jsonl",
]
