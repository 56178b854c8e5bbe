"""Stable-Baselines3 trains our language models in our environment: a bridge, not an agent.

    env = TextVecEnv(TextVectorEnv(32, task="echo"))
    policy = tiny_language_model(...)                     # any LanguageModel; it is trained in place
    PPO(LanguageModelPolicy, env, policy_kwargs={"language_model": policy}).learn(100_000)

Stable-Baselines3 owns the loop here: it steps the environment, stores single positions instead of episodes, and stops
by its own count. This is for code that uses Stable-Baselines3 already; evaluate the result like any other (`policy` is
still a `Policy`). The agent `sb3` (in `sb3_agent`) is the reverse: this project's loop, budget, KL penalty and
checkpoints with the update of Stable-Baselines3.

It needs the token view (one token is one action) and a reward without parts that need log-probabilities, because
actions in Stable-Baselines3 do not carry them. Every token is a sample whose whole prefix is read again, so expect a
small fraction of the speed of this project's own PPO.

Only this file and `sb3_agent` import stable_baselines3; `sb3_masked` next to them has the policy for sb3-contrib's
MaskablePPO.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from rlhf_env.envs.actions import Actions
from rlhf_env.envs.picture import TextPicture
from rlhf_env.envs.text_vector_env import TextVectorEnv, row_of
from rlhf_env.errors import ConfigError
from rlhf_env.learning.functional import require_exact_sampling
from rlhf_env.policies import LanguageModel, ValueHead
from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.types import Bool, Float, JsonObject, Observation

Indices = int | Iterable[int] | None  # of rows, as Stable-Baselines3 asks; None is all

# ---------------------------------------------------------------- the environment


class TextVecEnv(VecEnv):  # type: ignore[misc]  # untyped base
    """A TextVectorEnv as a vector environment of Stable-Baselines3; all rows still advance in one step.

    Rows that end are reset in the same step, whatever the autoreset mode of `env`; their last observation is
    `info["terminal_observation"]`. `set_options` takes the environment's reset options, the same for all rows. Wrap it
    in Stable-Baselines3's VecMonitor to have returns and lengths in its log.
    """

    def __init__(self, env: TextVectorEnv) -> None:
        if env.reward.needs_logprobs:
            raise ConfigError(
                "a reward part asks how likely each action was, which a Stable-Baselines3 policy cannot state: "
                "leave that part (kl) out, or train with an agent of this project"
            )
        self.env = env  # first: the base class reads attributes through it
        self._actions: Actions = ()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Observation:
        if any(options != self._options[0] for options in self._options):
            raise ConfigError("reset options hold for the whole environment: give all rows the same")
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, _ = self.env.reset(seed=seeds, options=self._options[0] or None)
        self.reset_infos = [self.env.latest_info(row) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: Actions) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Observation, Float, Bool, list[JsonObject]]:
        rewards, terminated, truncated, row_infos = self.env.advance(self._actions)
        ended = terminated | truncated
        infos: list[JsonObject] = [dict(row_infos.get(row, {})) for row in range(self.num_envs)]
        observation = self.env.observation()
        if ended.any():
            for row in np.flatnonzero(ended):
                infos[row]["terminal_observation"] = row_of(observation, int(row))
                infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            observation, _ = self.env.reset(options={"reset_mask": ended})
            for row in np.flatnonzero(ended):
                self.reset_infos[row] = self.env.latest_info(int(row))
        return observation, rewards, ended, infos

    def get_images(self) -> Sequence[TextPicture | None]:
        """A picture of each row, for their `render`; None for each where the environment draws none."""
        shown = self.env.render() if self.env.render_mode == "rgb_array" else None
        return [None] * self.num_envs if shown is None else [np.asarray(picture) for picture in shown]

    def close(self) -> None:
        self.env.close()

    # The base class has one environment per row. Here the rows share one, so an attribute is the same for all.

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[object]:
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: object, indices: Indices = None) -> None:
        if len(self._rows(indices)) < self.num_envs:
            raise ConfigError(f"{attr_name} belongs to all rows: set it without indices")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: object, indices: Indices = None, **kwargs: object) -> list[object]:
        """Call a method of the environment once; an answer with one entry per row is split among the rows."""
        answer = getattr(self.env, method_name)(*args, **kwargs)
        if isinstance(answer, (tuple, list, np.ndarray)) and len(answer) == self.num_envs:
            return [answer[row] for row in self._rows(indices)]
        return [answer] * len(self._rows(indices))

    def env_is_wrapped(self, _wrapper_class: object, indices: Indices = None) -> list[bool]:
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Indices) -> Sequence[int]:
        return list(self._get_indices(indices))


# ---------------------------------------------------------------- the language model as a policy


class NextToken(BaseFeaturesExtractor):  # type: ignore[misc]  # untyped base
    """Features [B, V + H]: the logits of the next token of each text, and the hidden state that they come from."""

    def __init__(self, observation_space: gym.spaces.Dict, language_model: LanguageModel) -> None:
        super().__init__(observation_space, language_model.vocab_size + language_model.hidden_size)
        self.language_model = language_model

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """`observation` comes as floats [B, L]: ids (exact below 2^24) and mask."""
        mask = observation["attention_mask"].bool()
        lengths = mask.sum(1)
        longest = int(lengths.max())
        mask = mask[:, :longest]
        # Padding is on the right, where causal attention never looks: any id of the vocabulary will do there.
        tokens = observation["input_ids"][:, :longest].long().masked_fill(~mask, 0)
        rows = torch.arange(len(tokens), device=tokens.device)
        states, logits = forward_pass(
            self.language_model.model,
            tokens,
            torch.ones_like(mask),
            torch.arange(longest, device=tokens.device).expand_as(tokens),
            select=lambda states: states[rows, lengths - 1],
        )
        last = states[rows, lengths - 1]
        return torch.cat([logits / self.language_model.sampling.temperature, last], dim=1)

    def train(self, mode: bool = True) -> Self:
        """Dropout stays off: with it, the ratio of new to old probabilities would not start at 1."""
        super().train(mode)
        self.language_model.eval()
        return self


class ActorCriticSplit(nn.Module):
    """Splits [B, V + H] into logits for the actor and a hidden state for the critic, in place of their two MLPs."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.vocab_size, self.latent_dim_pi, self.latent_dim_vf = vocab_size, vocab_size, hidden_size

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return features[:, : self.vocab_size]

    def forward_critic(self, features: Tensor) -> Tensor:
        return features[:, self.vocab_size :]


class ValueColumn(ValueHead):
    """A ValueHead with outputs [B, 1], as Stable-Baselines3 expects."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).unsqueeze(-1)


class SpeaksAsTheModel:
    """A mixin for their actor-critic policies: an action is the next token, drawn from the language model itself.

    The value is a linear head on the model's last hidden state, initialised to zero; its loss also trains the model.
    Their weight initialisation is left out, because it would overwrite the model's weights.
    """

    def __init__(
        self, observation_space: Any, action_space: Any, lr_schedule: Any, *, language_model: LanguageModel, **rest: Any
    ) -> None:
        if not isinstance(action_space, gym.spaces.Discrete):
            raise ConfigError(f"a language model draws one token per step, not {action_space}: use rlhf_env/Token-v0")
        if action_space.n != language_model.vocab_size:
            raise ConfigError(
                f"the environment's tokenizer has {action_space.n} ids and the language model "
                f"{language_model.vocab_size}: they must agree"
            )
        require_exact_sampling(language_model.sampling, "a Stable-Baselines3 policy")
        self._constructed_with = {
            "observation_space": observation_space,
            "action_space": action_space,
            "language_model": language_model,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=NextToken,  # type: ignore[call-arg]  # the policy class we stand before
            features_extractor_kwargs={"language_model": language_model},
            **rest,
        )

    def _build(self: Any, lr_schedule: Any) -> None:
        model: LanguageModel = self.features_extractor.language_model
        self.mlp_extractor = ActorCriticSplit(model.vocab_size, model.hidden_size)
        self.action_net = nn.Identity()
        self.value_net = ValueColumn(model.hidden_size, dtype=model.dtype)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self: Any) -> JsonObject:
        """What `policy.save` stores with the weights."""
        return {**self._constructed_with, "lr_schedule": self._dummy_schedule}


class LanguageModelPolicy(SpeaksAsTheModel, ActorCriticPolicy):  # type: ignore[misc]  # untyped base
    """For PPO and A2C: `PPO(LanguageModelPolicy, env, policy_kwargs={"language_model": model})`."""
