"""What untrained agents write, and are paid for it, once for all of a grid's cells in one process.

The agents of a grid on one task with one seed begin with the same weights. They are evaluated before they learn, with
the same prompts and random numbers, and so write the same texts; as do the tries of their tuning. Within `kept` the
second one that asks the same question of the same model is given the first one's answer: the texts of a whole-answer
`write`, and the scores of them.

An answer is found by all that it depends on: the experiment but for its name and agent, the sha256 of the weights of
policy and reference and of the files that the experiment names, and the question itself. Rewards are asked again where
one is not of this package, or asks another process or a server: such a one may say something else the next time.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.contained import is_of_this_package
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.task_labels import TaskWeights
from rlhf_env.envs.waiting import WaitsOutside
from rlhf_env.learning.data_of_runs import data_among
from rlhf_env.learning.sharding import weights_told
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.policy import Policy, Written
from rlhf_env.types import AnyReward, Bool, Episode, Observation, Score

_MOST = 8  # answers that are kept: the texts and the scores of a few tasks and seeds

KeptAnswers = OrderedDict[bytes, Any]

_kept: ContextVar[KeptAnswers | None] = ContextVar("kept", default=None)
_of_this_process: KeptAnswers = OrderedDict()


@contextmanager
def kept() -> Iterator[None]:
    """Inside, agents that have not learned yet share what their evaluations have in common, until the process ends."""
    before = _kept.set(_of_this_process)
    try:
        yield
    finally:
        _kept.reset(before)


def forget_all() -> None:
    """Forget all answers."""
    _of_this_process.clear()


class EqualTexts:
    """The answers that the evaluation of one workplace shares; None of `of` where it shares nothing."""

    def __init__(self, workplace: Workplace, answers: KeptAnswers) -> None:
        self._workplace, self._answers = workplace, answers
        experiment, setup = workplace.experiment, workplace.setup
        same = replace(experiment, name="any", agent={"name": "any"}, checkpoint_every=0)
        files = data_among(experiment.located().data_named)
        self._weights = {id(it): weights_told(it) for it in (setup.policy, setup.reference)}
        self._begun = _digest(
            same.to_toml(),
            str(setup.engine.hardware),
            *self._weights.values(),
            *(f"{file} {sha256}" for file, sha256 in sorted(files.items())),
        )

    @classmethod
    def of(cls, workplace: Workplace) -> EqualTexts | None:
        answers, env = _kept.get(), workplace.env
        untrained = workplace.setup.spending.updates == 0
        # A text that is written in several steps depends on what the policy keeps between them.
        if answers is None or not untrained or env.action_length != env.max_new_tokens:
            return None
        return cls(workplace, answers)

    @contextmanager
    def written_once(self) -> Iterator[None]:
        """Inside, policy and reference give the texts that one with the same weights has written before."""
        setup = self._workplace.setup
        policies = [setup.policy] if setup.policy is setup.reference else [setup.policy, setup.reference]
        for policy in policies:
            object.__setattr__(policy, "write", self._writer(policy))
        try:
            yield
        finally:
            for policy in policies:
                object.__delattr__(policy, "write")

    def _writer(self, policy: Policy) -> Any:
        weights, plain = self._weights[id(policy)], type(policy).write

        def write(observation: Observation, length: int, rows: Bool | None = None) -> Written:
            asked = {name: value for name, value in observation.items() if name not in ("prompts", "stops")}
            key = _digest(
                self._begun,
                weights,
                repr((policy.sampling, policy.sampling_state(), length, policy.dtype, policy.device)),
                *(part for name in sorted(asked) for part in (name, _bits(asked[name]))),
                _bits(rows),
            )
            if (known := self._found(key)) is None:
                written = plain(policy, observation, length, rows)
                self._keep(key, (written.tokens.copy(), written.logprobs.copy(), policy.sampling_state()))
                return written
            tokens, logprobs, after = known
            policy.load_sampling_state(after)
            return Written(tokens.copy(), logprobs.copy())

        return write

    def scoring(
        self,
        parts: Mapping[str, AnyReward],
        failures: Mapping[str, Failures],
        of_tasks: Mapping[str, TaskWeights] | None = None,
    ) -> RewardMix:
        """The rewards `parts`, to be measured side by side."""
        if any(isinstance(it, WaitsOutside) or not is_of_this_package(it) for it in parts.values()):
            return RewardMix(parts, failures=failures, measures=True, of_tasks=of_tasks)
        mix = _ScoredOnce(parts, failures=failures, measures=True, of_tasks=of_tasks)
        mix.begin(self)
        return mix

    def scores(self, mix: RewardMix, episodes: Sequence[Episode], group_size: int, rows: int) -> list[Score]:
        """What `mix` says of the episodes, or has said of the same before."""
        about = [
            repr((it.prompt, it.response, it.finish_reason, it.turns, it.messages)).encode("utf-8", "surrogatepass")
            for it in episodes
        ]
        arrays = [
            _bits(values) for it in episodes for values in (it.prompt_ids, it.response_ids, it.actions, it.logprobs)
        ]
        key = _digest(self._begun, repr((list(mix.parts), group_size, rows)), *about, *arrays)
        if (known := self._found(key)) is None:
            known = RewardMix.score(mix, episodes, group_size, rows=rows)
            self._keep(key, copy.deepcopy(known))
            return known
        return copy.deepcopy(known)  # whoever asked may write into it

    def _found(self, key: bytes) -> Any:
        if key not in self._answers:
            return None
        self._answers.move_to_end(key)
        return self._answers[key]

    def _keep(self, key: bytes, answer: object) -> None:
        self._answers[key] = answer
        while len(self._answers) > _MOST:
            self._answers.popitem(last=False)


class _ScoredOnce(RewardMix):
    """Rewards that are not asked where the answer is known."""

    _equal: EqualTexts

    def begin(self, equal: EqualTexts) -> None:
        self._equal = equal

    def score(self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0) -> list[Score]:
        return self._equal.scores(self, episodes, group_size, rows)


def _bits(values: object) -> bytes:
    if values is None:
        return b"none"
    array = np.ascontiguousarray(values)
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def _digest(*parts: str | bytes) -> bytes:
    """sha256 of the parts, each told from its neighbours by its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
