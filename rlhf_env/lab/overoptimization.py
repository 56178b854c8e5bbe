"""Over-optimisation measured: how far does a policy get on a learned reward before the true one falls?

After Gao, Schulman and Hilton 2023 (arXiv 2210.10760): a *gold* reward stands for people, *proxies* are fitted to its
noisy labels, agents climb the proxies without any KL penalty, and gold and proxy are measured at many checkpoints
against d = sqrt(KL(policy || reference)), best-of-n on the same axis. Three stages, each made of jobs for worker
processes that leave one file each, so that a second call does what is missing:

    texts     replies of the reference: for pairs, gold scored once for everybody; and a pool for best-of-n
    proxies   reward models of several sizes, label counts and noise rates, each on its seed's own pairs and labels
    runs      cells of a benchmark: agent x proxy x seed

`overoptimization_findings` says what they show.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, RunFailed
from rlhf_env.feedback.annotators import SimulatedAnnotator
from rlhf_env.feedback.ensemble import Combination
from rlhf_env.feedback.fitting import fit_reward_model
from rlhf_env.feedback.interchange import write_judgements
from rlhf_env.feedback.judgements import Author, Comparison
from rlhf_env.feedback.pairs import collect_pairs
from rlhf_env.feedback.reward_model import RewardModel, RewardModelConfig
from rlhf_env.lab.benchmark import Cell, write_json
from rlhf_env.lab.processes import Job, run_jobs
from rlhf_env.lab.progress import job_progress
from rlhf_env.learning.experiment import Experiment, Workplace, build
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.loop import Row, collect_with
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.types import Episode, Float, Task

Tell = Callable[[Row, float], None]

NAME = "overoptimization"
_ROWS_AT_ONCE = 256


# -------------------------------------------------------------------- what is studied


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A reward model, by what it is made of.

    `labels`: pairs, each of a prompt of its own. `layers`: how many of the policy's own layers, from the bottom, are
    its trunk; all of it is fitted. `flips`: the share of labels turned around. `members` above 1 is an ensemble: each
    member has a trunk of its own, fitted by itself from a random head to its own bootstrap of the pairs (all trunks
    begin at the same pretrained weights, as in Coste et al. 2024). `combination`, `penalty`: how members are combined.
    """

    labels: int
    layers: int
    flips: float = 0.0
    members: int = 1
    combination: Combination = "mean"
    penalty: float = 0.5

    def __post_init__(self) -> None:
        refuse_misfits(self)

    @property
    def fits(self) -> list[Fitting]:
        """The models it needs: one on all pairs, or one for each bootstrap."""
        numbers = range(1, self.members + 1) if self.members > 1 else [0]
        return [Fitting(self.labels, self.layers, self.flips, number) for number in numbers]


@dataclass(frozen=True)
class Fitting:
    """One model of a proxy. `bootstrap` 0 is fitted to all pairs, others to a sample of them with replacement."""

    labels: int
    layers: int
    flips: float
    bootstrap: int

    @property
    def name(self) -> str:
        sample = f"-bootstrap-{self.bootstrap}" if self.bootstrap else ""
        return f"{self.labels}-labels-{self.layers}-layers-{100 * self.flips:g}-flipped{sample}"


@dataclass(frozen=True, kw_only=True)
class Climb:
    """How an agent goes away from the reference: `updates`, measured every `every`.

    `agent`: its table. `offline`: it learns from the pairs the proxy was fitted to instead of from the proxy. `beta`:
    weight of the KL part, for agents that cannot do without (DPO).
    """

    agent: dict[str, Any]
    updates: int
    every: int
    num_envs: int = 32
    offline: bool = False
    beta: float = 0.0

    def __post_init__(self) -> None:
        refuse_misfits(self)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A claim to be tested: `proxy` against `than`, same agent and seeds, in `what` the peak is.

    `expected` is the verdict that reproduces it: "better" is farther out, or higher; "worse" nearer, or lower.
    """

    claim: str
    proxy: str
    than: str
    what: Literal["distance", "gold"]
    expected: Literal["better", "worse"]


CLAIMS = (
    Change(
        claim="More labels move the peak outwards", proxy="base", than="few-labels", what="distance", expected="better"
    ),
    Change(
        claim="A larger proxy moves the peak outwards", proxy="large", than="base", what="distance", expected="better"
    ),
    Change(claim="Label noise moves the peak inwards", proxy="noisy", than="base", what="distance", expected="worse"),
    Change(
        claim="A worst-case ensemble raises the peak under noise",
        proxy="worst-case",
        than="noisy",
        what="gold",
        expected="better",
    ),
    Change(
        claim="An uncertainty-weighted ensemble raises the peak under noise",
        proxy="uncertainty",
        than="noisy",
        what="gold",
        expected="better",
    ),
)


def _proxies(labels: int, few: int, layers: int, large: int, members: int) -> dict[str, Proxy]:
    noisy = Proxy(labels=labels, layers=layers, flips=0.25)
    return {
        "base": Proxy(labels=labels, layers=layers),
        "few-labels": Proxy(labels=few, layers=layers),
        "large": Proxy(labels=labels, layers=large),
        "noisy": noisy,
        "worst-case": replace(noisy, members=members, combination="worst"),
        "uncertainty": replace(noisy, members=members, combination="uncertainty"),
    }


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole study. One thing is changed at a time around the proxy `base`, and the noise around `noisy`.

    `policy`: writer and reference, and the trunk of the proxies. `gold`: the true reward, a table as in [rewards].
    `pair_prompts`: training prompts with one reply at each of `temperatures`; every seed draws one pair of each and
    its own labels (Bradley-Terry noise of `annotator_temperature`, in units of gold). More labels contain the fewer,
    and a noisy label is the clean one or its opposite.
    `measured_prompts`: held-out prompts, the same for every checkpoint and for the pool of `pool` replies each that
    best-of-n, the zero and the unit of the rewards come from.
    `climbs`: agents by name; all climb "base", and `comparer` every other proxy too, for the claims.
    Eight seeds are the fewest with which one of five claims can be made at 95 % (2 / 2^8, five times, is below 0.05).
    """

    seeds: int = 8
    task: dict[str, Any] = field(default_factory=lambda: {"name": "chitchat"})
    policy: str = "rlhf-env/chitchat"
    gold: dict[str, Any] = field(default_factory=lambda: {"upbeat": 1.0})
    max_new_tokens: int = 28
    max_prompt_tokens: int = 48
    pair_prompts: int = 2048
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.4)
    annotator_temperature: float = 0.5
    measured_prompts: int = 96
    pool: int = 64
    proxies: dict[str, Proxy] = field(default_factory=lambda: _proxies(1000, 250, 2, 4, 3))
    fitting: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(learning_rate=5e-4, epochs=1, micro_batch_size=32, validation=0.02)
    )
    comparer: str = "rloo"
    climbs: dict[str, Climb] = field(
        default_factory=lambda: {
            "rloo": Climb(agent={"name": "rloo", "lr": 2e-4}, updates=24, every=3),
            "ppo": Climb(agent={"name": "ppo", "lr": 2e-4, "group_size": 4}, updates=24, every=3),
            "dpo": Climb(agent={"name": "dpo", "lr": 6e-4}, updates=32, every=4, num_envs=64, offline=True, beta=0.05),
        }
    )
    claims: tuple[Change, ...] = CLAIMS

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("seeds", "pair_prompts", "measured_prompts")
            if getattr(self, name) < 1
        ]
        if self.pool < 2:
            problems.append(f"pool must be at least 2 replies to a prompt, got {self.pool}")
        most = max((proxy.labels for proxy in self.proxies.values()), default=0)
        if most > self.pair_prompts:
            problems.append(f"{most} labels need as many pair_prompts, and there are {self.pair_prompts}")
        if "base" not in self.proxies:
            problems.append("proxies: one of them is called 'base'")
        if self.comparer not in self.climbs:
            problems.append(f"comparer: {self.comparer!r} is none of the climbs ({', '.join(self.climbs)})")
        named = {name for change in self.claims for name in (change.proxy, change.than)}
        problems += [f"claims: there is no proxy {name!r}" for name in sorted(named - self.proxies.keys())]
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def quick(cls) -> Study:
        """The same in a few minutes: two seeds, which allow no claim, and coarse measurements."""
        usual = cls()
        return cls(
            seeds=2,
            pair_prompts=512,
            measured_prompts=64,
            pool=32,
            proxies=_proxies(500, 125, 1, 2, 2),
            climbs={name: replace(climb, updates=24, every=6, num_envs=16) for name, climb in usual.climbs.items()},
        )

    def experiment(self, **tables: Any) -> Experiment:
        """What every stage has in common, and `tables` beside it."""
        common = {
            "task": self.task,
            "policy": {"model": self.policy},
            "environment": {
                "num_envs": _ROWS_AT_ONCE,
                "max_new_tokens": self.max_new_tokens,
                "max_prompt_tokens": self.max_prompt_tokens,
            },
            "rewards": self.gold,
            "agent": {"name": "reference"},
        }
        return Experiment.from_table({**common, **tables}, NAME)

    def as_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def run_study(study: Study, folder: str | Path, *, jobs: int = 2, console: Console) -> None:
    """All three stages; what stands in `folder` already is not done again.

    Raises ConfigError when the folder holds another study, RunFailed when texts or a proxy could not be made.
    """
    folder = Path(folder).resolve()
    stages: dict[str, Sequence[Job]] = {
        "sets of texts": _texts(study),
        "reward models": [_Fit(study, seed, fitting) for seed in range(study.seeds) for fitting in _fittings(study)],
        "runs": runs(study, folder),
    }
    with hold(folder):
        _claim_folder(study, folder)
        for title, work in stages.items():
            with job_progress(console, work, title) as on_progress:
                files = run_jobs(work, folder, jobs=jobs, on_progress=on_progress)
            if missing := [file.name for file in files if not file.exists()]:
                raise RunFailed(f"{missing[0]} is not there, its process died: the same command goes on from here")


def _claim_folder(study: Study, folder: Path) -> None:
    """Note what the folder's files are made with, and refuse to mix them with others'."""
    note = folder / "study.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != study.as_json():
        raise ConfigError(f"{folder} holds a study of other settings (see {note}): choose another folder with --out")
    write_json(note, study.as_json())


def _fittings(study: Study) -> list[Fitting]:
    return list(dict.fromkeys(fitting for proxy in study.proxies.values() for fitting in proxy.fits))


# -------------------------------------------------------------------- texts


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
            prompt=task.prompt(self.prompt, {}),
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            response=self.text,
            response_ids=np.array(self.ids, dtype=np.int64),
            finish_reason=self.finish_reason,
            actions=np.ones(len(self.ids), dtype=np.bool_),
        )


def _texts(study: Study) -> list[_Texts]:
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

    def work(self, folder: Path, on_update: Tell) -> None:
        prompts = self.study.measured_prompts if self.measured else self.study.pair_prompts
        wanted = [index for index in range(prompts) for _ in range(self.first, self.end)]
        seed = [*self.key.encode()]
        file = self.result_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        with partial.open("w", encoding="utf-8") as out:
            for done, reply in enumerate(self._replies(wanted, int(np.random.default_rng(seed).integers(2**31))), 1):
                out.write(json.dumps(asdict(reply)) + "\n")
                if done % _ROWS_AT_ONCE == 0:
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
    )


def pool_of(study: Study, folder: Path) -> list[Reply]:
    """The reference's replies to the measured prompts, prompt after prompt."""
    return sorted(_read_replies(study, folder, measured=True), key=lambda reply: reply.prompt)


def _read_replies(study: Study, folder: Path, *, measured: bool) -> list[Reply]:
    return [
        Reply(**json.loads(line))
        for job in _texts(study)
        if job.measured == measured
        for line in job.result_file(folder).read_text(encoding="utf-8").splitlines()
    ]


# -------------------------------------------------------------------- proxies


@dataclass(frozen=True)
class _Fit:
    """One reward model of one seed; it scores the pool at once, for best-of-n."""

    study: Study
    seed: int
    fitting: Fitting

    @property
    def key(self) -> str:
        return f"{self.fitting.name}--seed-{self.seed}"

    @property
    def title(self) -> str:
        return self.key.replace("--", " · ")

    def result_file(self, folder: Path) -> Path:
        return self.model(folder).with_suffix(".json")

    def model(self, folder: Path) -> Path:
        return folder / "proxies" / self.key

    def work(self, folder: Path, on_update: Tell) -> None:
        study, wanted = self.study, self.fitting
        comparisons = labelled_pairs(study, folder, self.seed, wanted.flips)[: wanted.labels]
        if wanted == study.proxies["base"].fits[0]:
            pairs_file(folder, self.seed).parent.mkdir(parents=True, exist_ok=True)
            write_judgements(pairs_file(folder, self.seed), comparisons, "trl")
        preferences = [it.preference for it in comparisons if it.preference is not None]
        if wanted.bootstrap:
            drawn = _stream(self.seed, "bootstrap", wanted.bootstrap).integers(len(preferences), size=len(preferences))
            preferences = [preferences[i] for i in drawn]
        generator = torch.Generator().manual_seed(int(_stream(self.seed, "fit", wanted.bootstrap).integers(2**31)))
        trunk = first_layers(RewardModel.from_trunk(study.policy), wanted.layers)
        trunk.scatter_heads(generator)
        model, record = fit_reward_model(
            preferences,
            trunk,
            study.fitting,
            generator=generator,
            progress=lambda step, steps, loss: on_update({"train/loss": loss}, step / steps),
        )
        model.save(self.model(folder))
        task, pool = held_out(load_task(study.task)), pool_of(study, folder)
        scores = model.score([reply.episode(task) for reply in pool])
        result = {
            "seed": self.seed,
            **asdict(wanted),
            "parameters": sum(it.numel() for it in model.parameters()),
            "steps": record.steps,
            "log_odds_per_point": model.log_odds_per_point,
            "accuracy": _accuracy(scores, np.array([reply.gold for reply in pool])),
            "pool": scores.tolist(),
        }
        write_json(self.result_file(folder), result)

    def failed(self, _folder: Path, why: str) -> None:
        raise RunFailed(f"{self.title}: {why}")


def fit_result(study: Study, folder: Path, seed: int, fitting: Fitting) -> dict[str, Any]:
    """What was written about a model: its accuracy, its scores of the pool, and so on."""
    found: dict[str, Any] = json.loads(_Fit(study, seed, fitting).result_file(folder).read_text(encoding="utf-8"))
    return found


def labelled_pairs(study: Study, folder: Path, seed: int, flips: float) -> list[Comparison]:
    """This seed's pairs, one of each prompt, in its order, as judged by an annotator who slips `flips` of the time."""
    task = load_task(study.task)
    replies = _read_replies(study, folder, measured=False)
    stream = _stream(seed, "pairs")
    authors = [Author("policy", study.policy, temperature) for temperature in study.temperatures]
    candidates = [(reply.episode(task), authors[i // study.pair_prompts]) for i, reply in enumerate(replies)]
    known = {id(episode): reply.gold for (episode, _), reply in zip(candidates, replies, strict=True)}
    annotator = SimulatedAnnotator(
        gold=lambda episodes: np.array([known[id(episode)] for episode in episodes]),
        temperature=study.annotator_temperature,
        flip_rate=flips,
    )
    by_prompt = stream.permutation(study.pair_prompts).tolist()
    place = {index: i for i, index in enumerate(by_prompt)}
    order = sorted(range(len(candidates)), key=lambda i: place[replies[i].prompt])
    # The same stream gives the same pairs, and the same noise but for the flips.
    return collect_pairs([candidates[i] for i in order], annotator, stream)


def first_layers(model: RewardModel, layers: int) -> RewardModel:
    """The model with only the first so many layers of its trunk. Raises ConfigError where there are not as many."""
    has = getattr(model.trunk, "layers", None)
    if has is None or not 1 <= layers <= len(has):
        count = "no list of layers" if has is None else f"{len(has)} layers"
        raise ConfigError(f"layers: {layers} of a trunk ({type(model.trunk).__name__}) that has {count}")
    model.trunk.layers = has[:layers]
    model.trunk.config.num_hidden_layers = layers
    if getattr(model.trunk.config, "layer_types", None):
        model.trunk.config.layer_types = model.trunk.config.layer_types[:layers]
    return model


def pairs_file(folder: Path, seed: int) -> Path:
    """The pairs of the base proxy, which offline agents learn from."""
    return folder / "proxies" / f"pairs-seed-{seed}.jsonl"


def _accuracy(scores: Float, gold: Float) -> float:
    """How often the proxy ranks two replies to a prompt as gold does; neighbours in the pool, equals left out."""
    even = len(gold) // 2 * 2
    proxy_says, gold_says = (values[0:even:2] - values[1:even:2] for values in (scores, gold))
    counted = gold_says != 0.0
    agree = np.sign(proxy_says[counted]) == np.sign(gold_says[counted])
    return float(np.mean(agree)) if counted.any() else float("nan")


def _stream(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, number, *purpose.encode()])


# -------------------------------------------------------------------- runs


class _Run(Cell):
    """A cell of a benchmark that keeps its measurements, and not its weights."""

    def work(self, folder: Path, on_update: Tell) -> dict[str, Any]:
        result = super().work(folder, on_update)
        shutil.rmtree(folder / self.run / "checkpoints", ignore_errors=True)
        return result


def runs(study: Study, folder: Path) -> list[Cell]:
    """All agents on the base proxy, and the comparer on each, seeds outermost."""
    return [
        _run(study, folder, name, agent, seed)
        for seed in range(study.seeds)
        for name in study.proxies
        for agent in study.climbs
        if name == "base" or agent == study.comparer
    ]


def _run(study: Study, folder: Path, proxy: str, agent: str, seed: int) -> Cell:
    climb = study.climbs[agent]
    rewards: dict[str, Any] = {"proxy": _reward(study, folder, proxy, seed)}
    offline: Mapping[str, Any] = {"preferences": str(pairs_file(folder, seed))} if climb.offline else {}
    if climb.beta:
        rewards["kl"] = {"weight": climb.beta}
    experiment = study.experiment(
        name=f"{NAME}/{proxy}/{agent}",
        seed=seed,
        rewards=rewards,
        agent=climb.agent,
        budget={"updates": climb.updates},
        checkpoint_every=0,
        environment={
            "num_envs": climb.num_envs,
            "max_new_tokens": study.max_new_tokens,
            "max_prompt_tokens": study.max_prompt_tokens,
        },
        evaluation={"prompts": study.measured_prompts, "every": climb.every, "rewards": study.gold},
        **offline,
    )
    return _Run(NAME, proxy, agent, seed, experiment)


def _reward(study: Study, folder: Path, proxy: str, seed: int) -> dict[str, Any]:
    """The table of the reward that agents climb."""
    made = study.proxies[proxy]
    models = [str(_Fit(study, seed, fitting).model(folder)) for fitting in made.fits]
    if made.members == 1:
        return {"plugin": "bradley_terry", "model": models[0]}
    return {"plugin": "ensemble", "model": models, "combination": made.combination, "penalty": made.penalty}
