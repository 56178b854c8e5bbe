"""Laws by name, and their results as JSON: those that come with the library, and those of a run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.laws.form import Analysis, Law, Outcome
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json

SHIPPED = Path(__file__).parent / "results"
_FORMAT = 1
_AS_SHIPPED = 1e-6  # relative: another processor adds up in another order

MODULES: Mapping[str, str] = {
    name: name.replace("-", "_")
    for name in (
        "kl-placement",
        "kl-ends",
        "plackett-luce",
        "entropic",
        "reward-variance",
        "accuracy-predicts",
        "clip-low",
        "clip-high",
        "random-rewards",
        "entropy-reward",
        "sum-collapse",
        "separate-normalising",
        "off-policy-baseline",
        "forgetting",
        "forward-kl",
        "best-of-n-wins",
        "best-of-n-bound",
        "soft-labels",
        "chi-squared",
        "std-of-groups",
        "length-bias",
        "leave-one-out",
        "displacement",
        "more-labels",
        "larger-proxy",
        "label-noise",
        "worst-case",
        "uncertainty",
        "study-more-labels",
        "study-larger-proxy",
        "study-label-noise",
        "study-worst-case",
        "study-uncertainty",
    )
}
"""Laws in the order of the table, and the module of each."""


def load_law(name: str) -> Law:
    """The law of this name. Raises ConfigError for others."""
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"there is no law {name!r}{hint} (rlhf-env lab laws --list names them)")
    law: Law = import_module(f"{__package__}.{MODULES[name]}").LAW
    return law


def as_record(law: Law, analysis: Analysis, outcome: Outcome | None = None) -> JsonObject:
    """Plain data: the law in words, the analysis, and what the run said (None: it has not been run)."""
    record: dict[str, object] = {
        "format": _FORMAT,
        "name": law.name,
        "claim": law.claim,
        "source": law.source,
        "prediction": law.prediction,
        "smallest": law.smallest,
        "at": law.at,
        "axis": law.axis,
        "command": f"rlhf-env lab laws {law.name}",
        "analysis": asdict(analysis),
        "verdict": "not run yet",
    }
    if outcome is not None:
        record |= {
            "verdict": outcome.verdict,
            "effect": asdict(outcome.effect),
            "would_decide": outcome.would_decide,
            "effects": list(outcome.effects),
            "places": [
                {"at": place.at, "effect": asdict(place.effect), "verdict": place.verdict} for place in outcome.places
            ],
            "turns": outcome.turns,
            "processor_seconds": round(outcome.seconds, 1),
        }
    return record


def write_record(folder: Path, record: JsonObject) -> Path:
    """Write `folder`/NAME.json, whole or not at all; a plan (no effects yet) NAME.plan.json, beside an older result."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record['name']}{'' if 'effects' in record else '.plan'}.json"
    write_json(file, record)
    return file


def shipped(names: Sequence[str] = tuple(MODULES)) -> list[JsonObject]:
    """The results that come with the library; where there is none, the law and "not run yet"."""
    return [_shipped(name) for name in names]


def _shipped(name: str) -> JsonObject:
    file = SHIPPED / f"{name}.json"
    if not file.exists():
        law = load_law(name)
        return {"name": law.name, "claim": law.claim, "source": law.source, "verdict": "not run yet"}
    try:
        record: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}: install rlhf-env again") from error
    return record


def compared_with_shipped(record: JsonObject) -> str:
    """In words: whether a run gave what is shipped."""
    before = _shipped(str(record["name"]))
    if "effects" not in before:
        return "no result of this law is shipped to compare with"
    old, new = (np.array(one["effects"], dtype=np.float64) for one in (before, record))
    if len(old) == len(new) and np.allclose(old, new, rtol=_AS_SHIPPED, atol=_AS_SHIPPED):
        return f"as shipped: the same {len(old)} effects"
    same = "the same verdict" if before["verdict"] == record["verdict"] else f"shipped: {before['verdict']}"
    return f"other numbers than shipped ({len(old)} seeds there); {same}"
