"""Any transformers causal language model as a policy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.anatomy import Anatomy, anatomy_of, drops_out
from rlhf_env.policies.attention import in_own_precision
from rlhf_env.policies.decoding import Decoding
from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.lm_head import LinearHead, is_all_there_is, linear_head, score_logits
from rlhf_env.policies.policy import Sampling, TextEvaluation, Written
from rlhf_env.policies.streams import RowStreams
from rlhf_env.policies.trunk import layout_of, read
from rlhf_env.policies.untyped import HFConfig, HFModel
from rlhf_env.types import Bool, Episode, Float, Int, Observation, State

# How much `response_logprobs` takes on at once: positions read, and logits (256 MB of float32) of a head of the model's
# own making; those of a linear head are never all there.
POSITIONS_AT_ONCE = 8192
LOGITS_AT_ONCE = 2**26

# Texts written side by side: more gain little, and every one keeps its keys and values.
ROWS_AT_ONCE = 256


class LanguageModel(nn.Module):
    """A causal LM of the transformers library as a `Policy`; see there for the methods.

    `end_id` and `pad_id` default to those of the model's configuration (pad falls back to end). `seed` starts the
    streams that `write` draws from, one a row: what a row writes does not depend on the others.

    `rows_at_once`: texts that `write` keeps keys and values of, and so its memory; more are written in several waves,
    and read anew at every call. `fused`: sample by `FusedStep` and learn by `trunk.read` where they know the model
    (and no dropout is on); the results are the same.
    """

    def __init__(
        self,
        model: HFModel,
        *,
        end_id: int | None = None,
        pad_id: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        rows_at_once: int = ROWS_AT_ONCE,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if rows_at_once < 1:
            raise ConfigError(f"rows_at_once must be at least 1, got {rows_at_once}")
        in_own_precision(model)
        self.model = model
        self.sampling = sampling
        self.rows_at_once, self.fused = rows_at_once, fused
        self._text_config: HFConfig = model.config.get_text_config()
        self._vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self._end_id = self._known_id("end_id", end_id, self._text_config.eos_token_id)
        self._pad_id = self._known_id("pad_id", pad_id, self._text_config.pad_token_id, self._end_id)
        # Torch keeps gradients from the padding token's embedding, which may well be the end token's. The masks say
        # what is padding.
        model.get_input_embeddings().padding_idx = None
        self._streams = RowStreams(seed)
        self._decoding: Decoding | None = None  # what the last `write` left, for the next to go on from
        self._weights_read: tuple[object, ...] = ()  # and the weights it was made with
        self._known_head: tuple[object, bool] = (None, False)  # a head, and whether it is all that makes logits

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        end_id: int | None = None,
        pad_id: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        revision: str | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
        fused: bool = True,
    ) -> LanguageModel:
        """A model from a folder or, if there is no such folder, from the hub (or its cache on this machine).

        Weights are read from safetensors only, code of the model's author is not run, and whatever precision is on
        disk becomes `dtype`. DataError, in one line, when there is no usable model.
        """
        model = _load(name, dtype, revision)
        return cls(
            model,
            end_id=end_id,
            pad_id=pad_id,
            sampling=sampling,
            seed=seed,
            rows_at_once=rows_at_once,
            fused=fused,
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and safetensors into a folder that transformers, and `from_pretrained`, can read."""
        for config in (self._text_config, getattr(self.model, "generation_config", None)):
            if config is not None:
                config.eos_token_id, config.pad_token_id = self.end_id, self.pad_id
        with quiet_transformers():
            self.model.save_pretrained(path)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def end_id(self) -> int:
        return self._end_id

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def hidden_size(self) -> int:
        return int(self._text_config.hidden_size)

    @property
    def context(self) -> int | None:
        """The longest text the model can read; None without a limit."""
        limit = getattr(self._text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def write(self, observation: Observation, length: int, rows: Bool | None = None) -> Written:
        texts, mask = np.asarray(observation["input_ids"], np.int64), np.asarray(observation["attention_mask"], bool)
        rows = observation.get("writing") if rows is None else rows
        rows = np.ones(len(texts), bool) if rows is None else np.asarray(rows, bool)
        lengths = mask.sum(1)
        self._check_prompts(texts, mask, lengths, rows, length)
        uniforms = self._streams.next(len(texts), length)

        # Taken out while it works: a call that is interrupted leaves nothing half-written behind.
        decoding, self._decoding = self._decoding, None
        weights = self._weights()
        if decoding is not None and weights == self._weights_read and decoding.continues(texts, lengths, rows):
            waves, fused = [rows], decoding.fused
        else:
            decoding, waves = None, list(self._waves(rows))
            anatomy = self._anatomy()
            fused = None if anatomy is None else FusedStep(self.model, anatomy)
        written = Written(np.full(uniforms.shape, self.vocab_size, np.int64), np.zeros(uniforms.shape))
        for wave in waves:
            if decoding is None or len(waves) > 1:
                decoding = Decoding(self.model, texts, lengths, wave, fused)
            with _without_dropout(self):
                piece = decoding.write(uniforms, wave, self.sampling, end_id=self.end_id, vocab_size=self.vocab_size)
            written.tokens[wave], written.logprobs[wave] = piece.tokens[wave], piece.logprobs[wave]
        self._streams.take((written.tokens < self.vocab_size).sum(1))
        if decoding is not None and len(waves) == 1 and decoding.live.any():
            self._decoding, self._weights_read = decoding, weights
        return written

    def _waves(self, rows: Bool) -> Iterator[Bool]:
        """`rows` bool[B] in parts of at most `rows_at_once`."""
        asked = np.flatnonzero(rows)
        for start in range(0, len(asked), self.rows_at_once):
            yield np.isin(np.arange(len(rows)), asked[start : start + self.rows_at_once])

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        if torch.is_grad_enabled():
            self.forget()  # learning begins: the memory is worth more now
        tokens, mask, where = (
            tokens.to(self.device),
            mask.to(self.device, torch.bool),
            where.to(self.device, torch.bool),
        )
        if (mask[:, 1:] & ~mask[:, :-1]).any():  # padding on the left, or between: moved to the right and back
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            moved = self.evaluate(tokens.gather(1, order), mask.gather(1, order), where.gather(1, order))
            back = order.argsort(dim=1)
            hidden = moved.hidden.gather(1, back[..., None].expand_as(moved.hidden))
            return TextEvaluation(moved.logprobs.gather(1, back), moved.entropy.gather(1, back), hidden)
        self._check_places(mask, where)
        length = tokens.shape[1]
        # The state at t - 1 speaks about t, so the last column is never read, nor is padding that all rows share.
        width = min(int(mask.sum(1).max()), length - 1, self.context or length)
        tokens, mask, scored = tokens[:, : width + 1], mask[:, :width], where[:, 1 : width + 1]
        chosen, temperature = tokens[:, 1:][scored], self.sampling.temperature
        head, anatomy = self._linear_head(), self._anatomy()
        if anatomy is not None and head is not None and width and not drops_out(self.model):
            layout = layout_of(tokens[:, :width], mask)
            flat = read(anatomy, layout)
            logprobs, entropy = head.score(flat.index_select(0, layout.places[scored]), chosen, temperature)
            states = flat.index_select(0, layout.places.flatten()).view(*mask.shape, -1)
        else:
            own = torch.zeros_like(scored) if head is not None else scored  # where the model's own code makes logits
            states, logits = self._read(tokens[:, :width], mask, own)
            if head is not None:
                logprobs, entropy = head.score(states[scored], chosen, temperature)
            else:
                logprobs, entropy = score_logits(logits, chosen, temperature)
        nothing = torch.zeros(where.shape, dtype=logprobs.dtype, device=self.device)
        hidden = F.pad(states.masked_fill(~mask[..., None], 0.0), (0, 0, 1, length - 1 - width))
        return TextEvaluation(nothing.masked_scatter(where, logprobs), nothing.masked_scatter(where, entropy), hidden)

    @torch.no_grad()
    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        answers: list[Float] = [np.zeros(0)] * len(episodes)
        with _without_dropout(self):
            for batch in self._batches(episodes):
                tokens, mask, where = padded([episodes[index] for index in batch], self.pad_id)
                logprobs = self.evaluate(tokens, mask, where).logprobs.double().cpu().numpy()
                for row, index in enumerate(batch):
                    start = len(episodes[index].prompt_ids)
                    answers[index] = logprobs[row, start : start + len(episodes[index].response_ids)].copy()
        return answers

    def frozen_copy(self) -> LanguageModel:
        frozen = copy.deepcopy(self)
        return frozen.eval().requires_grad_(False)

    def reseed(self, seed: int) -> None:
        self._streams = RowStreams(seed)

    def sampling_state(self) -> State:
        return self._streams.state()

    def load_sampling_state(self, state: Mapping[str, object], /) -> None:
        self._streams = RowStreams.of(state)

    def forget(self) -> None:
        """Free what `write` keeps for the next call.

        It notices new weights by itself (an optimizer step, `load_state_dict`); call this after changing weights behind
        autograd's back, through `parameter.data`.
        """
        self._decoding = None

    def __getstate__(self) -> State:  # for copy and pickle: the cache is not part of the policy
        return {**self.__dict__, "_decoding": None}

    def _read(self, tokens: Tensor, mask: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, L, H] and the logits [N, V] at the N places where `scored` is True."""
        if not tokens.shape[1]:
            return (
                torch.zeros(len(tokens), 0, self.hidden_size, dtype=self.dtype, device=self.device),
                torch.zeros(0, self.vocab_size, dtype=self.dtype, device=self.device),
            )
        # Nothing attends to padding on its right: the plain causal mask will do, and kernels are fastest with it.
        attention_mask = torch.ones_like(mask)
        positions = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
        return forward_pass(
            self.model, tokens.masked_fill(~mask, 0), attention_mask, positions, select=lambda states: states[scored]
        )

    def _anatomy(self) -> Anatomy | None:
        """What the quick ways need to know; None where the model's own code has to do."""
        return anatomy_of(self.model) if self.fused else None

    def _linear_head(self) -> LinearHead | None:
        """The head, if its `score` is what the model's own code would give; one seen before is not tried again."""
        head = linear_head(self.model)
        if head is None:
            return None
        module = self.model.get_output_embeddings()
        if self._known_head[0] is not module:
            with _without_dropout(self):
                self._known_head = (module, is_all_there_is(head, self.model))
        return head if self._known_head[1] else None

    def _weights(self) -> tuple[object, ...]:
        """Differs after every in-place change of a parameter that autograd knows of, and after every replacement."""
        return tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())

    def _batches(self, episodes: Sequence[Episode]) -> Iterator[list[int]]:
        """Indices of episodes, texts of like length together, each batch within the limits above."""
        by_length = sorted(range(len(episodes)), key=lambda index: len(episodes[index].ids))
        batch: list[int] = []
        scored, chunked = 0, self._linear_head() is not None
        for index in by_length:
            scored += len(episodes[index].response_ids)
            positions = (len(batch) + 1) * len(episodes[index].ids)
            logits = 0 if chunked else scored * self.vocab_size
            if batch and (positions > POSITIONS_AT_ONCE or logits > LOGITS_AT_ONCE):
                yield batch
                batch, scored = [], len(episodes[index].response_ids)
            batch.append(index)
        if batch:
            yield batch

    def _known_id(self, name: str, *candidates: Any) -> int:
        """The first candidate that says anything; the first id where a model has several end tokens."""
        for candidate in candidates:
            value = candidate[0] if isinstance(candidate, list | tuple) and candidate else candidate
            if value is None or isinstance(value, list | tuple):
                continue
            if not 0 <= value < self._vocab_size:
                raise ConfigError(f"{name}: {value} is outside the model's vocabulary of {self._vocab_size}")
            return int(value)
        raise ConfigError(f"{name}: the model's configuration names none: give one")

    def _check_prompts(self, texts: Int, mask: Bool, lengths: Int, rows: Bool, length: int) -> None:
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ConfigError("attention_mask: observations are padded on the right")
        if not rows.any():
            return
        if (lengths[rows] == 0).any():
            row = int(np.flatnonzero(rows & (lengths == 0))[0])
            raise DataError(f"row {row}: nothing to go on from, the prompt is empty (begin it with a start token)")
        # The last token written is not read again, hence the one place more.
        if self.context is not None and lengths[rows].max() + length > self.context + 1:
            longest = int(lengths[rows].max())
            raise DataError(
                f"a text of {longest} tokens and {length} new ones exceed the model's context of {self.context}: "
                "shorten the prompt or max_new_tokens"
            )
        inside = texts[rows][mask[rows]]
        if inside.min() < 0 or inside.max() >= self.vocab_size:
            raise DataError(f"a token id is outside the model's vocabulary of {self.vocab_size}")

    def _check_places(self, mask: Tensor, where: Tensor) -> None:
        if (where & ~mask).any():
            raise ConfigError("where: asks for a place outside the text (mask is False there)")
        if where[:, :1].any() or (where[:, 1:] & ~mask[:, :-1]).any():
            raise ConfigError("where: asks for the first token of a text, which no distribution was stated for")
        if self.context is not None and mask.shape[1] and int(mask.sum(1).max()) > self.context + 1:
            raise DataError(f"a text of {int(mask.sum(1).max())} tokens exceeds the model's context of {self.context}")


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars over a few files, no tables: what is wrong becomes an exception."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def padded(episodes: Sequence[Episode], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask, and where the agent chose: [B, L] each."""
    width = max(len(episode.ids) for episode in episodes)
    tokens = np.full((len(episodes), width), pad_id, np.int64)
    mask, where = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, episode in enumerate(episodes):
        start, end = len(episode.prompt_ids), len(episode.ids)
        tokens[row, :end], mask[row, :end], where[row, start:end] = episode.ids, True, episode.actions
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where)


def _load(name: str | Path, dtype: torch.dtype, revision: str | None) -> HFModel:
    from huggingface_hub import constants
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = Path(assets.resolve(str(name))).expanduser()
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    elif folder.exists() or str(name).startswith(("/", ".", "~")):
        raise DataError(f"model {str(name)!r}: there is no such folder")
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder) if local else str(name),
                dtype=dtype,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        why = str(problem).strip().split("\n")[0]
        if not local and constants.HF_HUB_OFFLINE:
            why = "no such folder, not in this machine's hub cache, and HF_HUB_OFFLINE forbids fetching it"
        elif not local:
            why = f"no such folder, and the hub did not give it: {why}"
        raise DataError(f"model {str(name)!r}: {why}") from None
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise DataError(f"model {str(name)!r}: {len(missing)} weights are missing, {missing[0]} among them")
    for parameter in model.parameters():
        # Out of the file's memory map: whoever rewrites the file changes nothing here, and the same weights give the
        # same bits (kernels sum in another order where tensors do not begin at a multiple of 64 bytes).
        parameter.data = parameter.data.clone()
    return model


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise DataError(f"model {str(folder)!r}: not a model folder, config.json is missing")
    if not any(folder.glob("*.safetensors")):
        remedy = " (pickled weights are not read: save them as safetensors)" if any(folder.glob("*.bin")) else ""
        raise DataError(f"model {str(folder)!r}: the weights, *.safetensors, are missing{remedy}")
