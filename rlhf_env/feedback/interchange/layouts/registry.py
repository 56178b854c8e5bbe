"""Which layouts are known, which of them a file is in, and its rows read by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rlhf_env.delimited import misspelt
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange.gathering import Located, Reading, UnknownFields
from rlhf_env.feedback.interchange.layouts.arena import BATTLE, CHATBOT_ARENA, KAGGLE_ARENA, MT_BENCH, WSDM
from rlhf_env.feedback.interchange.layouts.helpsteer import HELPSTEER2, HELPSTEER2_PREFERENCE, HELPSTEER3
from rlhf_env.feedback.interchange.layouts.layout import CellKind, Layout
from rlhf_env.feedback.interchange.layouts.nectar import NECTAR
from rlhf_env.feedback.interchange.layouts.oasst import OASST_MESSAGES, OASST_TREES
from rlhf_env.feedback.interchange.layouts.pairs import HH_RLHF, TRL_PAIRS, TRL_UNPAIRED
from rlhf_env.feedback.interchange.layouts.pku import PKU, PKU_SINGLE
from rlhf_env.feedback.interchange.layouts.prism import PRISM_CONVERSATIONS, PRISM_UTTERANCES
from rlhf_env.feedback.interchange.layouts.shp import SHP
from rlhf_env.feedback.interchange.layouts.summarize import SUMMARIZE, SUMMARIZE_AXES
from rlhf_env.feedback.interchange.layouts.ultrafeedback import (
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_ARGILLA,
    ULTRAFEEDBACK_ARGILLA_1,
    ULTRAFEEDBACK_BINARIZED,
)
from rlhf_env.feedback.interchange.layouts.webgpt import WEBGPT
from rlhf_env.plain_data import read_json
from rlhf_env.types import JsonObject, JsonView

LAYOUTS: tuple[Layout, ...] = (
    HH_RLHF,
    SUMMARIZE,
    SUMMARIZE_AXES,
    SHP,
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_BINARIZED,
    ULTRAFEEDBACK_ARGILLA,
    ULTRAFEEDBACK_ARGILLA_1,
    HELPSTEER2,
    HELPSTEER2_PREFERENCE,
    HELPSTEER3,
    NECTAR,
    PKU,
    PKU_SINGLE,
    CHATBOT_ARENA,
    MT_BENCH,
    BATTLE,
    KAGGLE_ARENA,
    WSDM,
    WEBGPT,
    OASST_TREES,
    OASST_MESSAGES,
    PRISM_UTTERANCES,
    PRISM_CONVERSATIONS,
    TRL_PAIRS,
    TRL_UNPAIRED,
)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}


def layout_named(name: str) -> Layout:
    """Raises ConfigError, which names all of them."""
    if name not in _BY_NAME:
        raise ConfigError(f"unknown layout {name!r}: it is one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def layouts_of(row: JsonView) -> list[Layout]:
    """The layouts that a row may be in: of two, one of which asks for all columns of the other and more, the larger."""
    fitting = [layout for layout in LAYOUTS if layout.of(row)]
    return [one for one in fitting if not any(set(one.known_by) < set(other.known_by) for other in fitting)]


def detected(where: str, row: JsonView) -> Layout | None:
    """The layout of a row. Raises DataError where it may be in several."""
    fitting = layouts_of(row)
    if len(fitting) > 1:
        names = " and ".join(f"{one.name} ({', '.join(one.known_by)})" for one in fitting)
        raise DataError(
            f"{where}: this row has the columns of the layouts {names}: say which one is meant, "
            f"preferences import --layout {fitting[0].name}"
        )
    return fitting[0] if fitting else None


def in_layout(
    rows: Iterable[Located], layout: Layout, *, named: bool, table: bool, reading: Reading
) -> Iterator[Located]:
    """The rows that are in the layout; what is not comes as what is wrong with it.

    `named`: the user said so, and did not leave it to the columns of the first row. `table`: all cells are text.
    Columns that the layout does not know are counted.
    """
    known = {column.name for column in layout.columns} | set(layout.known_by)
    cells = {column.name: column.cell for column in layout.columns}
    for where, row in rows:
        if isinstance(row, DataError):
            yield where, row
            continue
        wrong = _other(row, layout, named)
        if wrong is not None:
            yield where, wrong
            continue
        if not layout.mixes:
            for name in row:
                if name not in known:
                    reading.passes_over(f"column {name!r}")
        yield where, _typed(row, cells) if table else row


def out_of_layouts(rows: Iterable[Located]) -> Iterator[Located]:
    """Rows of a file that began in no published layout: one that is in such a layout comes as what is wrong with it."""
    for where, row in rows:
        published = isinstance(row, Mapping) and any(layout.of(row) for layout in LAYOUTS if not layout.mixes)
        if published and (other := [one for one in layouts_of(row) if not one.mixes]):
            yield (
                where,
                DataError(
                    f"this row is in the layout {other[0].name}, and the file began in another one: one file holds one "
                    "layout, split it"
                ),
            )
        else:
            yield where, row


def _other(row: JsonView, layout: Layout, named: bool) -> DataError | None:
    """What is wrong with a row that has not the layout's columns."""
    missing = [name for name in layout.known_by if name not in row]
    if not missing:
        return None
    others = [one for one in layouts_of(row) if one is not layout]
    if others and not named:
        return DataError(
            f"this row is in the layout {others[0].name}, and the file began in {layout.name}: one file holds one "
            "layout, split it"
        )
    near = misspelt(list(row), missing)
    has = ", ".join(map(repr, row)) or "nothing"
    return UnknownFields(
        list(row),
        (),
        near
        or f"{', '.join(missing)}: missing, and the layout {layout.name} has {', '.join(layout.known_by)}; this row "
        f"has {has}",
    )


def _typed(row: JsonView, cells: Mapping[str, CellKind]) -> JsonObject | DataError:
    """A row of a table with the values that its cells spell."""
    problems: list[str] = []
    made = {
        name: _value(name, value, cells.get(name, "text"), problems) if isinstance(value, str) else value
        for name, value in row.items()
    }
    return DataError(*problems) if problems else made


_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _value(name: str, cell: str, kind: CellKind, problems: list[str]) -> object:
    if kind == "text":
        return cell
    if not cell.strip():
        return None
    if kind == "flag":
        return _FLAGS.get(cell.strip().lower(), cell)
    try:
        return read_json(cell)
    except (ValueError, RecursionError):
        if kind == "json" and cell.lstrip()[:1] in ("[", "{"):
            problems.append(
                f"{name}: a list or an object in a table must be JSON, got {cell[:40]!r}: save the set as JSON lines "
                "or Parquet"
            )
        return cell
