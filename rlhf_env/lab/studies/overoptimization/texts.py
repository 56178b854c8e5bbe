"""The replies that the study scores, and where they are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.envs.tasks import held_out, prompt_at
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import RunFailed
from rlhf_env.lab.studies.overoptimization.study import REPLIES_AT_ONCE, Study, TellRow
from rlhf_env.learning.collect import collect_with
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.types import Episode, Task


@dataclass(frozen=True)
class Reply:
    """A reply of the reference, as it lies in a file of JSON lines: `prompt` is an index of the task (of its held-out
    half, in the pool), `logprob` that of the whole reply, `gold` its score."""

    prompt: int
    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: Any
    logprob: float
    gold: float

    def episode(self, task: Task) -> Episode:
        return Episode(
            prompt=prompt_at(task, self.prompt, {}),
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            response=self.text,
            response_ids=np.array(self.ids, dtype=np.int64),
            finish_reason=self.finish_reason,
            actions=np.ones(len(self.ids), dtype=np.bool_),
        )


def text_jobs(study: Study) -> list[_Texts]:
    """The pool in two halves, for two processes; the replies for pairs, a job per temperature."""
    half = study.pool // 2
    pool = [_Texts(study, 1.0, 0, half, True), _Texts(study, 1.0, half, study.pool, True)]
    return [*pool, *(_Texts(study, temperature, 0, 1, False) for temperature in study.temperatures)]


@dataclass(frozen=True)
class _Texts:
    """Replies number `first` to `end` - 1 of the reference to each prompt, at one temperature."""

    study: Study
    temperature: float
    first: int
    end: int
    measured: bool

    @property
    def key(self) -> str:
        return f"pool-{self.first}-{self.end}" if self.measured else f"pairs-{self.temperature:g}"

    @property
    def title(self) -> str:
        return "replies for best-of-n" if self.measured else f"replies at temperature {self.temperature:g}"

    def result_file(self, folder: Path) -> Path:
        return folder / "texts" / f"{self.key}.jsonl"

    def leaves(self, folder: Path) -> list[Path]:
        return [self.result_file(folder)]

    def reads(self, _folder: Path) -> list[str]:
        return [self.study.policy]

    def work(self, folder: Path, on_update: TellRow) -> None:
        prompts = self.study.measured_prompts if self.measured else self.study.pair_prompts
        wanted = [index for index in range(prompts) for _ in range(self.first, self.end)]
        seed = [*self.key.encode()]
        file = self.result_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        with partial.open("w", encoding="utf-8") as out:
            for done, reply in enumerate(self._replies(wanted, int(np.random.default_rng(seed).integers(2**31))), 1):
                out.write(json.dumps(asdict(reply)) + "\n")
                if done % REPLIES_AT_ONCE == 0:
                    on_update({}, done / len(wanted))
        partial.replace(file)

    def failed(self, _folder: Path, why: str) -> None:
        raise RunFailed(f"{self.title}: {why}")

    def _replies(self, wanted: list[int], seed: int) -> Iterator[Reply]:
        policy = {"model": self.study.policy, "sampling": {"temperature": self.temperature}}
        workplace = build(self.study.experiment(policy=policy))
        workplace.setup.reference.reseed(seed)
        workplace.setup.policy.reseed(seed)
        env = _environment(workplace, self.measured)
        for start in range(0, len(wanted), env.num_envs):
            indices = wanted[start : start + env.num_envs]
            filled = (indices * env.num_envs)[: env.num_envs]
            rollout = collect_with(env, workplace.agent, {"indices": filled})
            logprobs = rollout.logprobs.sum(dim=1).tolist()
            for index, episode, score, logprob in zip(
                indices, rollout.episodes, rollout.scores, logprobs, strict=False
            ):
                yield Reply(
                    prompt=index,
                    prompt_ids=episode.prompt_ids.tolist(),
                    ids=episode.response_ids.tolist(),
                    text=episode.response,
                    finish_reason=episode.finish_reason,
                    logprob=logprob,
                    gold=score.total,
                )


def _environment(workplace: Workplace, measured: bool) -> TextVectorEnv:
    """The workplace's environment, on held-out prompts where they are asked for."""
    env = workplace.env
    if not measured:
        return env
    return TextVectorEnv(
        env.num_envs,
        task=held_out(env.task),
        reward=env.reward,
        tokenizer=env.tokenizer,
        max_new_tokens=env.max_new_tokens,
        max_prompt_tokens=env.max_prompt_tokens,
        action_length=env.action_length,
        autoreset_mode="Disabled",
        stop=env.stop,
    )


def pool_of(study: Study, folder: Path) -> list[Reply]:
    """The reference's replies to the measured prompts, prompt after prompt."""
    return sorted(read_replies(study, folder, measured=True), key=lambda reply: reply.prompt)


def read_replies(study: Study, folder: Path, *, measured: bool) -> list[Reply]:
    return [
        Reply(**json.loads(line))
        for job in text_jobs(study)
        if job.measured == measured
        for line in job.result_file(folder).read_text(encoding="utf-8").splitlines()
    ]
