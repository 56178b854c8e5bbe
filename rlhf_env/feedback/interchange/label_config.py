"""Label Studio's labeling configuration: which tag asks what, about which columns of a task's data.

A control tag (Pairwise, Rating, ...) has a `name`, which results call `from_name`, and a `toName`, the names of the
object tags (Text, List, ...) that it is about; the `value` of an object tag names a column, "$answer1". An export does
not have the configuration with it: Label Studio shows it under Settings, Labeling Interface, Code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rlhf_env.errors import DataError
from rlhf_env.plain_data import read_file

_LARGEST = 2**20  # bytes
_HIGHEST = {"rating": ("maxRating", 5), "number": ("max", 0)}  # the attribute of a tag that ends its scale, its default


@dataclass(frozen=True, kw_only=True)
class ControlTag:
    """What asks people something."""

    type: str
    """In small letters, as results call it: "pairwise"."""
    about: tuple[str, ...]
    """The columns of the data that it is about, in the order of `toName`."""
    highest: float | None = None
    """The end of its scale, for a rating or a number that has one."""


@dataclass(frozen=True)
class LabelConfig:
    """The control tags of a labeling configuration, by name."""

    controls: Mapping[str, ControlTag]
    shown: tuple[str, ...]
    """The columns that are shown as texts."""

    @classmethod
    def read(cls, path: str | Path) -> LabelConfig:
        """Of a file with the configuration as XML. Raises DataError."""
        content = read_file(path, _LARGEST)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise DataError(f"{path}: a labeling configuration has no document type: take it out")
        try:
            tree = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            raise DataError(f"{path}: not the XML of a labeling configuration: {error}") from error
        tags = [tag for tag in tree.iter() if tag.get("name")]
        columns = {
            tag.get("name", ""): value.lstrip("$")
            for tag in tags
            if not tag.get("toName") and (value := tag.get("value") or tag.get("valueList") or "").startswith("$")
        }
        controls = {}
        for tag in tags:
            if tag.get("toName"):
                about = [name.strip() for name in tag.get("toName", "").split(",")]
                controls[tag.get("name", "")] = ControlTag(
                    type=tag.tag.lower(), about=tuple(columns.get(name, name) for name in about), highest=_highest(tag)
                )
        if not controls:
            raise DataError(f"{path}: no tag with a name and a toName: not a labeling configuration")
        return cls(controls, tuple(columns.values()))


def _highest(tag: ElementTree.Element) -> float | None:
    attribute, usual = _HIGHEST.get(tag.tag.lower(), ("", 0))
    try:
        return float(tag.get(attribute, usual)) or None
    except ValueError:
        return None
