"""A Bradley-Terry reward model: a scalar head on the trunk of any transformers language model, fitted to preferences.

The model of Bradley & Terry, "Rank Analysis of Incomplete Block Designs" (Biometrika 1952): each text has a score, and

    P(a preferred to b) = sigmoid(score(a) - score(b))

fitted by maximum likelihood, as in Christiano et al. 2017 (1706.03741), Stiennon et al. 2020 (2009.01325) and Ouyang et
al. 2022 (2203.02155). The score is read at the last token of the text, which is found from its length. Whether that is
the end token is part of what the model sees: token ids are scored as they were written, never made again from text.
A head of the kind "reply" reads more: the whole response, and how likely the trunk finds it.

Several heads on one trunk are an ensemble that costs one forward pass. `fitting.py` fits, `scorer.py` loads. How texts
are read, the heads, and the files of a saved model are one class's business, so they are one file.
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
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_env import assets
from rlhf_env.envs.tokenizers import load_tokenizer, prompt_ids
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.judgements import Preference, Response
from rlhf_env.feedback.reward_models.config import Epoch, HeadKind, RewardModelConfig, TrainingRecord
from rlhf_env.feedback.reward_models.reply_head import LIKELIHOODS, NEURONS, HiddenLayer, likelihoods_of
from rlhf_env.learning.devices import find_device, placed
from rlhf_env.learning.run_models import model_folder
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.loading import base_and_adapter, load_with_adapter
from rlhf_env.policies.lora import ADAPTER_FILE, merge_adapter
from rlhf_env.policies.precision import as_float64
from rlhf_env.policies.sizes import require_room
from rlhf_env.policies.trunk import hidden_states, prefix_tree
from rlhf_env.policies.untyped import HFModel
from rlhf_env.types import Episode, Float, Int, JsonObject, Prompt, Tokenizer

_POSITIONS_AT_ONCE = 8192  # tokens and padding in one forward pass when scoring
_FORMATS: dict[HeadKind, int] = {"linear": 1, "reply": 2}  # who can read only 1 refuses the others by name
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CARD, _HEAD = "reward_model.json", "reward_head.safetensors"
_TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "generation_config.json"),  # how it is asked, and what ends its texts
)


@dataclass(frozen=True)
class Text:
    """The token ids of prompt and response, int64[L], and the place where the response begins."""

    ids: Int
    start: int

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, episode: Episode) -> Text:
        return cls(episode.ids, len(episode.prompt_ids))


class RewardModel(nn.Module):
    """`score` gives one number per episode: mean 0 and standard deviation 1 over the responses it was fitted on.

    `trunk` is a transformers model without its head, `tokenizer_folder` where its tokenizer files are (they are saved
    along, and read when a response has no token ids). `heads` [M, F] start at zero: all scores are equal at first. What
    they read is the state of the last token, F = H; with `head="reply"` see `RewardModelConfig`, F = 2 H + 137. With
    several, `score` is the mean of the members, each of which has mean 0 (Bradley-Terry scores have no zero of their
    own) in the unit of the mean. A difference of 1 is `std` log-odds.
    """

    def __init__(
        self, trunk: HFModel, *, members: int = 1, head: HeadKind = "linear", tokenizer_folder: str | Path | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk.eval()
        config = trunk.config.get_text_config()
        like = next(trunk.parameters())
        self.head = head
        self.hidden: HiddenLayer | None = None
        read = int(config.hidden_size)
        if head == "reply":
            if not config.tie_word_embeddings:
                raise ConfigError(
                    "head: 'reply' reads likelihoods off the trunk's embeddings, and this trunk has others for its "
                    "output (tie_word_embeddings is false): use 'linear'"
                )
            read = 2 * read + LIKELIHOODS
            self.hidden = HiddenLayer(read).to(like)
            read += NEURONS
        self.heads = nn.Parameter(torch.zeros(members, read, dtype=like.dtype, device=like.device))
        self.mean: Float = np.zeros(members)
        self.std = 1.0
        self.record: TrainingRecord | None = None
        self.tokenizer_folder = tokenizer_folder
        self._own_tokenizer: Tokenizer | None = None  # read when it is first needed
        self._vocab_size = int(trunk.get_input_embeddings().weight.shape[0])
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        # ALiBi models read positions off the mask
        self._takes_positions = "position_ids" in inspect.signature(trunk.forward).parameters

    @classmethod
    def from_trunk(
        cls,
        folder: str | Path,
        *,
        members: int = 1,
        head: HeadKind = "linear",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> RewardModel:
        """An unfitted model on the trunk of a saved language model, or of a run's. DataError when there is none."""
        place = find_device(device)
        folder = model_folder(assets.resolve(str(folder)))
        trunk = _load_trunk(Path(folder), dtype)
        if not (Path(folder) / "tokenizer.json").is_file():  # an adapter may have that of the model below it
            folder, _ = base_and_adapter(folder)
        return placed(cls(trunk, members=members, head=head, tokenizer_folder=folder), place)

    @property
    def log_odds_per_point(self) -> float:
        """What a difference of 1 between two scores is worth in log-odds: `calibration.win_probability` takes those."""
        return self.std

    @property
    def members(self) -> int:
        return len(self.heads)

    @property
    def context(self) -> int | None:
        return self._context

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What token ids are made with where a response has none; None where no tokenizer came with the trunk."""
        return None if self.tokenizer_folder is None else self._tokenizer()

    def lengths(self, responses: Sequence[tuple[Prompt, Response]]) -> list[int]:
        return [len(text) for text in self.read(responses)]

    def forward(
        self, ids: Tensor, lengths: Tensor, starts: Tensor, *, dropout: float = 0.0, generator: object = None
    ) -> Tensor:
        """Scores [M, B] before normalisation, of `ids` int64[B, L], texts of `lengths` int64[B] padded on the right;
        responses begin at `starts` int64[B]."""
        return self.judge(self.features(ids, lengths, starts), dropout=dropout, generator=generator)

    def features(self, ids: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """What the trunk has to say about each text, [B, F']: the last state, and for the head "reply" the rest."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        mask = positions < lengths[:, None]
        hidden = self._states(ids, mask, positions)
        last: Tensor = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        if self.hidden is None:
            return last
        response = mask & (positions >= starts[:, None])
        mean = (hidden * response[..., None]).sum(dim=1) / response.sum(dim=1, keepdim=True).clamp(min=1)
        likelihoods = likelihoods_of(hidden, self.trunk.get_input_embeddings().weight, ids, response, lengths)
        return torch.cat([last, mean, likelihoods], dim=1)

    def _states(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The trunk's hidden states [B, L, H]; those on padding mean nothing."""
        anatomy = anatomy_of(self.trunk)
        if anatomy is not None:
            tree = prefix_tree(ids, mask)
            return hidden_states(anatomy, tree).index_select(0, tree.nodes.flatten()).view(*ids.shape, -1)
        told = {"position_ids": positions.expand_as(ids)} if self._takes_positions else {}
        states: Tensor = self.trunk(
            input_ids=ids, attention_mask=mask.long(), use_cache=False, **told
        ).last_hidden_state
        return states

    def judge(self, features: Tensor, *, dropout: float = 0.0, generator: Any = None) -> Tensor:
        """Scores [M, B] before normalisation, of what `features` gave."""
        read = features if self.hidden is None else self.hidden(features)
        if dropout:
            kept = torch.rand(read.shape, generator=generator, dtype=read.dtype).to(read.device) >= dropout
            read = read * kept / (1 - dropout)
        scores: Tensor = self.heads @ read.T
        return scores

    def train(self, mode: bool = True) -> RewardModel:
        """As in torch, but the trunk stays in evaluation mode: the same text has the same score at any time."""
        super().train(mode)
        self.trunk.eval()
        return self

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B]. Raises DataError for a text that is empty, too long, or holds ids outside the vocabulary."""
        return self.score_texts([Text.of(episode) for episode in episodes])

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        """float64[M, B]: what each head says; `score` is their mean."""
        return self._member_scores([Text.of(episode) for episode in episodes])

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        """float64[B]. Token ids are scored as they were written; text without ids is tokenised here."""
        return self.score_texts(self.read(responses))

    def score_pairs(self, preferences: Sequence[Preference]) -> tuple[Float, Float]:
        """The scores of chosen and rejected, float64[P] each."""
        scores = self.score_responses(
            [
                (preference.prompt, side)
                for preference in preferences
                for side in (preference.chosen, preference.rejected)
            ]
        )
        return scores[0::2], scores[1::2]

    def score_texts(self, texts: Sequence[Text]) -> Float:
        """float64[B]. Neither padding nor batch mates change a score."""
        scores: Float = self._member_scores(texts).mean(axis=0)
        return scores

    def read(self, responses: Sequence[tuple[Prompt, Response]]) -> list[Text]:
        """The token ids of prompt and response: as written, or of the text and the end token."""
        tokenizer = self._tokenizer() if any(response.ids is None for _, response in responses) else None
        return [_text(prompt, response, tokenizer) for prompt, response in responses]

    def check(self, texts: Sequence[Text]) -> None:
        """Raise DataError for the first text that cannot be scored."""
        for text in texts:
            if not len(text):
                raise DataError("a text without a token cannot be scored")
            if self._context is not None and len(text) > self._context:
                raise DataError(f"a text of {len(text)} tokens exceeds the reward model's context of {self._context}")
            low, high = int(text.ids.min()), int(text.ids.max())
            if low < 0 or high >= self._vocab_size:
                raise DataError(
                    f"token id {low if low < 0 else high} is outside the reward model's vocabulary of "
                    f"{self._vocab_size}: was the text written with another tokenizer?"
                )

    def raw(self, texts: Sequence[Text], **dropout: object) -> Tensor:
        """Scores [M, B] before normalisation, with gradient. `dropout` and `generator` as in `forward`."""
        self.check(texts)
        return self(*self._batch(texts), **dropout)  # type: ignore[no-any-return]

    @torch.no_grad()
    def frozen_features(self, texts: Sequence[Text]) -> Tensor:
        """`features` of all texts, [B, F'], without gradient."""
        self.check(texts)
        rows: list[Tensor] = [self.heads[0]] * len(texts)
        for batch in batches_of_like_length([len(text) for text in texts]):
            for index, row in zip(batch, self.features(*self._batch([texts[i] for i in batch])), strict=True):
                rows[index] = row
        return torch.stack(rows)

    def _batch(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, lengths and starts on the model's device."""
        ids, lengths = padded_ids([text.ids for text in texts])
        starts = torch.tensor([text.start for text in texts])
        device = self.heads.device
        return ids.to(device), lengths.to(device), starts.to(device)

    @torch.no_grad()
    def scatter_heads(self, generator: torch.Generator) -> None:
        """Start the heads at random, with scores of about +-1 log-odds, so that members are of different opinions where
        no data change their minds."""
        start = torch.randn(self.heads.shape, generator=generator, dtype=torch.float64) / self.heads.shape[1] ** 0.5
        self.heads.copy_(start)

    @torch.no_grad()
    def normalise(self, texts: Sequence[Text]) -> None:
        """Set the zero of every member and the common unit so that the different `texts` score 0 +- 1 on average."""
        self.mean, self.std = np.zeros(len(self.heads)), 1.0
        scores = self._member_scores(distinct_texts(texts)[0])
        self.mean = scores.mean(axis=1)
        together = scores.mean(axis=0)
        self.std = float(together.std()) if together.max() > together.min() else 1.0

    @torch.no_grad()
    def _member_scores(self, texts: Sequence[Text]) -> Float:
        read, places = distinct_texts(texts)
        scores = np.empty((len(self.heads), len(read)), dtype=np.float64)
        for batch in batches_of_like_length([len(text) for text in read]):
            scores[:, batch] = as_float64(self.raw([read[i] for i in batch])).numpy()
        return np.asarray((scores[:, places] - self.mean[:, None]) / self.std)

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
    def load(cls, path: str | Path, *, device: str = "cpu") -> RewardModel:
        """The model that `save` wrote; its scores are the same to the last bit (on the processor).

        Raises DataError for others.
        """
        path = Path(path)
        card = _read_card(path)
        for name, expected in card["sha256"].items():
            if not (path / name).is_file() or _sha256(path / name) != expected:
                raise DataError(
                    f"reward model {path}: {name} is missing or damaged (its checksum differs): copy it anew"
                )
        head = next(kind for kind, number in _FORMATS.items() if number == card["format"])
        model = cls.from_trunk(path, members=len(card["mean"]), head=head, dtype=_DTYPES[card["dtype"]], device=device)
        weights = load_file(path / _HEAD)
        model.heads.data.copy_(weights.pop("head").reshape(model.heads.shape))
        if model.hidden is not None:
            model.hidden.load_state_dict(weights)
        model.mean, model.std = card["mean"], card["std"]
        model.record = card["record"]
        return model

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer_folder is None:
            raise DataError(
                "responses without token ids need the reward model's tokenizer, and none came with the trunk"
            )
        if self._own_tokenizer is None:
            self._own_tokenizer = load_tokenizer(self.tokenizer_folder)
        return self._own_tokenizer

    def _write(self, folder: Path) -> None:
        with quiet_transformers():
            self.trunk.save_pretrained(folder)
        weights = {"head": self.heads} | ({} if self.hidden is None else self.hidden.state_dict())
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / _HEAD)
        if self.tokenizer_folder is not None and Path(self.tokenizer_folder).is_dir():
            for pattern in _TOKENIZER_FILES:
                for file in Path(self.tokenizer_folder).glob(pattern):
                    shutil.copy(file, folder)
        card = {
            "format": _FORMATS[self.head],
            "dtype": str(self.heads.dtype).removeprefix("torch."),
            "mean": self.mean.tolist(),
            "std": self.std,
            "record": None if self.record is None else asdict(self.record),
            "sha256": {file.name: _sha256(file) for file in sorted(folder.glob("*.safetensors"))},
        }
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def distinct_texts(texts: Sequence[Text]) -> tuple[list[Text], list[int]]:
    """As `distinct`: equal are texts of equal ids whose responses begin at the same place."""
    rows, places = distinct([np.append(text.ids, text.start) for text in texts])
    return [Text(row[:-1], int(row[-1])) for row in rows], places


def distinct(texts: Sequence[Int]) -> tuple[list[Int], list[int]]:
    """The texts of which no two are equal, and which of them each of `texts` is: what is equal is read once."""
    seen: dict[tuple[int, ...], int] = {}
    places = [seen.setdefault(tuple(text.tolist()), len(seen)) for text in texts]
    return [np.array(text, dtype=np.int64) for text in seen], places


def batches_of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most _POSITIONS_AT_ONCE positions."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > _POSITIONS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded_ids(texts: Sequence[Int], filler: int = 0) -> tuple[Tensor, Tensor]:
    """`ids` int64[B, L], padded on the right with `filler`, and `lengths` int64[B]."""
    lengths = [len(text) for text in texts]
    ids = np.full((len(texts), max(lengths)), filler, dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return torch.from_numpy(ids), torch.tensor(lengths)


def _text(prompt: Prompt, response: Response, tokenizer: Tokenizer | None) -> Text:
    """The ids as written; text of people and data sets is encoded, and ends with the end token."""
    if response.ids is not None and response.prompt_ids is not None:
        return Text(np.array([*response.prompt_ids, *response.ids], dtype=np.int64), len(response.prompt_ids))
    assert tokenizer is not None  # `read` loads one when it is needed
    asked = prompt_ids(tokenizer, prompt)
    ended = [tokenizer.end_id] if response.finish_reason in (None, "stop", "stop_string") else []
    return Text(np.array([*asked, *tokenizer.encode(response.text), *ended], dtype=np.int64), len(asked))


def _load_trunk(folder: Path, dtype: torch.dtype) -> HFModel:
    from transformers import AutoModel

    if (folder / ADAPTER_FILE).is_file():  # of a policy that was trained with LoRA: the trunk of the merged model
        return merge_adapter(load_with_adapter(folder, dtype, None)).base_model
    if not (folder / "config.json").is_file():
        raise DataError(f"model folder {folder}: there is no config.json in it: name a folder that holds a saved model")
    require_room(folder, dtype, head=False)
    try:
        with quiet_transformers():
            trunk, report = AutoModel.from_pretrained(
                str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # the library raises exceptions of many kinds
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"model folder {folder}: {reason}") from error
    if report["missing_keys"]:  # they would be random numbers
        raise DataError(f"model folder {folder}: weights are missing, {min(report['missing_keys'])} among them")
    return trunk


def _read_card(path: Path) -> JsonObject:
    """The JSON of a reward model, checked. Raises DataError."""
    file = path / _CARD
    try:
        card: JsonObject = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] not in _FORMATS.values():
            known = " and ".join(map(str, _FORMATS.values()))
            raise DataError(f"{file} has format {card['format']}, and this rlhf-env reads formats {known}")
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


def _record_from_json(content: JsonObject | None) -> TrainingRecord | None:
    if content is None:
        return None
    epochs = tuple(Epoch(**epoch) for epoch in content["epochs"])
    settings = dict(content["config"])
    if settings.get("lora") is not None:
        settings["lora"] = Lora(**{**settings["lora"], "targets": tuple(settings["lora"]["targets"])})
    return TrainingRecord(**{**content, "config": RewardModelConfig(**settings), "epochs": epochs})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
