"""Writing episodes: an agent acts in the environment until every row has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rlhf_env.envs.actions import Actions
from rlhf_env.envs.stop_strings import completions
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import end_ids
from rlhf_env.errors import ConfigError, EnvironmentMisuse, RunFailed
from rlhf_env.learning.agent import Agent, Decision, called, decision_of, wishes_of
from rlhf_env.learning.rollout import Rollout, finished
from rlhf_env.types import Bool, Episode, Float, Int, Observation, Score


def collect(
    env: TextVectorEnv, agent: Agent, options: Mapping[str, object] | None = None, *, seed: int | None = None
) -> Rollout:
    """Reset the environment and write until every row has ended; the finished episodes, in the order of the rows.

    `options` are added to what `agent.begin()` asks for. The environment must be in autoreset mode DISABLED (whole
    episodes only). Raises RewardError where a reward part fails more often than it may; rows that it failed on, and
    that are to be skipped, are there without a score.

    Rewards that wait outside this process score texts that have ended while the others are being written (see
    `TextVectorEnv.scoring_meanwhile`).
    """
    return collect_with(env, agent, {**wishes_of(agent), **(options or {})}, seed=seed)


def collect_with(
    env: TextVectorEnv, agent: Agent, options: Mapping[str, object], *, seed: int | None = None
) -> Rollout:
    """`collect` under exactly these options, whatever the agent would ask for."""
    if env.metadata["autoreset_mode"].value != "Disabled":
        raise ConfigError("collect() needs an environment made with autoreset_mode='Disabled'")
    observation, _ = env.reset(seed=seed, options=options)
    prompts = env.prompts
    ended: dict[int, tuple[Episode, Score]] = {}
    extras: dict[str, Float] = {}
    with env.scoring_meanwhile():
        while len(ended) < env.num_envs:
            writing = env.writing
            asked: Observation = {**observation, "writing": writing, "prompts": prompts}
            if env.stops is not None:
                asked |= {"stops": env.stops, "stop_states": env.stop_states}
            decision = decision_of(agent, asked)
            before = observation["attention_mask"].sum(axis=1)
            _lay_out(extras, decision, writing, before, env)
            try:
                observation, _, _, _, infos = env.step(action_for(env, decision))
            except EnvironmentMisuse as error:
                raise RunFailed(f"{called(agent)}: the environment refuses what act() gave: {error}") from error
            news = finished(infos)
            if not news and np.array_equal(observation["attention_mask"].sum(axis=1), before):
                raise RunFailed(
                    f"{called(agent)} wrote nothing in any row: act() must give at least one token to unfinished rows"
                )
            ended.update({row: (episode, score) for row, episode, score in news if row not in ended})
    rows = [ended[row] for row in range(env.num_envs)]
    env.reward.require_few_failures([score for _, score in rows], [episode for episode, _ in rows])
    rollout = Rollout.from_episodes(
        [episode for episode, _ in rows],
        [score for _, score in rows],
        pad_id=env.tokenizer.pad_id,
        group_size=env.group_size,
        extras={
            name: [values[row, len(episode.prompt_ids) : len(episode.ids)] for row, (episode, _) in enumerate(rows)]
            for name, values in extras.items()
        },
    )
    # What the agent stated counts, whether or not the environment asked for it as part of the action.
    carried = dict(rollout.extras)
    logprobs = carried.pop("logprobs").masked_fill(~rollout.actions, 0.0)
    return replace(rollout, logprobs=logprobs, extras=carried, stated=True)


def action_for(env: TextVectorEnv, decision: Decision) -> Actions:
    """The environment's action from an agent's decision: with probabilities where the space asks for them."""
    if not env.reward.needs_logprobs:
        return decision.tokens
    return {"tokens": decision.tokens, "probs": np.exp(decision.logprobs)}


def _lay_out(extras: dict[str, Float], decision: Decision, writing: Bool, lengths: Int, env: TextVectorEnv) -> None:
    """Put log-probabilities and per-token extras, [B, k], at the places [B, L] where the tokens will be written."""
    tokens = np.asarray(decision.tokens).reshape(env.num_envs, -1)
    width = env.max_prompt_tokens + env.max_new_tokens
    ends = np.isin(tokens, end_ids(env.tokenizer))
    after_end = ends.cumsum(axis=1) - ends > 0
    written = writing[:, None] & (tokens < env.tokenizer.vocab_size) & ~after_end
    if env.stops is not None:
        completing = completions(env.stops, env.stop_states, tokens, written)[1]
        written &= completing.cumsum(axis=1) - completing == 0
    places = lengths[:, None] + np.cumsum(written, axis=1) - 1
    written &= places < width
    rows, columns = np.nonzero(written)
    for name, values in {**decision.extras, "logprobs": decision.logprobs}.items():
        target = extras.setdefault(name, np.zeros((env.num_envs, width)))
        target[rows, places[rows, columns]] = np.asarray(values).reshape(tokens.shape)[rows, columns]
