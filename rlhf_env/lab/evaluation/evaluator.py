"""The external evaluator: what every agent is measured with, whatever it logs itself."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.over_long import FittedTask
from rlhf_env.envs.rewards import KLPart, RewardMix
from rlhf_env.envs.stop_strings import completions
from rlhf_env.envs.task_labels import mixture_of, task_label
from rlhf_env.envs.tasks import held_out, prompt_at
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import end_ids, prompt_ids
from rlhf_env.errors import ConfigError, DataError, Problem, RewardError, under
from rlhf_env.feedback.offline import load_fitting
from rlhf_env.lab.evaluation.asked import PromptsAsked, question_of
from rlhf_env.lab.evaluation.equal_texts import EqualTexts
from rlhf_env.lab.evaluation.metric import Measured, Metric
from rlhf_env.lab.evaluation.metrics import METRICS, metrics_of
from rlhf_env.learning.agent import Agent, Around, Decision, agent_state, asking, traits
from rlhf_env.learning.collect import collect_with
from rlhf_env.learning.recorded_texts import recorded_text
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import Workplace, shared_by
from rlhf_env.policies.low_precision import writing_exactly
from rlhf_env.policies.policy import HasContext, Policy, Sampling
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.types import (
    Episode,
    Float,
    JsonObject,
    JsonView,
    MasksActions,
    Observation,
    Prompt,
    Replies,
    Score,
    Stops,
    Tokenizer,
    TokenScorer,
)

# The most texts, all prompts together, that are read for an exact KL: no more than an evaluation samples.
_ENUMERABLE = 256
_OF_AN_ENDLESS_TASK = 4096  # prompts of training that are looked at: those of the lists within a mixture are among them


def longest_prompt(workplace: Workplace, tokenizer: Tokenizer) -> int:
    """The most tokens that a prompt of the evaluation may have.

    An agent that imitated read its answers after prompts of any length, and `max_prompt_tokens` bounded none of them:
    it may be asked what the model has room for.
    """
    env, policy = workplace.env, workplace.setup.policy
    if not traits(workplace.agent).imitates or workplace.rewarded:
        return env.max_prompt_tokens
    task, asked = held_out(env.task), workplace.experiment.evaluation.prompts
    longest = max(len(prompt_ids(tokenizer, prompt_at(task, i, {}))) for i in range(min(asked, task.size or asked)))
    if isinstance(policy, HasContext) and policy.context is not None:  # the last token of a text is never read
        longest = min(longest, policy.context + 1 - env.max_new_tokens)
    return max(longest, env.max_prompt_tokens)


@dataclass(frozen=True)
class Divergence:
    """log p(token) - log p_reference(token): summed over a response, an estimate of KL(policy || reference)."""

    reference: TokenScorer
    needs_logprobs = True

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        """B arrays, float64[T_b], in nats."""
        against = self.reference.response_logprobs(episodes)
        return [
            np.where(episode.actions, np.asarray(episode.logprobs) - logprobs, 0.0)
            for episode, logprobs in zip(episodes, against, strict=True)
        ]


@dataclass(frozen=True)
class Evaluation:
    """Numbers over the evaluation prompts, and the texts behind them."""

    metrics: Mapping[str, float]
    samples: Sequence[JsonView]


@dataclass(frozen=True)
class Evaluator:
    """Measures an agent on held-out prompts, or on all where the task holds none out (`asked` says which).

    Everyone gets the same prompts and the same sampling seeds.

    It measures every entry of `metrics`, which is the table `METRICS` and what the experiment names beside it, and the
    mean of each reward part as `part/<name>`.
    """

    workplace: Workplace
    gold: RewardMix | None
    metrics: tuple[Metric, ...] = METRICS
    on_texts: Callable[[Rollout], None] | None = None
    """Called with what was written, each time."""

    @classmethod
    def of(cls, workplace: Workplace, on_texts: Callable[[Rollout], None] | None = None) -> Evaluator:
        with under("evaluation", "metrics"):
            metrics = metrics_of(workplace.experiment.located().evaluation)
        return cls(workplace, workplace.evaluation_rewards, metrics, on_texts)

    def __call__(self, agent: Agent | None = None) -> Evaluation:
        """Evaluate `agent` (default: the workplace's); its state, its streams and the spending stay as they were."""
        agent = self.workplace.agent if agent is None else agent
        rollout, thrown_away = self.texts(agent)
        if self.on_texts is not None:
            self.on_texts(rollout)
        numbers: dict[str, float] = {}
        for name, values in self._raw(rollout.scores).items():
            if name.startswith("part/"):
                spoke = values[~np.isnan(values)]
                numbers |= {name: float(spoke.mean())} if spoke.size else {}
                silent = sum(name in score.abstained for score in rollout.scores)
                numbers |= {f"abstained/{name[5:]}": float(silent)} if silent else {}
        replies = self.measured(rollout, agent, thrown_away)
        for metric in self.metrics:
            numbers |= metric(replies)
        return Evaluation({**numbers, **self._by_task(replies), **self._earned(rollout)}, self._samples(rollout))

    def _by_task(self, replies: Measured) -> dict[str, float]:
        """`task/<label>/<reward>` and the number of replies of each task, where the run's task is a mixture."""
        if mixture_of(self.workplace.env.task) is None:
            return {}
        labels = np.array([task_label(episode.prompt) for episode in replies.episodes])
        numbers: dict[str, float] = {}
        for label in dict.fromkeys(labels.tolist()):
            own = labels == label
            numbers |= {f"task/{label}/{name}": float(values[own].mean()) for name, values in replies.rewards.items()}
            numbers[f"task/{label}/replies"] = float(own.sum())
        return numbers

    def _earned(self, rollout: Rollout) -> dict[str, float]:
        """`earned/<part>`: the part's share of the objective, where it is not its mean times one weight."""
        mix = self.workplace.env.reward
        if not mix.of_tasks:
            return {}
        raw = self._raw(rollout.scores)
        by_part = {name: self._weighted(rollout.scores, raw, [name], mix.weights, "part") for name in mix.parts}
        return {f"earned/{name}": float(values.mean()) for name, values in by_part.items()}

    def measured(self, rollout: Rollout, agent: Agent, thrown_away: int = 0) -> Measured:
        """What metrics are measured on, of the `texts` of an agent."""
        bound, settings = traits(agent).kl_bound, self.workplace.experiment.evaluation
        return Measured(
            rollout=rollout,
            task=held_out(self.workplace.env.task),
            rewards=self.sums(rollout.scores),
            divergence=divergences(rollout),
            kl_bound=bound,
            kl_exact=self.exact_kl(agent) if bound is None and not settings.decoding else None,
            thrown_away=thrown_away,
            resampled=bool(settings.decoding),
            unscored=settings.prompts * settings.samples - len(rollout),
            asked=self.asked,
        )

    @cached_property
    def asked(self) -> PromptsAsked:
        """Which prompts an evaluation asks, and what of them the workplace's run trains on, told by the text."""
        experiment, task = self.workplace.experiment, self.workplace.env.task
        aside, count = held_out(task), experiment.evaluation.prompts
        prompts = [prompt_at(aside, index % (aside.size or count), {}) for index in range(count)]
        texts = {question_of(prompt) for prompt in prompts}
        trained_on: Iterable[str] | None = None
        if (stored := experiment.located().preferences) is not None:
            with suppress(DataError):  # the file may have gone since: the run can still be measured
                policy, over_long = self.workplace.setup.policy, experiment.environment.over_long
                context = policy.context if isinstance(policy, HasContext) else None
                read, _ = load_fitting(stored, self.workplace.setup.tokenizer, context, over_long)
                trained_on = [question_of(judgement.prompt) for judgement in read]
        else:  # whether the agent writes or reads the task's own answers
            endless = task.size is None and aside is task
            size = task.size or _OF_AN_ENDLESS_TASK
            trained_on = texts if endless else (question_of(prompt_at(task, index, {})) for index in range(size))
        return PromptsAsked(
            prompts=len(texts),
            replies=count * experiment.evaluation.samples,
            in_training=None if trained_on is None else len(texts.intersection(trained_on)),
            cut=len({question_of(prompt) for prompt in prompts if prompt.uncut is not None}),
            left_out=aside.count.left_out if isinstance(aside, FittedTask) else 0,
        )

    def texts(self, agent: Agent) -> tuple[Rollout, int]:
        """What `agent` writes for the evaluation prompts, and how many tokens beside it that it threw away.

        Texts that a reward part failed on, and is to skip, are left out, and those about which no part of the training
        reward, or of the gold reward, had anything to say.
        Each score has `part/<name>` and `gold/<name>`; `log_ratios` has the distance to the reference. Everything else
        stays as it was.
        """
        setup = self.workplace.setup
        settings = self.workplace.experiment.evaluation
        # Common to all agents of one seed, so that they differ by what they learned; other seeds draw other samples.
        seed = settings.seed + 1_000_003 * self.workplace.experiment.seed
        policies = (setup.policy, setup.reference)
        streams = [policy.sampling_state() for policy in policies]
        writer = self._redrawn(agent)
        equal = EqualTexts.of(self.workplace)
        state = agent_state(agent)  # some draw from streams of their own
        spent = setup.spending.as_dict()
        for policy in policies:
            policy.reseed(seed)
        try:
            # A new environment each time: what rewards remember of training is read here and not added to.
            # What the agent would ask for (an easier level, groups) does not hold: everyone gets the same prompts.
            # What is measured is the policy that is trained and kept, not the copy that may write for it in training.
            with writing_exactly(*policies), nullcontext() if equal is None else equal.written_once():
                rollout = collect_with(
                    self._environment(settings.prompts * settings.samples, equal),
                    writer,
                    {"indices": [index for index in range(settings.prompts) for _ in range(settings.samples)]},
                    seed=seed,
                )
        finally:
            with asking(agent, "load_state_dict"):
                agent.load_state_dict(state)
            for policy, stream in zip(policies, streams, strict=True):
                policy.load_sampling_state(stream)
            thrown_away = setup.spending.generated_tokens - spent["generated_tokens"]
            setup.spending.load(spent)
        kept = torch.tensor([self._speaks(score) for score in rollout.scores], dtype=torch.bool)
        if not bool(kept.any()) and bool(rollout.scored.any()):
            raise RewardError(
                f"no part of the reward has anything to say about any of the {settings.prompts} evaluation texts: "
                f"{', '.join(name.partition('/')[2] for name in rollout.scores[0].abstained)} abstained"
            )
        if not bool(kept.all()):
            rollout = rollout.select(kept)
        return rollout.with_extras(divergence=self._divergence(rollout)), int(thrown_away)

    def _redrawn(self, agent: Agent) -> Agent:
        """The agent, drawing as `[evaluation] decoding` says. Raises ConfigError where it has writers of its own."""
        sampling, setup = self.workplace.evaluation_sampling, self.workplace.setup
        if sampling is None:
            return agent
        its = traits(agent)
        if its.trains and not its.policy_writes:
            said = "decoding: the texts of this agent are not its policy's alone, and are drawn as in training"
            raise ConfigError(Problem(said, ("evaluation", "decoding")))
        return _Redrawn(agent, (setup.policy, setup.reference), sampling)

    def _speaks(self, score: Score) -> bool:
        """Whether the training reward, and the gold reward, have a value for a text."""
        mix = self.workplace.env.reward
        told = [[f"part/{name}" for name in mix.parts if name not in mix.kl_names]]
        told += [] if self.gold is None else [[f"gold/{name}" for name in self.gold.parts]]
        return bool(score.raw) and all(not names or any(name in score.raw for name in names) for names in told)

    @property
    def _kl(self) -> KLPart | None:
        """The objective's KL penalty, if it is a log-ratio to this very reference, which then reads the texts once."""
        kl = self.workplace.env.reward.kl
        if kl is None or kl.penalty.reference is not self.workplace.setup.reference or not kl.penalty.coefficient:
            return None
        return kl

    def _divergence(self, rollout: Rollout) -> Tensor:
        """float64[B, L]: log p - log p_reference, as measured or as read off what the KL penalty charged for it."""
        kl = self._kl
        name, scale = ("divergence", 1.0) if kl is None else (f"part/{kl.name}", -float(kl.penalty.coefficient))
        found = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
        for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
            found[row, len(episode.prompt_ids) : len(episode.ids)] = torch.from_numpy(score.tokens[name] / scale)
        return found

    def _environment(self, rows: int, equal: EqualTexts | None) -> TextVectorEnv:
        """The evaluation's prompts, the training parts, the gold parts and the divergence, unweighted side by side."""
        env = self.workplace.env
        parts = {f"part/{name}": reward for name, reward in env.reward.parts.items()}
        failures = {f"part/{name}": it for name, it in env.reward.failures.items()}
        if self.gold is not None:
            parts |= {f"gold/{name}": reward for name, reward in self.gold.parts.items()}
            failures |= {f"gold/{name}": it for name, it in self.gold.failures.items()}
        of_tasks = {f"part/{name}": factors for name, factors in env.reward.of_tasks.items()}
        if self.gold is not None:
            of_tasks |= {f"gold/{name}": factors for name, factors in self.gold.of_tasks.items()}
        if self._kl is None:
            parts["divergence"] = Divergence(self.workplace.setup.reference)
        return TextVectorEnv(
            rows,
            task=held_out(env.task),
            reward=shared_by(
                self.workplace.setup.engine.processes,
                RewardMix(parts, failures=failures, measures=True, of_tasks=of_tasks)
                if equal is None
                else equal.scoring(parts, failures, of_tasks),
            ),
            tokenizer=env.tokenizer,
            max_new_tokens=env.max_new_tokens,
            max_prompt_tokens=longest_prompt(self.workplace, env.tokenizer),
            action_length=env.action_length,
            autoreset_mode="Disabled",
            stop=env.stop,
        )

    def exact_kl(self, agent: Agent) -> float | None:
        """KL(agent || reference) in nats a response, the mean over the evaluation prompts, as a sum over all texts.

        None where these are too many (see `_ENUMERABLE`), and where an agent's texts are not its policy's alone.
        """
        env, setup = self.workplace.env, self.workplace.setup
        task = held_out(env.task)
        alone = traits(agent).policy_writes and setup.policy.sampling.exact
        if not alone or isinstance(task, (Replies, MasksActions)):
            return None
        ends = end_ids(env.tokenizer)
        choices = [token for token in range(setup.policy.vocab_size) if token not in ends]
        if isinstance(setup.policy, TabularPolicy):  # it never writes padding, and has no word for it
            choices.remove(setup.policy.pad_id)
        longest = env.max_new_tokens
        possible = sum(len(choices) ** length * len(ends) for length in range(longest)) + len(choices) ** longest
        if possible > _ENUMERABLE:
            return None
        count = self.workplace.experiment.evaluation.prompts
        prompts = (prompt_at(task, index % (task.size or count), {}) for index in range(count))
        asked = Counter(tuple(prompt_ids(env.tokenizer, prompt)) for prompt in prompts)
        if possible * len(asked) > _ENUMERABLE:
            return None
        total = 0.0
        for ids, times in asked.items():
            texts = list(_every_text(ids, choices, ends, longest, env.stops))
            ours, theirs = (
                np.array([row.sum() for row in writer.response_logprobs(texts)])
                for writer in (setup.policy, setup.reference)
            )
            total += times * float((np.exp(ours) * (ours - theirs)).sum())
        return total / asked.total()

    def sums(self, scores: Sequence[Score]) -> dict[str, Float]:
        """float64[N] each, of `texts`: "objective", and "proxy" and "gold" where there are such rewards."""
        raw = self._raw(scores)
        found = {
            "proxy": self._proxy(scores, raw),
            "objective": self._objective(scores, raw),
            "gold": self._gold(scores, raw),
        }
        return {name: values for name, values in found.items() if values is not None}

    @property
    def judges(self) -> list[str]:
        """The names of the parts that judge a response alone, which together are the proxy."""
        return list(self.workplace.env.reward.judges)

    def _raw(self, scores: Sequence[Score]) -> dict[str, Float]:
        """float64[N] of each part, NaN where it abstained."""
        names = dict.fromkeys(name for score in scores for name in score.raw)
        return {name: np.array([score.raw.get(name, np.nan) for score in scores]) for name in names}

    def _weighted(
        self,
        scores: Sequence[Score],
        raw: Mapping[str, Float],
        names: Sequence[str],
        weights: Mapping[str, float],
        to: str,
    ) -> Float:
        """float64[N]: the weighted sum of the parts that speak, each as much as it counts in the text's task."""
        total = np.zeros(len(next(iter(raw.values()))))
        for name in names:
            if (key := f"{to}/{name}") in raw:
                counts = np.array([score.weights.get(key, 0.0) for score in scores])  # 1 outside of mixtures
                total += weights[name] * (counts * np.nan_to_num(raw[key], nan=0.0))
        return total

    def _objective(self, scores: Sequence[Score], raw: Mapping[str, Float]) -> Float:
        mix = self.workplace.env.reward
        return self._weighted(scores, raw, list(mix.parts), mix.weights, "part")

    def _proxy(self, scores: Sequence[Score], raw: Mapping[str, Float]) -> Float | None:
        judges = self.judges
        return self._weighted(scores, raw, judges, self.workplace.env.reward.weights, "part") if judges else None

    def _gold(self, scores: Sequence[Score], raw: Mapping[str, Float]) -> Float | None:
        if self.gold is None:
            return None
        return self._weighted(scores, raw, list(self.gold.parts), self.gold.weights, "gold")

    def recorded(self, rollout: Rollout, count: int) -> list[JsonObject]:
        """The first `count` of `texts`, with the numbers of their tokens (see `learning.recorded_texts`)."""
        mix, ratios = self.workplace.env.reward, log_ratios(rollout)
        found = []
        for episode, score, ratio in zip(rollout.episodes[:count], rollout.scores, ratios, strict=False):
            named = {name: f"part/{name}" for name in mix.parts if f"part/{name}" in score.raw}
            own = Score(
                raw={name: score.raw[key] for name, key in named.items()},
                weights={name: mix.weights[name] * score.weights.get(key, 0.0) for name, key in named.items()},
                tokens={name: score.tokens[key] for name, key in named.items() if key in score.tokens},
            )
            text = recorded_text(episode, own, self.workplace.setup.tokenizer, weights=own.weights, log_ratio=ratio)
            gold = {name: value for name, value in score.raw.items() if name.startswith("gold/")}
            text["parts"] |= {name: float(f"{value:.5g}") for name, value in gold.items() if np.isfinite(value)}
            for name in mix.kl_names:  # the log-ratios say the same
                text["numbers"].pop(f"part/{name}", None)
            found.append(text)
        return found

    def _samples(self, rollout: Rollout) -> list[JsonObject]:
        raw, kls = self._raw(rollout.scores), divergences(rollout)
        gold, proxy = self._gold(rollout.scores, raw), self._proxy(rollout.scores, raw)
        return [
            {
                "prompt": str(episode.prompt.meta.get("turn", episode.prompt.text)),
                "response": episode.response,
                "finish_reason": episode.finish_reason,
                "kl": float(kls[i]),
                **({"gold": float(gold[i])} if gold is not None else {}),
                **({"proxy": float(proxy[i])} if proxy is not None else {}),
            }
            for i, episode in enumerate(rollout.episodes)
        ]


class _Redrawn(Around):
    """An agent whose policies draw with another `sampling` while it writes, and score as ever."""

    def __init__(self, agent: Agent, policies: Sequence[Policy], sampling: Sampling) -> None:
        self.agent, self._policies, self._sampling = agent, policies, sampling
        self.update, self.state_dict, self.load_state_dict = agent.update, agent.state_dict, agent.load_state_dict

    def act(self, observation: Observation, /) -> Decision:
        usual = [policy.sampling for policy in self._policies]
        for policy in self._policies:
            policy.sampling = self._sampling
        try:
            return super().act(observation)
        finally:
            for policy, sampling in zip(self._policies, usual, strict=True):
                policy.sampling = sampling


def log_ratios(rollout: Rollout) -> list[Float]:
    """log p - log p_reference of each token, of a rollout of `Evaluator.texts`: B arrays, float64[T_b]."""
    return [
        values[len(episode.prompt_ids) : len(episode.ids)].numpy()
        for episode, values in zip(rollout.episodes, rollout.extras["divergence"], strict=True)
    ]


def _first_completion(written: Sequence[int], stops: Stops) -> int | None:
    tokens = np.array([written], dtype=np.int64).reshape(1, -1)
    _, completing = completions(stops, np.zeros(1, dtype=np.int64), tokens, np.ones_like(tokens, dtype=np.bool_))
    return int(completing[0].argmax()) if completing.any() else None


def divergences(rollout: Rollout) -> Float:
    """float64[B]: the sum of `log_ratios` over each text, an estimate of KL(policy || reference)."""
    return np.array([float(values.sum()) for values in log_ratios(rollout)])


def _every_text(
    prompt: Sequence[int], choices: Sequence[int], ends: Sequence[int], longest: int, stops: Stops | None = None
) -> Iterator[Episode]:
    """Every response that can be written: any `choices` and then one of `ends`, or as many choices as fit.

    A response that holds a stop string ends there.
    """
    nothing = Prompt(id="every text", text="")
    for length in range(longest + 1):
        closings = [[end] for end in ends] if length < longest else [[]]
        for written, closing in itertools.product(itertools.product(choices, repeat=length), closings):
            stopped = None if stops is None else _first_completion(written, stops)
            if stopped is not None and (stopped < length - 1 or closing not in closings[:1]):
                continue
            ids = [*written, *closing] if stopped is None else [*written]
            yield Episode(
                prompt=nothing,
                prompt_ids=np.array(prompt, dtype=np.int64),
                response="",
                response_ids=np.array(ids, dtype=np.int64),
                finish_reason="stop" if length < longest else "length",
                actions=np.ones(len(ids), dtype=np.bool_),
            )
