"""One run, killed or not, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row, train
from rlhf_env.learning.rollout import Rollout, demonstrations, preference_pairs
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.sources import DataSource, Source
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies import tiny_language_model
from rlhf_env.testing import make_episode

MakeSource = Callable[[Workplace], Source]
UPDATES = 4


# ---------------------------------------------------------------- one run, and what it leaves


class Killed(BaseException):
    """Stands for kill -9 between two instructions: nothing in the code may catch it."""


@dataclass
class Recorder:
    """A source that remembers which prompts and tokens it handed out."""

    source: Source
    seen: list[Any] = field(default_factory=list)

    def next(self, agent: Any, /) -> Rollout:
        rollout = self.source.next(agent)
        self.seen.append([(e.prompt.id, e.ids.tobytes()) for e in rollout.episodes])
        return rollout

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        self.source.load_state_dict(state)


def in_the_environment(workplace: Workplace) -> Source:
    return workplace.source


def from_demonstrations(workplace: Workplace) -> Source:
    texts = ["a=", "b=", "ab=", "ba=", "aa="]
    shown = [make_episode(text, text[:-1], workplace.setup.tokenizer) for text in texts]
    pad = workplace.setup.tokenizer.pad_id
    return DataSource(len(shown), 2, lambda rows: demonstrations([shown[i] for i in rows], pad_id=pad), seed=5)


def from_pairs(workplace: Workplace) -> Source:
    tokenizer, texts = workplace.setup.tokenizer, ["a=", "b=", "ab="]
    good, bad = ([make_episode(text, said, tokenizer) for text in texts] for said in ("a", "bb"))
    pad = tokenizer.pad_id
    return DataSource(
        len(texts),
        2,
        lambda rows: preference_pairs([good[i] for i in rows], [bad[i] for i in rows], pad_id=pad),
        seed=5,
    )


@dataclass
class Left:
    """What a run left behind: everything it depends on, what it logged, what it consumed."""

    state: dict[str, Any]
    rows: list[Row]
    seen: list[Any]


def run_once(
    experiment: Experiment,
    folder: Path,
    make_source: MakeSource = in_the_environment,
    *,
    kill_after: int | None = None,
    dropout: float = 0.0,
    evaluated: bool = True,
    allow_partial: bool = False,
    **how: Any,
) -> Left:
    """A process's life: build everything anew, go on if there is something to go on with, train."""
    policy = None
    if dropout:
        policy = tiny_language_model(vocab_size=5, end_id=3, pad_id=4, dropout=dropout, dtype=torch.float32)
    workplace = build(experiment, policy=policy)
    recorder = Recorder(make_source(workplace))
    evaluator = Evaluator.of(workplace)

    def kill(row: Row, _share: float) -> None:
        if row["update"] == kill_after:
            raise Killed

    try:
        with RunFolder(
            folder, experiment.to_toml(), resume=True, allow_partial=allow_partial, tensorboard=False
        ) as run:
            train(
                workplace.agent,
                recorder,
                experiment.budget,
                spending=workplace.setup.spending,
                engine=workplace.setup.engine,
                run=run,
                resume=True,
                **{"checkpoint_every": 1, "on_update": kill, **how},
                evaluate=lambda: dict(evaluator().metrics),
                evaluate_every=2 if evaluated else 0,
            )
    except Killed:
        pass
    spending = {name: value for name, value in workplace.setup.spending.as_dict().items() if name != "seconds"}
    state = {"agent": workplace.agent.state_dict(), "source": recorder.state_dict(), "spending": spending}
    return Left(state, [_timeless(row) for row in read_metrics(folder)], recorder.seen)


def _timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != "spent/seconds"}


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(mine, theirs, f"{where}/{place}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert one.tobytes() == other.tobytes(), where
    else:
        assert one == other, where
