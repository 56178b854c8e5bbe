"""A Bradley-Terry reward model: a scalar head on the trunk of any transformers language model, fitted to preferences.

The model of Bradley & Terry, "Rank Analysis of Incomplete Block Designs" (Biometrika 1952): each text has a score, and

    P(a preferred to b) = sigmoid(score(a) - score(b))

fitted by maximum likelihood, as in Christiano et al. 2017 (1706.03741), Stiennon et al. 2020 (2009.01325) and Ouyang et
al. 2022 (2203.02155). The score is read at the last token of the text, which is found from its length. Whether that is
the end token is part of what the model sees: token ids are scored as they were written, never made again from text.

Several heads on one trunk are an ensemble that costs one forward pass. `fitting.py` fits, `scorer.py` loads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_env import assets
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.judgements import Preference, Response
from rlhf_env.policies.language_model import quiet_transformers
from rlhf_env.types import Episode, Float, Int, Prompt, Tokenizer

RankingLoss = Literal["pairs", "plackett-luce"]

POSITIONS_AT_ONCE = 8192  # tokens and padding in one forward pass when scoring
_FORMAT = 1
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CARD, _HEAD = "reward_model.json", "reward_head.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """How to fit. `batch_size` counts judgements: pairs, rankings, ratings.

    The learning rate rises over the first `warmup` of all steps, then falls in a straight line to 0. A batch is worked
    off in micro-batches of judgements of like length: same gradient, less padding, less memory.

    What is minimised: `margin` and `label_smoothing` belong to the loss of a pair; `ranking_loss` says whether a
    ranking costs the mean over its pairs or its Plackett-Luce likelihood. See `losses.py` for all of them.

    Against overfitting: `validation` is the share of the *training* prompts set aside to pick the best epoch, and
    fitting ends after `patience` epochs in a row that were no better; `weight_decay` (matrices only); `dropout` on the
    state the head reads (the trunk's own dropout is never on); `magnitude` times the mean square of the scores.
    `centring` times the mean square of a pair's sum only moves the mean of the scores to 0. `fairness` times the mean
    square of the difference between counterfactual texts draws those scores together.

    `members` is the number of heads on the one trunk. More than one are an ensemble: each starts at random and is
    fitted to its own bootstrap sample of the judgements (Osband et al. 2016, 1602.04621), so that they differ where the
    data leave room.
    """

    learning_rate: float = 3e-4
    epochs: int = 2
    batch_size: int = 32
    micro_batch_size: int = 8
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_gradient_norm: float = 1.0
    dropout: float = 0.0
    margin: float = 0.0
    label_smoothing: float = 0.0
    ranking_loss: RankingLoss = "pairs"
    centring: float = 0.0
    magnitude: float = 0.0
    fairness: float = 0.0
    members: int = 1
    validation: float = 0.1
    patience: int = 1

    def __post_init__(self) -> None:
        above_zero = ("learning_rate", "epochs", "batch_size", "micro_batch_size", "max_gradient_norm", "patience")
        shares = ("warmup", "dropout", "validation")
        weights = ("weight_decay", "centring", "magnitude", "fairness")
        _refuse(
            *(
                f"{name}: {getattr(self, name)!r} is not above 0"
                for name in (*above_zero, "members")
                if not getattr(self, name) > 0
            ),
            *(
                f"{name}: {getattr(self, name)!r} is not in [0, 1)"
                for name in shares
                if not 0 <= getattr(self, name) < 1
            ),
            *(f"{name}: {getattr(self, name)!r} is negative" for name in weights if not getattr(self, name) >= 0),
            *(
                []
                if 0 <= self.label_smoothing < 0.5
                else [
                    f"label_smoothing: {self.label_smoothing!r} is not in [0, 0.5): from there on labels mean nothing"
                ]
            ),
            *(
                []
                if self.ranking_loss in get_args(RankingLoss)
                else [f"ranking_loss: {self.ranking_loss!r} is none of {', '.join(get_args(RankingLoss))}"]
            ),
        )


@dataclass(frozen=True)
class Epoch:
    """One pass over the judgements. The validation numbers are None when nothing was set aside to measure them on."""

    loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class TrainingRecord:
    """What was done: saved beside the weights. `best` is the index of the epoch whose weights were kept.

    `pairs` and `validation_pairs` count judgements of any kind.
    """

    config: RewardModelConfig
    pairs: int
    validation_pairs: int
    steps: int
    epochs: tuple[Epoch, ...]
    best: int


class RewardModel(nn.Module):
    """`score` gives one number per episode: mean 0 and standard deviation 1 over the responses it was fitted on.

    `trunk` is a transformers model without its head, `tokenizer_folder` where its tokenizer files are (they are saved
    along, and read when a response has no token ids). `heads` [M, H] start at zero: all scores are equal at first. With
    several, `score` is the mean of the members, each of which has mean 0 (Bradley-Terry scores have no zero of their
    own) in the unit of the mean. A difference of 1 is `std` log-odds.
    """

    def __init__(self, trunk: Any, *, members: int = 1, tokenizer_folder: str | Path | None = None) -> None:
        super().__init__()
        self.trunk = trunk.eval()
        config = trunk.config.get_text_config()
        like = next(trunk.parameters())
        self.heads = nn.Parameter(torch.zeros(members, config.hidden_size, dtype=like.dtype, device=like.device))
        self.mean: Float = np.zeros(members)
        self.std = 1.0
        self.record: TrainingRecord | None = None
        self.tokenizer_folder = tokenizer_folder
        self._vocab_size = int(trunk.get_input_embeddings().weight.shape[0])
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        # ALiBi models read positions off the mask
        self._takes_positions = "position_ids" in inspect.signature(trunk.forward).parameters

    @classmethod
    def from_trunk(cls, folder: str | Path, *, members: int = 1, dtype: torch.dtype = torch.float32) -> RewardModel:
        """An unfitted model on the trunk of a saved language model. Raises DataError when there is none in `folder`."""
        folder = assets.resolve(str(folder))
        return cls(_load_trunk(Path(folder), dtype), members=members, tokenizer_folder=folder)

    @property
    def log_odds_per_point(self) -> float:
        """What a difference of 1 between two scores is worth in log-odds: `calibration.win_probability` takes those."""
        return self.std

    @property
    def members(self) -> int:
        return len(self.heads)

    def forward(self, ids: Tensor, lengths: Tensor, *, dropout: float = 0.0, generator: Any = None) -> Tensor:
        """Scores [M, B] before normalisation, of `ids` int64[B, L], texts of `lengths` int64[B] padded on the right."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        mask = (positions < lengths[:, None]).long()
        told = {"position_ids": positions.expand_as(ids)} if self._takes_positions else {}
        hidden = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False, **told).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        if dropout:
            kept = torch.rand(last.shape, generator=generator, dtype=last.dtype).to(last.device) >= dropout
            last = last * kept / (1 - dropout)
        scores: Tensor = self.heads @ last.T
        return scores

    def train(self, mode: bool = True) -> RewardModel:
        """As in torch, but the trunk stays in evaluation mode: the same text has the same score at any time."""
        super().train(mode)
        self.trunk.eval()
        return self

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B]. Raises DataError for a text that is empty, too long, or holds ids outside the vocabulary."""
        return self.score_ids([episode.ids for episode in episodes])

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        """float64[M, B]: what each head says; `score` is their mean."""
        return self._member_scores([episode.ids for episode in episodes])

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        """float64[B]. Token ids are scored as they were written; text without ids is tokenised here."""
        return self.score_ids(self.read(responses))

    def score_pairs(self, preferences: Sequence[Preference]) -> tuple[Float, Float]:
        """The scores of chosen and rejected, float64[P] each."""
        scores = self.score_responses([(it.prompt, side) for it in preferences for side in (it.chosen, it.rejected)])
        return scores[0::2], scores[1::2]

    def score_ids(self, texts: Sequence[Int]) -> Float:
        """float64[B] for texts of token ids, int64[L_b] each. Neither padding nor batch mates change a score."""
        scores: Float = self._member_scores(texts).mean(axis=0)
        return scores

    def read(self, responses: Sequence[tuple[Prompt, Response]]) -> list[Int]:
        """The token ids of prompt and response, int64[L_b] each: as written, or of the text and the end token."""
        tokenizer = self._tokenizer() if any(response.ids is None for _, response in responses) else None
        return [_text_ids(prompt, response, tokenizer) for prompt, response in responses]

    def check(self, texts: Sequence[Int]) -> None:
        """Raise DataError for the first text that cannot be scored."""
        for text in texts:
            if not len(text):
                raise DataError("a text without a token cannot be scored")
            if self._context is not None and len(text) > self._context:
                raise DataError(f"a text of {len(text)} tokens exceeds the reward model's context of {self._context}")
            low, high = int(text.min()), int(text.max())
            if low < 0 or high >= self._vocab_size:
                raise DataError(
                    f"token id {low if low < 0 else high} is outside the reward model's vocabulary of "
                    f"{self._vocab_size}: was the text written with another tokenizer?"
                )

    def raw(self, texts: Sequence[Int], **dropout: Any) -> Tensor:
        """Scores [M, B] before normalisation, with gradient. `dropout` and `generator` as in `forward`."""
        self.check(texts)
        device = self.heads.device
        ids, lengths = padded(texts)
        scores: Tensor = self(ids.to(device), lengths.to(device), **dropout)
        return scores

    @torch.no_grad()
    def scatter_heads(self, generator: torch.Generator) -> None:
        """Start the heads at random, with scores of about +-1 log-odds, so that members are of different opinions where
        no data change their minds."""
        start = torch.randn(self.heads.shape, generator=generator, dtype=torch.float64) / self.heads.shape[1] ** 0.5
        self.heads.copy_(start)

    @torch.no_grad()
    def normalise(self, texts: Sequence[Int]) -> None:
        """Set the zero of every member and the common unit so that the different `texts` score 0 +- 1 on average."""
        self.mean, self.std = np.zeros(len(self.heads)), 1.0
        scores = self._member_scores(list({text.tobytes(): text for text in texts}.values()))
        self.mean = scores.mean(axis=1)
        together = scores.mean(axis=0)
        self.std = float(together.std()) if together.max() > together.min() else 1.0

    @torch.no_grad()
    def _member_scores(self, texts: Sequence[Int]) -> Float:
        scores = np.empty((len(self.heads), len(texts)), dtype=np.float64)
        for batch in batches_of_like_length([len(text) for text in texts]):
            scores[:, batch] = self.raw([texts[i] for i in batch]).double().cpu().numpy()
        return np.asarray((scores - self.mean[:, None]) / self.std)

    def save(self, path: str | Path) -> None:
        """Write a folder of safetensors and JSON: trunk, head, normalisation, record, tokenizer.

        The folder appears whole or not at all, in place of an older model. Raises ConfigError when something else is
        in the way, RunFailed when it cannot be written.
        """
        path = Path(path)
        if path.exists() and not (path / _CARD).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(f"reward model {path}: there is something else at this path: name another one")
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.mkdir()
            self._write(half)
            if path.is_dir():
                shutil.rmtree(path)
            half.rename(path)
        except (OSError, SafetensorError) as error:
            raise RunFailed(f"reward model {path}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(half, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path) -> RewardModel:
        """The model that `save` wrote; its scores are the same to the last bit. Raises DataError for others."""
        path = Path(path)
        card = _read_card(path)
        for name, expected in card["sha256"].items():
            if not (path / name).is_file() or _sha256(path / name) != expected:
                raise DataError(
                    f"reward model {path}: {name} is missing or damaged (its checksum differs): copy it anew"
                )
        model = cls.from_trunk(path, members=len(card["mean"]), dtype=_DTYPES[card["dtype"]])
        model.heads.data.copy_(load_file(path / _HEAD)["head"].reshape(model.heads.shape))
        model.mean, model.std = card["mean"], card["std"]
        model.record = card["record"]
        return model

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer_folder is None:
            raise DataError(
                "responses without token ids need the reward model's tokenizer, and none came with the trunk"
            )
        return load_tokenizer(self.tokenizer_folder)

    def _write(self, folder: Path) -> None:
        with quiet_transformers():
            self.trunk.save_pretrained(folder)
        save_file({"head": self.heads.detach().cpu().contiguous()}, folder / _HEAD)
        if self.tokenizer_folder is not None and Path(self.tokenizer_folder).is_dir():
            for pattern in _TOKENIZER_FILES:
                for file in Path(self.tokenizer_folder).glob(pattern):
                    shutil.copy(file, folder)
        card = {
            "format": _FORMAT,
            "dtype": str(self.heads.dtype).removeprefix("torch."),
            "mean": self.mean.tolist(),
            "std": self.std,
            "record": None if self.record is None else asdict(self.record),
            "sha256": {file.name: _sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        }
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def batches_of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most POSITIONS_AT_ONCE positions."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > POSITIONS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(texts: Sequence[Int], filler: int = 0) -> tuple[Tensor, Tensor]:
    """`ids` int64[B, L], padded on the right with `filler`, and `lengths` int64[B]."""
    lengths = [len(text) for text in texts]
    ids = np.full((len(texts), max(lengths)), filler, dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return torch.from_numpy(ids), torch.tensor(lengths)


def _text_ids(prompt: Prompt, response: Response, tokenizer: Tokenizer | None) -> Int:
    """int64[L]: the ids as written; text of people and data sets is encoded, and ends with the end token."""
    if response.ids is not None and response.prompt_ids is not None:
        return np.array([*response.prompt_ids, *response.ids], dtype=np.int64)
    assert tokenizer is not None  # `read` loads one when it is needed
    ended = [tokenizer.end_id] if response.finish_reason in (None, "stop") else []
    return np.array([*tokenizer.encode(prompt.text), *tokenizer.encode(response.text), *ended], dtype=np.int64)


def _load_trunk(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise DataError(f"model folder {folder}: there is no config.json in it: name a folder that holds a saved model")
    try:
        with quiet_transformers():
            trunk, report = AutoModel.from_pretrained(
                str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"model folder {folder}: {reason}") from error
    if report["missing_keys"]:  # they would be random numbers
        raise DataError(f"model folder {folder}: weights are missing, {min(report['missing_keys'])} among them")
    return trunk


def _read_card(path: Path) -> dict[str, Any]:
    """The JSON of a reward model, checked. Raises DataError."""
    file = path / _CARD
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] != _FORMAT:
            raise DataError(f"{file} has format {card['format']}, and this rlhf-env reads format {_FORMAT}")
        if card["dtype"] not in _DTYPES or _HEAD not in card["sha256"] or not card["std"] > 0:
            raise DataError(f"{file} is damaged: fit the model again, or copy it anew")
        card["mean"], card["std"] = np.atleast_1d(np.array(card["mean"], dtype=np.float64)), float(card["std"])
        if not np.isfinite(card["mean"]).all():
            raise DataError(f"{file} is damaged: fit the model again, or copy it anew")
        card["record"] = _record_from_json(card["record"])
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is not a reward model: there is no {_CARD} in it (RewardModel.save writes one)"
        ) from None
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    return card


def _record_from_json(content: dict[str, Any] | None) -> TrainingRecord | None:
    if content is None:
        return None
    epochs = tuple(Epoch(**epoch) for epoch in content["epochs"])
    return TrainingRecord(**{**content, "config": RewardModelConfig(**content["config"]), "epochs": epochs})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse(*problems: str) -> None:
    if problems:
        raise ConfigError(*problems)
