"""The pathologies of RLHF runs: each is told on a run made to show it, and none on a healthy one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.lab.evaluation.health import RULES, VALUE_WARM_UP, WARNINGS_FILE, WINDOW, Alert, Watch
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.types import Observation

Toy = Mapping[str, Any]


class Changed:
    """An agent with one method replaced: a bug put in."""

    trains = True

    def __init__(self, agent: Any, **methods: Callable[..., Any]) -> None:
        self.agent = agent
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)


def alerts(
    toy: Toy,
    folder: Path,
    agent: Mapping[str, Any],
    bug: Callable[[Workplace], Any] | None = None,
    updates: int = 2 * WINDOW,
    **changes: Any,
) -> list[Alert]:
    """What is told of a run: to whoever asks, and in its folder."""
    table = {**toy, "agent": agent, "budget": {"updates": updates}, "evaluation": {"prompts": 4}, **changes}
    workplace = build(Experiment.from_table(table))
    if bug is not None:
        workplace = replace(workplace, agent=bug(workplace))
    told: list[Alert] = []
    finished = run(workplace, folder, on_warning=told.append)
    assert list(finished.warnings) == told
    kept = json.loads((folder / WARNINGS_FILE).read_text()) if (folder / WARNINGS_FILE).exists() else []
    assert [Alert(**alert) for alert in kept] == told
    return told


def names(found: list[Alert]) -> list[str]:
    return [alert.name for alert in found]


@pytest.mark.parametrize(
    "agent",
    [
        {"name": "ppo", "lr": 3e-3},
        {"name": "grpo", "lr": 5e-4, "group_size": 4},
        {"name": "reference"},
    ],
)
def test_a_healthy_run_is_left_alone(toy: Toy, tmp_path: Path, agent: dict[str, Any]) -> None:
    told = alerts(
        toy, tmp_path / "run", agent, updates=VALUE_WARM_UP + WINDOW, rewards={"length": {"target": 3}, "kl": 0.1}
    )
    assert told == []
    assert not (tmp_path / "run" / WARNINGS_FILE).exists()


def test_old_weights_in_the_generator(toy: Toy, tmp_path: Path) -> None:
    """Texts are written by the reference and scored as the policy's: E log p/p_ref is -KL(ref || p)."""

    def honest(workplace: Workplace) -> Any:
        setup = workplace.setup
        return Changed(
            workplace.agent,
            act=lambda observation: Decision.of(setup.reference.write(observation, setup.action_length)),
        )

    def stated(workplace: Workplace) -> Any:
        """The same, with the log-probabilities of the policy instead of those of the writer."""
        setup = workplace.setup

        def act(observation: Observation, /) -> Decision:
            written = Decision.of(setup.reference.write(observation, setup.action_length))
            return replace(written, logprobs=_under_the_policy(workplace, observation, written))

        return Changed(workplace.agent, act=act)

    agent = {"name": "grpo", "lr": 1e-2, "group_size": 4, "clip": 0.0}
    rewards = {"length": {"target": 4}, "kl": 0.0}
    assert "negative KL" not in names(alerts(toy, tmp_path / "honest", agent, honest, rewards=rewards))
    (told,) = [
        it for it in alerts(toy, tmp_path / "stated", agent, stated, rewards=rewards) if it.name == "negative KL"
    ]
    assert "nats per response" in told.message
    assert "old weights" in told.remedy


def _under_the_policy(workplace: Workplace, observation: Observation, decision: Decision) -> np.ndarray[Any, Any]:
    import torch

    policy, logprobs = workplace.setup.policy, np.zeros(decision.tokens.shape)
    for row, (ids, mask, tokens) in enumerate(
        zip(observation["input_ids"], observation["attention_mask"], decision.tokens, strict=True)
    ):
        said = tokens[tokens < policy.vocab_size]
        text = torch.tensor([[*ids[mask > 0], *said]])
        where = torch.arange(text.shape[1])[None] >= int(mask.sum())
        with torch.no_grad():
            seen = policy.evaluate(text, torch.ones_like(where), where)
        logprobs[row, : len(said)] = seen.logprobs[0, int(mask.sum()) :].numpy()
    return logprobs


def test_entropy_collapse(toy: Toy, tmp_path: Path) -> None:
    """One answer is right, no KL is paid, and the steps are far too large."""
    agent = {"name": "grpo", "lr": 2e-2, "group_size": 4}
    right = {"task": {"name": "count", "target": 4}, "policy": {"model": "tiny", "tokenizer": "alphabet:ab:"}}
    told = alerts(toy, tmp_path / "run", agent, updates=4 * WINDOW, rewards={"task": 1.0}, **right)
    (collapse,) = [it for it in told if it.name == "entropy collapse"]
    assert "entropy fell from" in collapse.message
    rows = {row["update"]: row for row in read_metrics(tmp_path / "run")}
    assert rows[collapse.update]["rollout/entropy"] < 0.5 * rows[1]["rollout/entropy"]


@pytest.mark.parametrize("agent", [{"name": "grpo", "group_size": 4}, {"name": "ppo"}])
def test_a_reward_that_never_differs(toy: Toy, tmp_path: Path, agent: dict[str, Any]) -> None:
    """F26; the KL part still differs, and teaches to stay where one is."""

    def bug(workplace: Workplace) -> Any:
        workplace.env.reward._asked["length"].question = lambda episodes: np.full(len(episodes), 0.35)
        return workplace.agent

    rewards = {"length": {"target": 3}, "kl": 0.1}
    told = alerts(toy, tmp_path / "run", agent, bug, updates=WINDOW + 5, rewards=rewards)
    (found,) = [it for it in told if it.name == "no spread in rewards"]
    assert found.update == WINDOW, "once, as soon as it is clear"


def test_length_explosion(toy: Toy, tmp_path: Path) -> None:
    environment = {"num_envs": 8, "max_new_tokens": 16, "max_prompt_tokens": 4}
    told = alerts(
        toy,
        tmp_path / "run",
        {"name": "ppo", "lr": 1e-2},
        environment=environment,
        updates=4 * WINDOW,
        rewards={"length": {"target": 16}, "kl": 0.001},
    )
    (found,) = [it for it in told if it.name == "length explosion"]
    assert "tokens" in found.message
    assert "'length'" in found.remedy


def test_a_value_function_that_is_worse_than_the_mean(toy: Toy, tmp_path: Path) -> None:
    """It expects the opposite of what comes."""
    agent = {"name": "ppo", "lr": 1e-4, "lam": 1.0}

    def bug(workplace: Workplace) -> Any:
        inner: Any = workplace.agent
        inner._old_values = lambda rollout: (-rollout.returns()[:, None].expand(rollout.tokens.shape).clone(), None)
        return inner

    told = alerts(toy, tmp_path / "run", agent, bug, updates=VALUE_WARM_UP + 2 * WINDOW)
    (found,) = [it for it in told if it.name == "value worse than the mean"]
    assert found.update >= VALUE_WARM_UP


# ---------------------------------------------------------------- the watch


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    plain = {
        "rollout/kl": 0.1,
        "rollout/kl_std": 1.0,
        "rollout/reward_without_kl_std": 0.3,
        "rollout/reward_std": 0.4,
        "rollout/groups_without_spread": 0.2,
        "rollout/length": 10.0,
        "rollout/cut_at_limit": 0.1,
        "rollout/entropy": 1.0,
        "train/explained_variance": 0.3,
    }
    return [{"update": i + 1, "spent/episodes": 16 * (i + 1), **plain, **changes} for i in range(count)]


def watched(before: list[dict[str, Any]], **later: Any) -> list[str]:
    watch = Watch()
    for row in [*before, *rows(len(before) + 2 * WINDOW, **later)[len(before) :]]:
        watch(row)
    return names(watch.found)


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ({}, []),
        # The spread of KL is 1 nat, its standard error over 10 updates of 16 rows 0.079.
        ({"rollout/kl": -0.39}, []),
        # A tenth of what is learned from has to be the reward's.
        ({"rollout/reward_std": 2.9}, []),
        ({"rollout/reward_std": 3.1}, ["flat rewards"]),
        ({"rollout/reward_std": 3.1, "rollout/reward_without_kl_std": 0.0}, ["no spread in rewards"]),
        ({"rollout/kl": -0.41}, ["negative KL"]),
        ({"rollout/kl": -1e-6, "rollout/kl_std": 1e-9}, []),
        ({"rollout/entropy": 0.11}, []),
        ({"rollout/entropy": 0.09}, ["entropy collapse"]),
        ({"rollout/groups_without_spread": 0.7}, []),
        ({"rollout/groups_without_spread": 0.8}, ["no spread in rewards"]),
        ({"rollout/reward_without_kl_std": 0.0}, ["no spread in rewards"]),
        ({"rollout/length": 19.0}, []),
        ({"rollout/length": 21.0}, ["length explosion"]),
        ({"rollout/length": 13.0, "rollout/cut_at_limit": 0.9}, ["length explosion"]),
        ({"rollout/length": 12.0, "rollout/cut_at_limit": 0.9}, []),
        ({"train/explained_variance": 0.01}, []),
        ({"train/explained_variance": -0.01}, ["value worse than the mean"]),
        ({"rollout/entropy": None, "rollout/kl": None}, []),
    ],
)
def test_where_the_lines_are(later: dict[str, Any], told: list[str]) -> None:
    assert watched(rows(VALUE_WARM_UP), **later) == told


def test_each_kind_is_told_once_with_its_remedy() -> None:
    watch = Watch()
    for row in rows(4 * WINDOW, **{"rollout/groups_without_spread": 1.0}):
        watch(row)
    (alert,) = watch.found
    assert alert.update == WINDOW
    assert str(alert) == f"no spread in rewards, update 10: {alert.message}. {RULES[alert.name][1]}"


def test_a_resumed_run_repeats_nothing(tmp_path: Path) -> None:
    seen = rows(2 * WINDOW, **{"rollout/groups_without_spread": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))
    first = Watch()
    for row in seen:
        first(row)
    (tmp_path / WARNINGS_FILE).write_text(json.dumps([vars(alert) for alert in first.found]))
    watch = Watch.of(tmp_path)
    for row in rows(4 * WINDOW, **{"rollout/groups_without_spread": 1.0})[WINDOW:]:
        watch(row)  # from the checkpoint at update 10 on
    assert watch.found == first.found
    assert len(watch._rows) == 4 * WINDOW, "the rows done again replace what they repeat"
