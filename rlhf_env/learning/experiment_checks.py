"""What a file of an experiment gets wrong, found before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from rlhf_env import plugins
from rlhf_env.envs.reward_tables import RewardTable
from rlhf_env.envs.success import Success
from rlhf_env.envs.task_labels import require_tasks
from rlhf_env.envs.tasks import load_task
from rlhf_env.errors import ConfigError, Problem, did_you_mean, under
from rlhf_env.learning import processes
from rlhf_env.learning.devices import find_device, require_dtype
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.launched import asks_for_shards
from rlhf_env.learning.making_agents import agent_factory, agent_trains, cannot_shard, imitates, learns_off_policy
from rlhf_env.learning.sharding import SHARD
from rlhf_env.learning.stopping import Brake, MaxKL, Patience, load_stopping_rules
from rlhf_env.learning.tracking import check_trackers
from rlhf_env.own_code import OwnCode, names_code
from rlhf_env.types import Task

AHEAD = ("engine", "ahead")

NO_COPY = "a language model is copied to the other process"


def check_plugins(experiment: Experiment) -> Task:
    """The task. Raises ConfigError for everything that the tables of plugins get wrong, as far as no model is needed
    to find it."""
    experiment = experiment.located()
    problems: list[str] = []

    def look(check: Callable[[], Any], *keys: str) -> Any:
        try:
            with under(*keys):
                return check()
        except ConfigError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)

    task: Task = look(lambda: load_task(experiment.task), "task")
    for keys, rewards in (("rewards",), experiment.rewards), (("evaluation", "rewards"), experiment.evaluation.rewards):
        for part, table in rewards.items():
            look(partial(_check_reward, part, table, task, measured=len(keys) > 1), *keys, part)
    agent = look(lambda: agent_factory(experiment.agent), "agent")
    if agent is not None:
        if imitates(experiment.agent) and experiment.preferences is not None:
            name = experiment.agent.get("name")
            said = f"{name} imitates every text it is given, and of judged answers some were rejected: "
            said += f"dpo and kto learn from judgements; {name} learns the completions of a [task], of a file, say"
            if "preferences" in experiment.agent:
                said = f"{name} imitates, and has its own pairs: leave out `preferences` but for that in [agent]"
            look(partial(_refuse, said), "preferences")
        look(lambda: _check_writer(experiment), "policy")
        look(lambda: _check_budget(experiment), "budget")
        look(lambda: _check_stopping(experiment), "stopping")
    look(lambda: _check_shard(experiment), *SHARD)
    look(lambda: _check_ahead(experiment), *AHEAD)
    look(lambda: check_trackers(experiment.trackers), "trackers")
    look(lambda: require_dtype(find_device(experiment.policy.device), experiment.policy.torch_dtype), "policy")
    for name in experiment.evaluation.metrics or ():
        look(
            partial(plugins.host().load, "metric", OwnCode(name) if names_code(name) else name), "evaluation", "metrics"
        )
    look(lambda: check_success(experiment), "evaluation")
    if problems:
        raise ConfigError(*problems)
    return task


def _refuse(said: str) -> None:
    raise ConfigError(Problem(said))


def check_success(experiment: Experiment) -> None:
    """Raises ConfigError where pass@k is asked for, and what success is told by is not measured."""
    part, known = (
        Success.read(experiment.evaluation.success).part,
        [*experiment.rewards, *experiment.evaluation.rewards],
    )
    if experiment.evaluation.pass_at and part not in known:
        said = f"success = {experiment.evaluation.success!r}: no part of the reward is called {part!r}"
        raise ConfigError(Problem(f"{said}{did_you_mean(part, known)}", ("success",)))


def _check_writer(experiment: Experiment) -> None:
    """A copy of the policy, or another engine, writes only for who corrects for it."""
    if experiment.policy.writer == "server":
        if agent_trains(experiment.agent):
            said = f"which tokens a server drew is not known, and {experiment.agent_label} learns from them: take "
            raise ConfigError(Problem(f'"server": {said}best_of_n or reference, or writer = "vllm"', ("writer",)))
        return
    name, who = "writer_dtype", "a copy of the policy"
    if experiment.policy.writer is not None:
        name, who = "writer", "another engine"
    wanted = getattr(experiment.policy, name)
    if wanted not in (None, "auto") and not learns_off_policy(experiment.agent):
        raise ConfigError(
            Problem(
                f'"{wanted}": {who} would write, and {experiment.agent_label} has no importance ratio that corrects '
                "for it: leave it out, or take an agent that has one (grpo, rloo, ppo, reinforce), or to which it does "
                "not matter who wrote a text (dpo, kto, rejection)",
                (name,),
            )
        )


def _check_ahead(experiment: Experiment) -> None:
    """Another process writes ahead only for who corrects for it, whole texts, for a language model on a processor."""
    if not experiment.engine.ahead:
        return
    policy, environment = experiment.policy, experiment.environment
    agent, given = experiment.agent_label, experiment.preferences is not None or imitates(experiment.agent)
    device = "cpu"
    with suppress(ConfigError):  # of a device that is not here, which is said elsewhere
        device = find_device(policy.device)
    problems = {
        f"{agent} learns from given texts, and nothing is written": given,
        f"texts would be of weights that are one update old, and {agent} has no importance ratio that corrects for it: "
        "leave it out, or take an agent that has one (grpo, rloo, ppo, reinforce), or to which it does not matter who "
        "wrote a text (dpo, kto, rejection)": not given and not learns_off_policy(experiment.agent),
        f"{NO_COPY}, and a table of logits is none": policy.model == "table",
        f'writer = "{policy.writer}" writes in its place: leave one out': policy.writer is not None,
        f'writer_dtype = "{policy.writer_dtype}" is of a copy in this process: leave one out': (
            policy.writer_dtype not in (None, "auto")
        ),
        "whole texts are written ahead, and here one action is a part of a text: leave out action_length and view": (
            environment.length < environment.max_new_tokens
        ),
        f'the other process computes on processors, and the policy on {device}: set device = "cpu"': device != "cpu",
        "a launcher has started several processes, which all learn: start one": processes.current().size > 1,
    }
    if found := [Problem(f"ahead = 1: {said}") for said, holds in problems.items() if holds]:
        raise ConfigError(*found)


def wants_shards(experiment: Experiment) -> bool:
    """Whether its file, or the configuration of accelerate that started it, asks for a model in parts."""
    return experiment.engine.shard or asks_for_shards()


def _check_shard(experiment: Experiment) -> None:
    if not wants_shards(experiment):
        return
    require_shardable(experiment)
    if processes.current().size == 1:
        raise ConfigError(
            Problem(
                "shard = true divides a model among several processes, and this is one: start them with `torchrun "
                "--nproc-per-node 2 -m rlhf_env train FILE` (docs/scale.md), or leave it out"
            )
        )


def require_shardable(experiment: Experiment) -> None:
    """Raise ConfigError where its model or its agent cannot be divided, as far as that is known before it is loaded."""
    if experiment.policy.model == "table":
        raise ConfigError(Problem("shard = true: a table of logits has no layers to divide: leave it out"))
    if why := cannot_shard(experiment.agent):
        raise ConfigError(Problem(f"shard = true: {why}: take another agent, or leave it out"))


def _check_budget(experiment: Experiment) -> None:
    """Epochs are passes over data, and who writes no texts spends none."""
    budget = experiment.budget
    stored = experiment.preferences is not None or imitates(experiment.agent)
    if budget.epochs is not None and not stored:
        said = "epochs are passes over given answers or stored preferences, and this agent learns from what it writes: "
        raise ConfigError(Problem(said + "budget episodes, generated_tokens or updates", ("epochs",)))
    if imitates(experiment.agent) and not experiment.preferences and not budget.is_of_stored_data:
        raise ConfigError(
            f"{experiment.agent_label} writes no texts: budget epochs, updates, gradient_steps, gradient_tokens "
            "or seconds"
        )


def _check_stopping(experiment: Experiment) -> None:
    """What `Experiment` asks of `max_kl` and `patience` is asked of the same rules in tables."""
    rules, problems = load_stopping_rules(experiment.stopping), []
    for name in rules.of(Patience) + rules.of(Brake) if experiment.evaluation.every == 0 else ():
        said = f"[stopping.{name}] counts evaluations on the way, and there are none: set `every` in [evaluation]"
        problems.append(Problem(said, (name,)))
    for name, rule in rules.rules.items():
        if isinstance(rule, Brake) and rule.measure == "gold" and not experiment.evaluation.rewards:
            said = f"[stopping.{name}] watches gold, and there is none: name a reward in [evaluation.rewards]"
            problems.append(Problem(said, (name,)))
    answers = imitates(experiment.agent)
    if answers and experiment.max_kl is not None:
        said = f"max_kl is measured on texts that the agent writes, and {experiment.agent_label} writes none"
        problems.append(Problem(said))
    for name in rules.of(MaxKL) if experiment.preferences is not None or answers else ():
        why = (
            "and with `preferences` it writes none"
            if experiment.preferences is not None
            else "and this one writes none"
        )
        said = f"[stopping.{name}] is measured on texts that the agent writes, {why}"
        problems.append(Problem(said, (name,)))
    if problems:
        raise ConfigError(*problems)


def _check_reward(part: str, settings: Any, task: Task | None, *, measured: bool) -> None:
    if isinstance(settings, (bool, str, list)):  # what a file may hold and no reward is
        raise ConfigError(f"[rewards] {part}: a weight or a table of settings is needed, got {settings!r}")
    if isinstance(settings, (int, float, Mapping)):
        table = RewardTable.read(part, settings)
        table.require_plugin()
        if measured:
            table.require_unshaped()
        if table.tasks is not None and task is not None:
            require_tasks(part, table.tasks, task)
