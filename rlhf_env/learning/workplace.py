"""Where an experiment runs: its parts, built by name, and their training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, get_args

from rlhf_env.envs.over_long import fitted_task
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import NoReward, RewardMix
from rlhf_env.envs.stop_strings import require_stop_strings
from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import keeping_special
from rlhf_env.errors import ConfigError, Problem, under
from rlhf_env.learning import processes
from rlhf_env.learning.agent import Agent, Setup, traits
from rlhf_env.learning.devices import find_device, free_on
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.experiment_checks import AHEAD, NO_COPY, check_plugins, wants_shards
from rlhf_env.learning.loop import Row, Training, train
from rlhf_env.learning.making_agents import agent_trains, imitates, learns_off_policy, make_agent
from rlhf_env.learning.memory_need import Load, memory_need, remedies
from rlhf_env.learning.models import load_policy, load_tokenizer_of, most_tokens, shares_prefixes, with_vocabulary_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.processes import Processes
from rlhf_env.learning.prompt_lengths import require_prompts_fit
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_models import keep_base, model_folder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.sharding import shard, weights_told
from rlhf_env.learning.sources import EnvSource, Source
from rlhf_env.learning.spending import Spending
from rlhf_env.learning.stopping import Brake, MaxKL, Patience, load_stopping_rules
from rlhf_env.learning.teachers import TeacherDtype
from rlhf_env.own_code import files_in, require_unchanged
from rlhf_env.policies.ahead_writer import AheadWriter
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.low_precision import fallback
from rlhf_env.policies.policy import HasContext, Policy, Sampling
from rlhf_env.policies.server_writer import ServerWriter
from rlhf_env.policies.sizes import in_bytes, size_of, too_large
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.policies.vllm_writer import VllmSettings, VllmWriter
from rlhf_env.types import ScoresItself

OR_OVER_LONG = "; or set over_long in [environment]"


@dataclass(frozen=True)
class Workplace:
    """An experiment built: the environment, the agent, what they share, and where the agent's rollouts come from.

    workplace = build(Experiment.load("experiment.toml"))
    training = workplace.train()
    print(training.reason, training.rows[-1]["rollout/reward"])
    """

    experiment: Experiment
    env: TextVectorEnv
    setup: Setup
    agent: Agent
    source: Source
    notes: tuple[str, ...] = ()
    """What whoever looks at the run's numbers should know of the texts behind them: how many were cut or left out."""
    code: Mapping[str, str] = field(default_factory=dict)
    """sha256, by path, of the files of your own code that it was built with."""

    def start_writer(self) -> None:
        """Start the engine of `[policy] writer`, or the process of `[engine] ahead`, if its texts are learned from
        here; once. Ask a server for a token.

        ConfigError, in one line, where it is not installed, cannot write for this model, or does not answer.
        """
        policy, wanted = self.setup.policy, self.experiment.policy
        if wanted.writer is not None and self.setup.engine.processes.size > 1:
            with under("policy", "writer"):
                raise ConfigError(f'writer "{wanted.writer}" writes in one process, and a launcher has started several')
        if isinstance(policy, LanguageModel) and isinstance(policy.writer, ServerWriter):
            with under("policy", "server"):
                policy.writer.check(policy)
            return
        learns = getattr(self.agent, "trains", True) and isinstance(self.source, EnvSource)
        if learns and self.experiment.engine.ahead:
            if not isinstance(policy, LanguageModel):
                raise ConfigError(Problem(f"ahead = 1: {NO_COPY}, and {type(policy).__name__} is none", AHEAD))
            if policy.writer is None:
                policy.writer = AheadWriter(policy, self.setup.spending.updates)
            return
        if wanted.writer is None or not learns or not isinstance(policy, LanguageModel) or policy.writer is not None:
            return
        with under("policy", "writer"):
            longest = self.env.max_prompt_tokens + self.env.max_new_tokens
            if policy.context is not None and longest > policy.context:
                raise ConfigError(
                    f'writer "{wanted.writer}": max_prompt_tokens + max_new_tokens = {longest} tokens are more than '
                    f"the {policy.context} that the model reads: lower one of the two"
                )
            policy.writer = VllmWriter(policy, wanted.vllm or VllmSettings(), longest=longest)

    def train(
        self,
        *,
        run: RunFolder | None = None,
        resume: bool = False,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        lower_is_better: bool = False,
        on_update: Callable[[Row, float], None] | None = None,
        on_rollout: Callable[[int, Rollout], None] | None = None,
    ) -> Training:
        """Train as the experiment says, until its budget is spent or one of its rules for stopping has a reason.

        Args:
            run: where metrics and checkpoints go, an open run folder; without one, nothing is written and the rows of
                metrics are in the result.
            resume: continue from the newest checkpoint in `run`, if there is one.
            evaluate: numbers of the agent as it now is, asked before training and every `[evaluation] every` updates;
                `lambda: Evaluator.of(workplace)().metrics` gives those of the evaluation.
            lower_is_better: of the measure `[evaluation] best`, by which the best agent is known.
            on_update: called with each row of metrics and the share of the budget that is spent.
            on_rollout: called with the update and its rollout, every `[texts] rollouts_every` updates.

        An agent that does not train is only evaluated. Raises ConfigError where the experiment needs something that is
        missing here: evaluations for `patience`, a source of pairs for `preferences`; and what `train` raises.
        """
        self.start_writer()
        try:
            return self._train(run, resume, evaluate, lower_is_better, on_update, on_rollout)
        finally:
            policy = self.setup.policy
            if isinstance(policy, LanguageModel) and isinstance(policy.writer, AheadWriter):
                policy.writer.close()
                policy.writer = None

    def _train(
        self,
        run: RunFolder | None,
        resume: bool,
        evaluate: Callable[[], Mapping[str, float]] | None,
        lower_is_better: bool,
        on_update: Callable[[Row, float], None] | None,
        on_rollout: Callable[[int, Rollout], None] | None,
    ) -> Training:
        experiment, setup = self.experiment, self.setup
        stopping = load_stopping_rules(experiment.located().stopping_tables())
        if evaluate is None and (counting := stopping.of(Patience) + stopping.of(Brake)):
            rule = f"patience = {experiment.patience}" if experiment.patience else f"[stopping.{counting[0]}]"
            raise ConfigError(f"{rule} counts evaluations: pass `evaluate`, or use rlhf_env.run")
        if experiment.preferences is not None and isinstance(self.source, EnvSource):
            raise ConfigError(
                "`preferences` are what the agent learns from: pass a source of pairs, or use rlhf_env.run"
            )
        if traits(self.agent).imitates and isinstance(self.source, EnvSource):
            raise ConfigError(
                f"{experiment.agent_label} learns from given answers and not from its own texts: pass a source "
                "of demonstrations, or use rlhf_env.run"
            )
        if run is not None:
            run.began_with("initial weights", weights_told(setup.reference))
            keep_base(run.path, setup.policy, setup.tokenizer)
            run.note(self.notes)
        several = setup.engine.processes
        rows = several.from_first(lambda: read_metrics(run.path) if run is not None and resume else [])
        if evaluate is not None and not rows:
            rows = [{"update": 0, "spent/generated_tokens": 0, **{f"eval/{k}": v for k, v in evaluate().items()}}]
            if run is not None:
                run.log(rows[0])
        first = [] if several.first_of(run is not None) else rows
        if not getattr(self.agent, "trains", True):
            return Training("does not train", first)
        if rows:
            stopping(rows[0])  # what was there before training is there to be improved on
        training = train(
            self.agent,
            self.source,
            experiment.budget.for_epochs_of(self.source),
            spending=setup.spending,
            engine=setup.engine,
            run=run,
            resume=resume,
            checkpoint_every=experiment.checkpoint_every,
            evaluate=evaluate,
            evaluate_every=experiment.evaluation.every,
            stop_when=stopping,
            worth=partial(_worth, f"eval/{experiment.evaluation.best}", -1.0 if lower_is_better else 1.0),
            on_update=on_update,
            on_rollout=on_rollout,
            rollouts_every=experiment.texts.rollouts_every,
        )
        return replace(training, rows=[*first, *training.rows])

    @property
    def rewarded(self) -> bool:
        """Whether there is a reward to measure texts by: not where an agent imitates and none was asked for."""
        return _is_rewarded(self.env.reward, self.experiment)

    @cached_property
    def evaluation_rewards(self) -> RewardMix | None:
        """The rewards that only the evaluator sees (the gold reward), or None. Raises ConfigError."""
        rewards = self.experiment.located().evaluation.rewards
        if not rewards:
            return None
        require_unchanged(self.code, rewards)
        setup = self.setup
        provided = {"reference": setup.reference, "tokenizer": setup.tokenizer, "device": setup.engine.device}
        with under("evaluation", "rewards"):
            mix = load_rewards(rewards, self.env.task, provided, measured=True)
        return shared_by(setup.engine.processes, mix)

    @property
    def evaluation_sampling(self) -> Sampling | None:
        """How the answers of an evaluation are drawn; None: as in training."""
        changes = self.experiment.evaluation.decoding
        return replace(self.setup.policy.sampling, **changes) if changes else None

    def check_prompts(self) -> None:
        """Encode the prompts of training and evaluation: the first 10,000, 8 of a task without end.

        Raises DataError with all of them that do not fit the environment, or the model's context with an answer.
        """
        policy = self.setup.policy
        require_prompts_fit(
            [self.env.task, held_out(self.env.task)],
            self.env.tokenizer,
            max_prompt_tokens=self.env.max_prompt_tokens,
            max_new_tokens=self.env.max_new_tokens,
            context=policy.context if isinstance(policy, HasContext) else None,
            remedy=OR_OVER_LONG,
        )


def asks_prompts(experiment: Experiment) -> bool:
    """Whether texts will be written to the prompts of its task: who imitates, and is not rewarded, writes none."""
    if not imitates(experiment.agent) or experiment.evaluation.rewards:
        return True
    if experiment.rewards == Experiment().rewards:
        return isinstance(load_task(experiment.task), ScoresItself)
    return set(experiment.rewards) != {"none"}


def _is_rewarded(reward: RewardMix, experiment: Experiment) -> bool:
    asked_for = any(not isinstance(part, NoReward) for part in reward.parts.values())
    return asked_for or bool(experiment.evaluation.rewards)


def _worth(measure: str, sign: float, row: Row) -> float | None:
    value = row.get(measure)
    return sign * value if isinstance(value, (int, float)) else None


def build(experiment: Experiment, *, policy: Policy | None = None) -> Workplace:
    """Load the model, make the environment and the agent. `policy` stands in for `experiment.policy.model`.

    Raises ConfigError; unknown names, wrong settings and bad files of prompts are found, all of them, before a model
    is loaded.
    """
    written, experiment = experiment, experiment.located()
    task = check_plugins(experiment)
    settings = experiment.environment
    with under("policy"):
        tokenizer = load_tokenizer_of(experiment.policy)
        if policy is None:
            _say_if_memory_is_short(experiment)
            longest = experiment.environment.max_new_tokens
            # Then "auto" makes no copy; any other has been refused.
            if not learns_off_policy(experiment.agent) or experiment.engine.ahead:
                experiment = replace(experiment, policy=replace(experiment.policy, writer_dtype=None))
            policy = load_policy(experiment.policy, tokenizer, task, max_new_tokens=longest, seed=experiment.seed)
        with under("model"):
            tokenizer = with_vocabulary_of(tokenizer, policy, experiment.policy.model)
    with under("environment", "keep_special"):
        tokenizer = keeping_special(tokenizer, settings.keep_special)
    with under("environment"):
        require_stop_strings(settings.stop, tokenizer)
    engine = Engine(
        spending := Spending(),
        str(policy.device),
        most_tokens=most_tokens(policy),
        shares_prefixes=shares_prefixes(policy),
        processes=processes.current(),
    )
    if engine.processes.size > 1 and isinstance(policy, (LanguageModel, TabularPolicy)):
        policy.together = engine.processes
    reference = policy.frozen_copy()
    if wants_shards(experiment):
        shard(policy, reference, engine.processes)
    reference.reseed(experiment.seed + 1)
    policy.reseed(experiment.seed)
    if (server := experiment.policy.server) is not None:
        for writing in (policy, reference):
            if isinstance(writing, LanguageModel):
                writing.writer = ServerWriter(server, tokenizer)
    with under("rewards"):
        rewards = experiment.rewards
        if imitates(experiment.agent) and rewards == Experiment().rewards and not isinstance(task, ScoresItself):
            rewards = {"none": NoReward()}  # whoever imitates needs none
        reward = load_rewards(rewards, task, {"reference": reference, "tokenizer": tokenizer, "device": engine.device})
        reward = shared_by(engine.processes, reward)
    if reward.kl is None and (measuring := load_stopping_rules(experiment.stopping_tables()).of(MaxKL)):
        raise ConfigError(
            Problem(
                "max_kl is measured by a KL penalty, and none is among [rewards]: add one (`kl = 0.0` measures and "
                "costs nothing)",
                ("max_kl",) if experiment.max_kl is not None else ("stopping", measuring[0]),
            )
        )
    said = fallback(experiment.policy.writer_dtype, policy.device.type)
    notes: tuple[str, ...] = (said,) if said else ()
    if not imitates(experiment.agent) or _is_rewarded(reward, experiment):  # texts will be written
        longest = settings.max_prompt_tokens
        if isinstance(policy, HasContext) and policy.context is not None:  # the last token of a text is never read
            longest = min(longest, policy.context + 1 - settings.max_new_tokens)
        with under("task"):
            task, more = fitted_task(task, tokenizer, longest, settings.over_long)
        notes += more
    env = TextVectorEnv(
        settings.num_envs,
        task=task,
        reward=reward,
        tokenizer=tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        action_length=settings.length,
        autoreset_mode="Disabled",
        stop=settings.stop,
    )
    setup = Setup(
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        reward=env.reward,
        batch_size=settings.num_envs,
        action_length=settings.length,
        max_new_tokens=settings.max_new_tokens,
        seed=experiment.seed,
        engine=engine,
        spending=spending,
        task=env.task,
    )
    with under("agent"):
        agent = make_agent(experiment.agent, setup)
    source = EnvSource(env, seed=experiment.seed, spending=spending, reference=reference, policy=policy)
    return Workplace(written, env, setup, agent, source, notes, files_in(experiment.tables_of_plugins()))


def shared_by(several: Processes, reward: RewardMix) -> RewardMix:
    """The same rewards; where several processes train one run, its first asks them for all."""
    if several.size > 1:
        reward.for_all = several
    return reward


def _say_if_memory_is_short(experiment: Experiment) -> None:
    """Warn of a run that will need more memory than its device has free, as far as its model's configuration tells.

    Raises DataError where the weights alone are more.
    """
    settings = experiment.policy
    if settings.model in ("tiny", "table"):
        return
    size = size_of(base_and_adapter(model_folder(settings.model))[0], settings.revision)
    free = free_on(device := find_device(settings.device))
    if size is None or free is None:
        return
    if size.weights(settings.torch_dtype) > free:
        with under("model"):
            raise too_large(settings.model, size, settings.torch_dtype, free, device)
    need = memory_need(size, settings, load_of(experiment, parts=_parts(experiment)))
    if need.total > free:
        said = f"the run will need about {need}, and {in_bytes(free)} are free on {device}"
        warnings.warn(
            f"{said}: {remedies(settings, trains=agent_trains(experiment.agent))}", RuntimeWarning, stacklevel=3
        )


def _parts(experiment: Experiment) -> int:
    return processes.current().size if wants_shards(experiment) else 1


def load_of(experiment: Experiment, *, processes: int = 1, parts: int = 1) -> Load:
    """What each of `processes` does at a time, of which `parts` divide the model among them."""
    environment = experiment.environment
    longest = environment.max_prompt_tokens + environment.max_new_tokens
    rows = min(environment.num_envs, experiment.policy.rows_at_once)
    here = -(-environment.num_envs // processes)
    optimization = _micro_batches_of(experiment.agent)
    limits = [here * longest, optimization.get("micro_batch_tokens", Optimization().micro_batch_tokens) or math.inf]
    limits.append((optimization.get("micro_batch_size", 0) or math.inf) * longest)
    return Load(
        trains=agent_trains(experiment.agent),
        separate_value_model=experiment.agent.get("value_model") == "separate",
        written=min(rows, here) * longest,
        rows=min(rows, here),
        learned=int(min(limits)),
        teachers=teachers_weights(experiment),
        parts=parts,
    )


def _micro_batches_of(agent: Any) -> Mapping[str, Any]:
    """Those settings of the agent, or of the one that it wraps, which bound its backward passes."""
    while isinstance(agent, Mapping) and isinstance(agent.get("agent"), Mapping):
        agent = agent["agent"]
    return {name: value for name, value in agent.items() if name.startswith("micro_batch") and isinstance(value, int)}


def teachers_weights(experiment: Experiment) -> int:
    """Bytes of the weights of all models that tables of the agent and of rewards name as `teacher`, each once."""
    tables: list[Any] = [*experiment.rewards.values(), *experiment.evaluation.rewards.values()]
    agent: Any = experiment.agent
    while isinstance(agent, Mapping):
        tables.append(agent)
        agent = agent.get("agent")
    named = {
        (table["teacher"], table.get("teacher_dtype", table.get("dtype", experiment.policy.dtype)))
        for table in tables
        if isinstance(table, Mapping) and isinstance(table.get("teacher"), str)
    }
    total = 0
    for name, dtype in named:
        size = size_of(base_and_adapter(model_folder(name))[0])
        if size is not None and dtype in get_args(TeacherDtype):
            total += size.weights(PolicySettings(dtype=dtype).torch_dtype)
    return total
