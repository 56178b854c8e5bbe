"""How much better an answer is reaches dpo: from a column, from two ratings, from a store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare

ROWS: list[dict[str, Any]] = [
    {"prompt": "a=", "chosen": "b", "rejected": "a", "margin": 2.5},
    {"prompt": "b=", "chosen": "aa", "rejected": "b", "chosen_rating": 5, "rejected_rating": 2},
    {"prompt": "ab=", "chosen": "ba", "rejected": "ab"},
    {"prompt": "ba=", "chosen": "ab", "rejected": "b", "score_chosen": 7.0, "score_rejected": 7.0},
]


def experiment(path: Path, **agent: Any) -> dict[str, Any]:
    return {
        "policy": {"tokenizer": "alphabet:ab="},
        "task": {"name": "echo", "length": 2},
        "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
        "rewards": {"task": 1.0, "kl": 0.1},
        "agent": {"name": "dpo", **agent},
        "preferences": str(path),
        "budget": {"epochs": 2},
    }


def pairs(tmp_path: Path, rows: list[dict[str, Any]], place: str = "file") -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if place == "file":
        return file
    with PreferenceStore(tmp_path / "pairs.db") as store:
        store.add(read_judgements(file))
    return tmp_path / "pairs.db"


@pytest.mark.parametrize("place", ["file", "store"])
def test_each_pair_has_its_own(tmp_path: Path, place: str) -> None:
    workplace = prepare(experiment(pairs(tmp_path, ROWS, place), margin="offset"))
    rollout = workplace.source.next(workplace.agent)
    margins = rollout.part("margin").tolist()
    found = {rollout.episodes[i].prompt.text: (margins[i], margins[i + 1]) for i in range(0, 8, 2)}
    assert math.isnan(found.pop("ab=")[0])
    assert found == {"a=": (2.5, 2.5), "b=": (3.0, 3.0), "ba=": (0.0, 0.0)}
    assert rollout.returns().tolist() == [1.0, 0.0] * 4, "a margin is no reward"
    assert len(workplace.train().rows) == 2


def test_where_nobody_said_by_how_much_it_is_refused_before_the_run(tmp_path: Path) -> None:
    file = pairs(tmp_path, [ROWS[2]])
    with pytest.raises(DataError, match="the agent learns from margins, and none of the 1 pairs has one"):
        prepare(experiment(file, margin="offset"))
    prepare(experiment(file))
