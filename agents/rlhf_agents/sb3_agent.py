"""Stable-Baselines3's own PPO and A2C (Raffin et al. 2021, JMLR 22(268)) as an agent of this project.

The loop, the sampling and the rewards (with the KL penalty) are this project's; the update is their code. A rollout
becomes their rollout buffer, in which each token that the agent wrote is one step, with its value, log-probability and
reward, and whether it begins a text. Then their `compute_returns_and_advantage` and `train()` run unchanged. A response
has one step per token in every view, so all views train alike. As in their `collect_rollouts`, a text that was cut from
outside gets gamma times the value of its last state added to its last reward.

It is slow. Their minibatches consist of single tokens in random order, and the text before each token is read again.
With the same number of gradient steps, `ppo` reads a text once per pass, and this agent once for each minibatch that
holds a token of it.

Five things differ from `PPO(...).learn(...)` on purpose. An observation in the buffer is the position of a token in the
rollout instead of the text before it, so that a minibatch reads a text once for all its tokens. The buffer is float64
instead of float32, so that the first ratio is 1 to the last digits. Minibatch orders come from the agent's own stream.
The optimizer refuses a gradient that is not finite. Dropout is off, and `gamma` is 1 by default. As there, advantages
are normalised in each minibatch, except in a last minibatch of one token.

When: a result is to be compared with their PPO or A2C on equal terms, or a doubt is about this project's own. When not:
otherwise; `ppo` has the same loss, and reads a text once per pass.

Left out: gSDE, orthogonal initialisation and callbacks, which have no meaning here. To let Stable-Baselines3 own the
loop too, see `sb3`.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.errors import DataError, RunFailed
from rlhf_env.learning.advantages import paid_to_actions
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.functional import require_exact_sampling, require_stated
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.schedules import ScheduleName, multiplier
from rlhf_env.policies import Policy, ValueHead
from rlhf_env.policies.precision import has_float64, refined
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, Share, settings
from rlhf_env.types import JsonView, Observation, ResetOptions, State

with lent_generators(0):  # rich, which they import, draws a number as it loads
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.logger import Logger

PLACE = gym.spaces.Box(0, np.iinfo(np.int64).max, (2,), np.int64)  # an observation: row and position of a token


class TextActorCritic(nn.Module):
    """The policy interface of `PPO.train` and `A2C.train`, for a policy of this project and a linear value head.

    Places int64[N, 2] are (row, position) in the texts of the last call of `read`. The value of a place is that of the
    state from which its token is drawn; the place after the last token stands for the state in which the text ends.
    """

    def __init__(
        self,
        _observation_space: Any,
        _action_space: Any,
        lr_schedule: Any,
        *,
        writer: Policy,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: JsonView | None = None,
        use_sde: bool = False,  # they pass it always
    ) -> None:
        super().__init__()
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5}  # as their ActorCriticPolicy has it for Adam
        self.writer = writer
        self.value_head = ValueHead(writer.hidden_size, dtype=writer.dtype, device=writer.device)
        learned = [p for p in (*writer.parameters(), *self.value_head.parameters()) if p.requires_grad]
        self.optimizer = optimizer_class(learned, lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]
        self._tokens, self._mask = torch.empty(0, 0), torch.empty(0, 0)

    def read(self, rollout: Rollout) -> None:
        """Places refer to the texts of this rollout from now on."""
        self._tokens = F.pad(rollout.tokens, (0, 1), value=self.writer.pad_id)
        self._mask = F.pad(rollout.mask, (0, 1), value=False)

    def evaluate_actions(self, places: Tensor, _actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, log-probability and entropy of the tokens at `places`, float64[N] each, with gradient.

        The actions are not needed: they are the tokens at those places.
        """
        row, position, tokens, mask = self._texts_at(places)
        where = torch.zeros_like(mask)
        where[row, position] = True
        scores = self.writer.evaluate(tokens, mask, where)
        values = self.value_head(scores.hidden[row, position])
        return refined(values), refined(scores.logprobs[row, position]), refined(scores.entropy[row, position])

    def predict_values(self, places: Tensor) -> Tensor:
        """float64[N]: the value of each place."""
        row, position, tokens, mask = self._texts_at(places)
        hidden = self.writer.evaluate(tokens, mask, torch.zeros_like(mask)).hidden
        return refined(self.value_head(hidden[row, position]))

    def _texts_at(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The texts that `places` are in, each once, and their mask; and row and position [N] of the places in them."""
        rows, row = torch.unique(places[:, 0], return_inverse=True)
        end = int(places[:, 1].max()) + 1
        return row, places[:, 1], self._tokens[rows, :end], self._mask[rows, :end]

    def set_training_mode(self, _mode: bool) -> None:
        """Dropout stays off: with it, the ratio of new to old probabilities would not start at 1."""
        self.writer.eval()


class ExactRolloutBuffer(RolloutBuffer):  # type: ignore[misc]  # untyped base
    """Their rollout buffer in float64, where the device has it."""

    def reset(self) -> None:
        super().reset()
        exact = np.float64 if has_float64(self.device) else np.float32
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, getattr(self, name).astype(exact))


class SB3:
    """Learns from rollouts of this project's loop with the code of Stable-Baselines3."""

    trains = True
    cannot_shard = "learns with Stable-Baselines3's own optimizer and batches"

    @settings
    class Config:
        """The names, and but for `gamma` the defaults, are those of Stable-Baselines3's PPO."""

        algorithm: Literal["ppo", "a2c"] = "ppo"
        """"a2c" makes one gradient step on the whole rollout. (Their A2C differs by default in `learning_rate` 7e-4,
        `gae_lambda` 1.0 and `normalize_advantage` false.)"""
        group_size: AtLeastOne = 1
        """Neighbouring rows that answer one prompt; they are not compared."""
        learning_rate: Positive = 3e-4
        """The learning rate at the start."""
        schedule: ScheduleName = "constant"
        """Its course over the budget."""
        n_epochs: AtLeastOne = 10
        """Passes over a rollout (ppo)."""
        batch_size: Annotated[int, Ge(2)] = 64
        """Tokens per gradient step (ppo); one token has no spread."""
        gamma: Share = 1.0
        """Discount per token (theirs: 0.99)."""
        gae_lambda: Share = 0.95
        """GAE's lambda."""
        clip_range: Positive = 0.2
        """How far a token's probability ratio may move the loss (ppo)."""
        clip_range_vf: NonNegative = 0.0
        """Bound on a value's change per update, in units of reward (ppo; 0: none)."""
        target_kl: NonNegative = 0.0
        """The update stops before a gradient step from 1.5 times this far from the rollout's policy (ppo; 0: never)."""
        normalize_advantage: bool = True
        """Mean 0 and variance 1 in each minibatch."""
        ent_coef: NonNegative = 0.0
        """Weight of the entropy bonus."""
        vf_coef: NonNegative = 0.5
        """Weight of the value's mean squared error."""
        max_grad_norm: Positive = 0.5
        """The gradient is scaled down to this norm."""
        use_rms_prop: bool = True
        """RMSprop as in the A2C paper instead of Adam (a2c)."""

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size, least=1)
        require_exact_sampling(setup.policy.sampling, "sb3")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.learner = _learner(setup, config)
        self.actor_critic: TextActorCritic = self.learner.policy
        self.optimizer = self.actor_critic.optimizer
        self.optimizer.register_step_pre_hook(lambda *_: self._before_step())
        self._order = setup.stream("sb3 minibatches")
        self._without_signal = 0  # steps of the present update with a gradient of exactly 0

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """Run their `train()` on a buffer of the rollout's tokens."""
        require_stated(rollout, "sb3")
        spending, learner = self.setup.engine.spending, self.learner
        before, self._without_signal = spending.gradient_steps, 0
        learner.rollout_buffer = self._buffer(self.setup.engine.local(rollout))
        learner._current_progress_remaining = 1.0 - self.setup.engine.progress
        with lent_generators(int(self._order.integers(2**32))):  # they draw the orders of minibatches there
            learner.train()
        self.optimizer.zero_grad(set_to_none=True)
        taken = spending.gradient_steps - before
        return {
            **_metrics(learner.logger),
            "gradient_steps": float(taken),
            "steps_without_signal": self._without_signal / max(taken + self._without_signal, 1),
        }

    @torch.no_grad()
    def _buffer(self, rollout: Rollout) -> ExactRolloutBuffer:
        """The agent's tokens, text after text, with their returns and advantages."""
        actor_critic, config = self.actor_critic, self.config
        actor_critic.set_training_mode(False)
        actor_critic.read(rollout)
        places = rollout.actions.nonzero()  # row by row, each in the order of its text
        if len(places) < 2:
            raise DataError(f"sb3 needs two tokens or more, and this rollout has {len(places)}: raise num_envs")
        row, position = places.unbind(dim=1)
        tokens = rollout.tokens[row, position]
        scores = [actor_critic.evaluate_actions(part, part) for part in torch.split(places, config.batch_size)]
        values, logprobs = (torch.cat(parts) for parts in list(zip(*scores, strict=True))[:2])
        stated = rollout.logprobs[row, position]
        if config.algorithm == "a2c" and float((logprobs - stated).abs().max()) > 0.1:
            raise DataError(
                "a2c learns only from texts of the present policy, and another policy wrote these: use texts that the "
                'agent has just written, or algorithm = "ppo"'
            )

        rewards = paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions)[row, position]
        starts = torch.cat([row.new_ones(1, dtype=torch.bool), row[1:] != row[:-1]])
        cut = starts.roll(-1) & rollout.truncated[row]  # the last tokens of the texts that were cut
        if cut.any():
            ends = torch.stack([row, rollout.lengths[row]], dim=1)[cut]
            rewards[cut] += config.gamma * torch.cat(
                [actor_critic.predict_values(part) for part in torch.split(ends, config.batch_size)]
            )

        buffer = ExactRolloutBuffer(
            len(places),
            PLACE,
            self.learner.action_space,
            device=self.learner.device,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        columns = (column.cpu().numpy() for column in (places, tokens, rewards, starts))
        for place, token, reward, start, value, logprob in zip(*columns, values, stated, strict=True):
            buffer.add(place, token, reward, start, value, logprob)
        # Every text ends in the buffer, so nothing comes after its last step.
        buffer.compute_returns_and_advantage(last_values=torch.zeros(1), dones=np.ones(1))
        return buffer

    def _before_step(self) -> None:
        """Refuse a gradient that is not finite before it changes the parameters; count the other steps.

        With a gradient of exactly 0 the step changes nothing: their optimizers pass over parameters without one.
        """
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.optimizer.zero_grad(set_to_none=True)
            rate = self.config.learning_rate
            raise RunFailed(f"the gradient is not finite: lower the learning_rate ({rate:g}) or look at the rewards")
        if not any(bool(gradient.any()) for gradient in gradients):
            self.optimizer.zero_grad(set_to_none=True)
            self._without_signal += 1
            return
        self.setup.engine.spending.add(gradient_steps=1)

    def state_dict(self) -> State:
        moments = self.optimizer.state_dict()["state"]  # by parameter index; the learning rate is set at each update
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "value_head": self.actor_critic.value_head.state_dict(),
            "optimizer": {str(index): dict(values) for index, values in moments.items()},
            "order": dict(self._order.bit_generator.state),
        }

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.actor_critic.value_head.load_state_dict(state["value_head"])
        # A copy, because the optimizer updates its state in place.
        moments = {int(index): copy.deepcopy(dict(values)) for index, values in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self._order.bit_generator.state = dict(state["order"])


def _learner(setup: Setup, config: SB3.Config) -> Any:
    """Their PPO or A2C without an environment, constructed as in their `load`."""
    shared: dict[str, object] = {
        "policy": TextActorCritic,
        "env": None,
        "learning_rate": lambda left: config.learning_rate * multiplier(config.schedule, 1.0 - left),
        "n_steps": 1,  # for their first buffer, which is never filled: each update has its own
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": config.normalize_advantage,
        "policy_kwargs": {"writer": setup.policy},
        "device": setup.engine.device,
        "_init_setup_model": False,
    }
    if config.algorithm == "a2c":
        learner = A2C(**shared, use_rms_prop=config.use_rms_prop)
    else:
        learner = PPO(
            **shared,
            n_epochs=config.n_epochs,
            batch_size=config.batch_size,
            clip_range=config.clip_range,
            clip_range_vf=config.clip_range_vf or None,
            target_kl=config.target_kl or None,
        )
    learner.observation_space = PLACE
    learner.action_space = gym.spaces.Discrete(setup.policy.vocab_size)
    learner.n_envs = 1
    learner._setup_model()
    learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner


def _metrics(logger: Any) -> Metrics:
    """The metrics that `train()` recorded, renamed to this project's names where it has one."""
    recorded = {name.removeprefix("train/"): float(value) for name, value in logger.name_to_value.items()}
    renamed = {"learning_rate": "lr", "policy_gradient_loss": "policy_loss"}
    metrics = {renamed.get(name, name): value for name, value in recorded.items()}
    del metrics["n_updates"]
    metrics.pop("loss", None)  # theirs, of ppo, is the last minibatch's alone
    metrics["entropy"] = -metrics.pop("entropy_loss")
    if math.isnan(metrics["explained_variance"]):  # all returns are equal
        metrics["explained_variance"] = 0.0
    return metrics
