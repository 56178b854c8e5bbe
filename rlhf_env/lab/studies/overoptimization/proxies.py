"""The reward models of the study: labelled pairs, fits, accuracies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.errors import ConfigError, RunFailed
from rlhf_env.feedback.asking.annotators import SimulatedAnnotator
from rlhf_env.feedback.asking.pairs import collect_pairs
from rlhf_env.feedback.interchange import write_judgements
from rlhf_env.feedback.judgements import Author
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.lab.studies.overoptimization.study import Fitting, Study, TellRow
from rlhf_env.lab.studies.overoptimization.texts import pool_of, read_replies, text_jobs
from rlhf_env.types import Float, JsonObject
from rlhf_env.whole_files import write_json


def fittings(study: Study) -> list[Fitting]:
    return list(dict.fromkeys(fitting for proxy in study.proxies.values() for fitting in proxy.fits))


@dataclass(frozen=True)
class ProxyFit:
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

    def leaves(self, folder: Path) -> list[Path]:
        pairs = [pairs_file(folder, self.seed)] if self._writes_pairs else []
        return [self.model(folder), self.result_file(folder), *pairs]

    def reads(self, folder: Path) -> list[str | Path]:
        return [self.study.policy, *(job.result_file(folder) for job in text_jobs(self.study))]

    @property
    def _writes_pairs(self) -> bool:
        """Whether its pairs are those that offline agents learn from."""
        return self.fitting == self.study.proxies["base"].fits[0]

    def work(self, folder: Path, on_update: TellRow) -> None:
        study, wanted = self.study, self.fitting
        comparisons = labelled_pairs(study, folder, self.seed, wanted.flips)[: wanted.labels]
        if self._writes_pairs:
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


def fit_result(study: Study, folder: Path, seed: int, fitting: Fitting) -> JsonObject:
    """What was written about a model: its accuracy, its scores of the pool, and so on."""
    found: dict[str, object] = json.loads(
        ProxyFit(study, seed, fitting).result_file(folder).read_text(encoding="utf-8")
    )
    return found


def labelled_pairs(study: Study, folder: Path, seed: int, flips: float) -> list[Comparison]:
    """This seed's pairs, one of each prompt, in its order, as judged by an annotator who slips `flips` of the time."""
    task = load_task(study.task)
    replies = read_replies(study, folder, measured=False)
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
