"""A Bradley-Terry reward model: a scalar head on the trunk of any transformers language model, fitted to preferences.

The model of Bradley & Terry, "Rank Analysis of Incomplete Block Designs" (Biometrika 1952): each text has a score, and

    P(a preferred to b) = sigmoid(score(a) - score(b))

fitted by maximum likelihood, as in Christiano et al. 2017 (1706.03741), Stiennon et al. 2020 (2009.01325) and Ouyang et
al. 2022 (2203.02155). The score is read at the last token of the text, which is found from its length. Whether that is
the end token is part of what the model sees: token ids are scored as they were written, never made again from text.

Left out: K-wise losses, ensembles, calibration. Fitting runs in one process.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_env import assets
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.preferences import Preference, Response, split_by_prompt
from rlhf_env.policies.language_model import quiet_transformers
from rlhf_env.types import Episode, Float, Int, Prompt, Tokenizer

Progress = Callable[[int, int, float], None]
"""Called after every gradient step with (steps done, steps planned, loss of the step)."""

POSITIONS_AT_ONCE = 8192  # tokens and padding in one forward pass when scoring
_FORMAT = 1
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CARD, _HEAD = "reward_model.json", "reward_head.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, weight: Tensor | None = None, margin: Tensor | float = 0.0
) -> Tensor:
    """Weighted mean of -log sigmoid(chosen - rejected - margin), from scores [P]; equation 1 of Stiennon et al. 2020.

    ln 2 at equal scores. A `margin` asks for that much more than being right (Llama 2, 2307.09288, equation 2).
    """
    losses = -F.logsigmoid(chosen - rejected - margin)
    if weight is None:
        return losses.mean()
    weight = weight.to(losses.dtype)
    return (weight * losses).sum() / weight.sum()


@dataclass(frozen=True)
class Accuracy:
    """A share of `pairs` judged rightly, and the interval around it."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.pairs} pairs"


def accuracy_with_interval(chosen: Float, rejected: Float, confidence: float = 0.95) -> Accuracy:
    """How often the chosen response scores higher (equal scores count 1/2), with Wilson's interval (1927).

    The interval takes the pairs to be independent: one pair per prompt.
    """
    if len(chosen) != len(rejected) or not len(chosen):
        raise DataError(f"accuracy needs as many chosen as rejected scores, got {len(chosen)} and {len(rejected)}")
    count = len(chosen)
    share = float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Accuracy(share, max(0.0, middle - half), min(1.0, middle + half), count)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """How to fit. `batch_size` counts pairs.

    The learning rate rises over the first `warmup` of all steps, then falls in a straight line to 0. A batch is worked
    off in micro-batches of pairs of like length: same gradient, less padding, less memory. `validation` is the share of
    the *training* prompts set aside to pick the best epoch; fitting ends after `patience` epochs in a row that were no
    better. `dropout` acts on the state the head reads. The trunk's own dropout is never on.
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
    validation: float = 0.1
    patience: int = 1

    def __post_init__(self) -> None:
        above_zero = ("learning_rate", "epochs", "batch_size", "micro_batch_size", "max_gradient_norm", "patience")
        shares = ("warmup", "dropout", "validation")
        _refuse(
            *(f"{name}: {getattr(self, name)!r} is not above 0" for name in above_zero if not getattr(self, name) > 0),
            *(
                f"{name}: {getattr(self, name)!r} is not in [0, 1)"
                for name in shares
                if not 0 <= getattr(self, name) < 1
            ),
            *([] if self.weight_decay >= 0 else [f"weight_decay: {self.weight_decay!r} is negative"]),
        )


@dataclass(frozen=True)
class Epoch:
    """One pass over the fitting pairs. The validation numbers are None when nothing was set aside."""

    loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class TrainingRecord:
    """What was done: saved beside the weights. `best` is the index of the epoch whose weights were kept."""

    config: RewardModelConfig
    pairs: int
    validation_pairs: int
    steps: int
    epochs: tuple[Epoch, ...]
    best: int


class RewardModel(nn.Module):
    """`score` gives one number per episode: mean 0 and standard deviation 1 over the responses it was fitted on.

    `trunk` is a transformers model without its head, `tokenizer_folder` where its tokenizer files are (they are saved
    along, and read when a response has no token ids). The head starts at zero: all scores are equal at first.
    """

    def __init__(self, trunk: Any, *, tokenizer_folder: str | Path | None = None) -> None:
        super().__init__()
        self.trunk = trunk.eval()
        config = trunk.config.get_text_config()
        parameter = next(trunk.parameters())
        self.head = nn.Parameter(torch.zeros(config.hidden_size, dtype=parameter.dtype, device=parameter.device))
        self.mean, self.std = 0.0, 1.0
        self.record: TrainingRecord | None = None
        self.tokenizer_folder = tokenizer_folder
        self._vocab_size = int(trunk.get_input_embeddings().weight.shape[0])
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        # ALiBi models read positions off the mask
        self._takes_positions = "position_ids" in inspect.signature(trunk.forward).parameters

    @classmethod
    def from_trunk(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> RewardModel:
        """An unfitted model on the trunk of a saved language model. Raises DataError when there is none in `folder`."""
        folder = assets.resolve(str(folder))
        return cls(_load_trunk(Path(folder), dtype), tokenizer_folder=folder)

    def forward(self, ids: Tensor, lengths: Tensor, *, dropout: float = 0.0, generator: Any = None) -> Tensor:
        """Scores [B] before normalisation, of `ids` int64[B, L] padded on the right to texts of `lengths` int64[B]."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        mask = (positions < lengths[:, None]).long()
        told = {"position_ids": positions.expand_as(ids)} if self._takes_positions else {}
        hidden = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False, **told).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        if dropout:
            kept = torch.rand(last.shape, generator=generator, dtype=last.dtype).to(last.device) >= dropout
            last = last * kept / (1 - dropout)
        scores: Tensor = last @ self.head
        return scores

    def train(self, mode: bool = True) -> RewardModel:
        """As in torch, but the trunk stays in evaluation mode: the same text has the same score at any time."""
        super().train(mode)
        self.trunk.eval()
        return self

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B]. Raises DataError for a text that is empty, too long, or holds ids outside the vocabulary."""
        return self.score_ids([episode.ids for episode in episodes])

    def score_pairs(self, preferences: Sequence[Preference]) -> tuple[Float, Float]:
        """The scores of chosen and rejected, float64[P] each."""
        scores = self.score_ids([ids for pair in self.read_pairs(preferences) for ids in pair])
        return scores[0::2], scores[1::2]

    @torch.no_grad()
    def score_ids(self, texts: Sequence[Int]) -> Float:
        """float64[B] for texts of token ids, int64[L_b] each. Neither padding nor batch mates change a score."""
        scores = np.empty(len(texts), dtype=np.float64)
        for batch in _batches([len(text) for text in texts]):
            scores[batch] = self._read([texts[i] for i in batch]).double().cpu().numpy()
        return (scores - self.mean) / self.std

    def read_pairs(self, preferences: Sequence[Preference]) -> list[tuple[Int, Int]]:
        """The token ids of (prompt and chosen, prompt and rejected). Text without ids is tokenised here."""
        sides = [side for it in preferences for side in (it.chosen, it.rejected)]
        tokenizer = self._tokenizer() if any(side.ids is None for side in sides) else None
        return [
            (_text_ids(it.prompt, it.chosen, tokenizer), _text_ids(it.prompt, it.rejected, tokenizer))
            for it in preferences
        ]

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
        model = cls.from_trunk(path, dtype=_DTYPES[card["dtype"]])
        model.head.data.copy_(load_file(path / _HEAD)["head"])
        model.mean, model.std = card["mean"], card["std"]
        model.record = card["record"]
        return model

    def _read(self, texts: Sequence[Int], **dropout: Any) -> Tensor:
        """Scores [B] before normalisation, with gradient."""
        self._check(texts)
        ids = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
        device = self.head.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        scores: Tensor = self(torch.from_numpy(ids).to(device), lengths, **dropout)
        return scores

    def _check(self, texts: Sequence[Int]) -> None:
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

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer_folder is None:
            raise DataError(
                "responses without token ids need the reward model's tokenizer, and none came with the trunk"
            )
        return load_tokenizer(self.tokenizer_folder)

    def _write(self, folder: Path) -> None:
        with quiet_transformers():
            self.trunk.save_pretrained(folder)
        save_file({"head": self.head.detach().cpu().contiguous()}, folder / _HEAD)
        if self.tokenizer_folder is not None and Path(self.tokenizer_folder).is_dir():
            for pattern in _TOKENIZER_FILES:
                for file in Path(self.tokenizer_folder).glob(pattern):
                    shutil.copy(file, folder)
        card = {
            "format": _FORMAT,
            "dtype": str(self.head.dtype).removeprefix("torch."),
            "mean": self.mean,
            "std": self.std,
            "record": None if self.record is None else asdict(self.record),
            "sha256": {file.name: _sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        }
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def fit_reward_model(
    preferences: Sequence[Preference],
    trunk: str | Path | RewardModel,
    config: RewardModelConfig,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> tuple[RewardModel, TrainingRecord]:
    """Fit a Bradley-Terry model to preferences; `trunk` is a model folder, or a RewardModel to go on from (changed).

    Deterministic given `generator`, which draws the order of the pairs and the dropout. Keep held-out pairs away from
    `preferences`: `PreferenceStore.split`. Raises DataError when there is nothing to fit, RunFailed when it diverges.
    """
    model = trunk if isinstance(trunk, RewardModel) else RewardModel.from_trunk(trunk, dtype=dtype)
    # The salt makes this division independent of the one that took the held-out prompts away.
    fitting, validating = split_by_prompt(preferences, config.validation, salt="validation")
    if not fitting:
        raise DataError(f"no preferences to fit a reward model to: got {len(preferences)}")
    pairs, held_back = model.read_pairs(fitting), model.read_pairs(validating)
    model._check([text for pair in (*pairs, *held_back) for text in pair])
    weight = torch.tensor([it.weight for it in fitting], dtype=model.head.dtype, device=model.head.device)
    optimizer = _optimizer(model, config)
    steps = config.epochs * math.ceil(len(pairs) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_linear(steps, config.warmup))
    model.mean, model.std = 0.0, 1.0

    epochs: list[Epoch] = []
    best, best_weights = 0, {}
    done = 0
    for index in range(config.epochs):
        losses = []
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for start in range(0, len(order), config.batch_size):
            batch = order[start : start + config.batch_size]
            optimizer.zero_grad()
            losses.append(_accumulate_gradient(model, pairs, weight, batch, config, generator))
            if not math.isfinite(losses[-1]):
                raise RunFailed(f"the reward model diverged at step {done + 1}: lower learning_rate")
            nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
            optimizer.step()
            schedule.step()
            done += 1
            if progress is not None:
                progress(done, steps, losses[-1])
        epochs.append(Epoch(float(np.mean(losses)), *_validate(model, held_back, validating)))
        now, then = epochs[index].validation_loss, epochs[best].validation_loss
        if index == 0 or now is None or then is None or now < then:
            best, best_weights = index, {name: value.clone() for name, value in model.state_dict().items()}
        elif index - best >= config.patience:
            break
    model.load_state_dict(best_weights)
    _normalise(model, [*pairs, *held_back])
    model.record = TrainingRecord(config, len(fitting), len(validating), done, tuple(epochs), best)
    return model, model.record


def _accumulate_gradient(
    model: RewardModel,
    pairs: Sequence[tuple[Int, Int]],
    weight: Tensor,
    batch: Sequence[int],
    config: RewardModelConfig,
    generator: torch.Generator,
) -> float:
    """Add the gradient of the batch's loss to the parameters; returns the loss. Micro-batches change neither."""
    by_length = sorted(batch, key=lambda i: max(map(len, pairs[i])))
    total = 0.0
    for start in range(0, len(by_length), config.micro_batch_size):
        rows = by_length[start : start + config.micro_batch_size]
        texts = [pairs[i][side] for side in (0, 1) for i in rows]
        chosen, rejected = model._read(texts, dropout=config.dropout, generator=generator).chunk(2)
        share = weight[rows].sum() / weight[list(batch)].sum()
        loss = share * bradley_terry_loss(chosen, rejected, weight[rows], config.margin)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _validate(
    model: RewardModel, pairs: Sequence[tuple[Int, Int]], preferences: Sequence[Preference]
) -> tuple[float | None, float | None]:
    """(loss, accuracy) without margin, or Nones when there is nothing to validate on."""
    if not pairs:
        return None, None
    scores = model.score_ids([text for pair in pairs for text in pair])
    chosen, rejected = scores[0::2], scores[1::2]
    weight = torch.tensor([it.weight for it in preferences], dtype=torch.float64)
    loss = bradley_terry_loss(torch.from_numpy(chosen), torch.from_numpy(rejected), weight)
    return float(loss), accuracy_with_interval(chosen, rejected).value


def _normalise(model: RewardModel, pairs: Sequence[tuple[Int, Int]]) -> None:
    """Set mean and std so that the different texts of `pairs` score 0 on average with standard deviation 1."""
    texts = {text.tobytes(): text for pair in pairs for text in pair}
    model.mean, model.std = 0.0, 1.0
    scores = model.score_ids(list(texts.values()))
    model.mean, spread = float(scores.mean()), float(scores.std())
    model.std = spread if scores.max() > scores.min() else 1.0


def _optimizer(model: RewardModel, config: RewardModelConfig) -> torch.optim.Optimizer:
    """AdamW; gains and the head do not decay towards zero, matrices do."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def _warmup_then_linear(steps: int, warmup: float) -> Callable[[int], float]:
    rising = round(warmup * steps)
    return lambda step: (step + 1) / (rising + 1) if step < rising else (steps - step) / (steps - rising)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most POSITIONS_AT_ONCE positions."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > POSITIONS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _text_ids(prompt: Prompt, response: Response, tokenizer: Tokenizer | None) -> Int:
    """int64[L]: the ids as written; text of people and data sets is encoded, and ends with the end token."""
    if response.ids is not None and response.prompt_ids is not None:
        return np.array([*response.prompt_ids, *response.ids], dtype=np.int64)
    assert tokenizer is not None  # read_pairs loads one when it is needed
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
        card["mean"], card["std"] = float(card["mean"]), float(card["std"])
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
