"""Any transformers causal language model as a policy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.anatomy import Anatomy, Recognized, anatomy_of, has_dropout
from rlhf_env.policies.attention import attend_in_own_precision
from rlhf_env.policies.decoding import Decoding
from rlhf_env.policies.differences import ForwardPath
from rlhf_env.policies.end_tokens import end_ids_beside, end_ids_of_model, listed
from rlhf_env.policies.experts import loop_over_experts_in_float64
from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.fused import FusedStep, Linear, SeparateLinear
from rlhf_env.policies.lm_head import LinearHead, gives_the_logits, linear_head, score_logits
from rlhf_env.policies.loading import base_and_adapter, context_of, load_with_adapter
from rlhf_env.policies.lora import has_adapter, is_of_adapter, merge_adapter
from rlhf_env.policies.low_precision import WriterDtype, require_known, writer_linear
from rlhf_env.policies.next_tokens import NextTokens, StatesRead
from rlhf_env.policies.policy import ALONE, InShards, Sampling, TextEvaluation, TextWriter, WritesTogether, Written
from rlhf_env.policies.precision import as_float64
from rlhf_env.policies.recomputation import recomputed_layers, require_layers
from rlhf_env.policies.soundness import trusted_path, warn_if_slow
from rlhf_env.policies.streams import RowStreams
from rlhf_env.policies.trunk import hidden_states, prefix_tree
from rlhf_env.policies.untyped import HFConfig, HFModel
from rlhf_env.types import Bool, Episode, Float, Int, Observation, State

# The size of a batch of `response_logprobs`, in tokens, and in logits (256 MB of float32) where the model's own head
# computes them. Those of a linear head never exist as a whole.
POSITIONS_AT_ONCE = 8192
LOGITS_AT_ONCE = 2**26

# The number of texts written side by side. More gain little, and each needs memory for its keys and values.
ROWS_AT_ONCE = 256


class LanguageModel(nn.Module):
    """A causal LM of the transformers library as a `Policy`; see there for the methods.

    `end_id`, one token or several, and `pad_id` default to those of the model's configuration and generation
    configuration (pad falls back to end): every end token ends a text, and the first is the one that closes texts of
    others. `seed` starts the random streams that `write` draws from, one per row: what a row writes does not depend on
    the other rows.

    `rows_at_once` bounds the memory of the key/value cache: of more texts, some begin when others end, and then every
    call reads them from the start. A model whose cache does not give what its own forward pass says reads every text
    whole at every step; DataError for one that is no causal language model (see `soundness`). `fused`: sample with
    `FusedStep` and learn with `trunk.hidden_states` where they know the model's family (and no dropout is active); the
    results are the same. `gradient_checkpointing`: see `recomputation`. `writer_dtype`: a copy in that precision
    writes, see `low_precision`.
    """

    together: WritesTogether = ALONE
    shards: InShards | None = None
    """How the model is divided among processes, where it is (`learning.sharding`)."""
    writer: TextWriter | None = None
    """Another engine, which writes in this one's place."""

    def __init__(
        self,
        model: HFModel,
        *,
        end_id: int | Sequence[int] | None = None,
        pad_id: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        rows_at_once: int = ROWS_AT_ONCE,
        fused: bool = True,
        gradient_checkpointing: bool = False,
        writer_dtype: WriterDtype | None = None,
    ) -> None:
        super().__init__()
        if rows_at_once < 1:
            raise ConfigError(f"rows_at_once must be at least 1, got {rows_at_once}")
        attend_in_own_precision(model)
        loop_over_experts_in_float64(model)
        self.model = model
        self.sampling = sampling
        self._recognized = Recognized()
        self.rows_at_once, self.fused = rows_at_once, fused
        require_known(writer_dtype, model, fused=fused, known=anatomy_of(model) is not None)
        self.writer_dtype = writer_dtype
        if gradient_checkpointing:
            require_layers(model)
        self.gradient_checkpointing = gradient_checkpointing
        self._text_config: HFConfig = model.config.get_text_config()
        head = model.get_output_embeddings()
        if getattr(head, "weight", None) is None:
            raise DataError(f"{type(model).__name__} has no head that gives a number to every token: it writes no text")
        self._vocab_size, self._hidden_size = map(int, head.weight.shape)
        self._end_ids = self._known_ids("end_id", end_ids_of_model(model) if end_id is None else end_id)
        self._pad_id = self._known_ids(
            "pad_id", pad_id, getattr(self._text_config, "pad_token_id", None), self._end_ids[0]
        )[0]
        # The embedding of torch's `padding_idx` gets no gradient, and the padding token may be the end token, which has
        # to learn. Our masks say what is padding.
        model.get_input_embeddings().padding_idx = None
        self._streams = RowStreams(seed)
        self._decoding: Decoding | None = None  # of the last call of `write`; the next may continue it
        self._decoding_weights: tuple[object, ...] = ()  # `_weights()` when it was made
        self._forgotten = 0  # how often `forget` was called
        self._known_head: tuple[object, bool] = (None, False)  # a head, and whether it alone gives the logits
        self._reads_whole = False
        with without_dropout(self):
            path = trusted_path(self)
        self._reads_whole = path == "whole"
        if path != "fused" and self.anatomy() is not None:
            self.fused = False
            require_known(writer_dtype, model, fused=fused, known=False)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        end_id: int | Sequence[int] | None = None,
        pad_id: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        revision: str | None = None,
        attention: str | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
        fused: bool = True,
        gradient_checkpointing: bool = False,
        writer_dtype: WriterDtype | None = None,
    ) -> LanguageModel:
        """A model from a folder or, if there is no such folder, from the hub (or its cache on this machine).

        Weights are read from safetensors only, code of the model's author is not run, and whatever precision is on
        disk becomes `dtype` (None: stays as it is, but float16 becomes float32). `attention` is one of the library's
        implementations, None for its own choice. DataError, in one line, when there is no usable model.
        """
        model = load_with_adapter(name, dtype, revision, attention)
        try:
            policy = cls(
                model,
                end_id=end_id if end_id is not None else end_ids_beside(base_and_adapter(name)[0], model),
                pad_id=pad_id,
                sampling=sampling,
                seed=seed,
                rows_at_once=rows_at_once,
                fused=fused,
                gradient_checkpointing=gradient_checkpointing,
                writer_dtype=writer_dtype,
            )
        except DataError as error:
            error.found_in(f"model {str(name)!r}")
            raise
        warn_if_slow(policy, str(name), fused=fused)
        return policy

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and safetensors into a folder that transformers, and `from_pretrained`, can read.

        Adapters are merged into the weights they belong to.
        """
        ends = list(self.end_ids) if len(self.end_ids) > 1 else self.end_id
        for config in (self._text_config, getattr(self.model, "generation_config", None)):
            if config is not None:
                config.eos_token_id, config.pad_token_id = ends, self.pad_id
        with quiet_transformers():
            (merge_adapter(self.model) if self.adapted else self.model).save_pretrained(path)

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
        return self._end_ids[0]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._end_ids

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    @property
    def context(self) -> int | None:
        """The longest text the model can read; None without a limit."""
        return context_of(self._text_config)

    @property
    def forward_path(self) -> ForwardPath:
        """What computes texts: our own code for the model's family; the model's code, with its cache; or without."""
        if self.anatomy() is not None:
            return "fused"
        return "whole" if self._reads_whole else "cached"

    def write(self, observation: Observation, length: int, rows: Bool | None = None) -> Written:
        texts, mask = np.asarray(observation["input_ids"], np.int64), np.asarray(observation["attention_mask"], bool)
        rows = observation.get("writing") if rows is None else rows
        rows = np.ones(len(texts), bool) if rows is None else np.asarray(rows, bool)
        lengths = mask.sum(1)
        self._check_prompts(texts, mask, lengths, rows, length)
        uniforms = self._streams.next(len(texts), length)
        write = partial(self._write, observation, texts, lengths, uniforms)
        if self.shards is not None:
            self.shards.gather()
        written = self.together.written(observation, rows, length, self.vocab_size, write)
        if self.shards is not None:
            self.shards.release_unless(self._decoding is not None)
        self._streams.take((written.tokens < self.vocab_size).sum(1))
        return written

    def next_numbers(self, rows: int, length: int) -> Float:
        """float64[rows, length]: what the next call of `write` draws its tokens by; the streams stay."""
        return self._streams.next(rows, length)

    def write_by(self, numbers: Float, observation: Observation, rows: Bool) -> Written:
        """As `write`, with given numbers in place of the streams'."""
        texts, mask = np.asarray(observation["input_ids"], np.int64), np.asarray(observation["attention_mask"], bool)
        return self._write(observation, texts, mask.sum(1), numbers, rows)

    def _write(self, observation: Observation, texts: Int, lengths: Int, uniforms: Float, rows: Bool) -> Written:
        """What these rows write, one token for each column of `uniforms` float64[B, k]; the streams stay."""
        length = uniforms.shape[1]
        # Not kept while it works: an interrupted call must not leave a half-written cache to the next.
        decoding, self._decoding = self._decoding, None
        if not rows.any():  # nothing is read, and no copy of the weights is made
            self._streams.take(np.zeros(len(texts), np.int64))
            return Written(np.full(uniforms.shape, self.vocab_size, np.int64), np.zeros(uniforms.shape))
        weights = self._weights()
        if self.writer is not None:
            return self.writer.write(self, weights, observation, rows, uniforms)
        if decoding is None or weights != self._decoding_weights or not decoding.continues(texts, lengths, rows):
            decoding = None
            anatomy = self.anatomy()
            steps = length * -(-int(rows.sum()) // self.rows_at_once)  # -(-a // b) is a / b, rounded up
            plain = Linear if self.shards is None else SeparateLinear  # one more copy of it is too many
            linear = writer_linear(self.writer_dtype, self.model, steps=steps) or plain
            fused = None if anatomy is None else FusedStep(self.model, anatomy, linear)
            whole = fused is None and self._reads_whole
            decoding = Decoding(self.model, texts, lengths, rows, fused, whole=whole, rows_at_once=self.rows_at_once)
        with without_dropout(self):
            written = decoding.write(
                uniforms,
                rows,
                self.sampling,
                end_ids=self.end_ids,
                vocab_size=self.vocab_size,
                stops=observation.get("stops"),
                stop_states=observation.get("stop_states"),
            )
        if decoding.can_be_continued and decoding.live.any():
            self._decoding, self._decoding_weights = decoding, weights
        return written

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        if self.shards is None:
            return self._evaluate(tokens, mask, where)
        if len(tokens):
            scored = self.shards.run(self._evaluate, tokens, mask, where)
        else:
            scored = self.shards.run(self._evaluate_nothing, tokens)
        if not torch.is_grad_enabled():
            self.shards.release()
        return scored

    def _evaluate_nothing(self, tokens: Tensor) -> TextEvaluation:
        """What `evaluate` says of no texts [0, L], from a pass that the other processes need this one for."""
        length = tokens.shape[1]
        scores = self._evaluate(*self._made_up_text())
        columns = F.pad(torch.stack([scores.logprobs, scores.entropy])[:, :0], (0, length))[..., :length]
        hidden = F.pad(scores.hidden[:0], (0, 0, 0, length))[:, :length]
        return TextEvaluation(columns[0].clone(), columns[1].clone(), hidden.clone())

    def _made_up_text(self) -> tuple[Tensor, Tensor, Tensor]:
        """A text of two tokens to `evaluate`, of which the second is scored."""
        tokens = torch.full((1, 2), self.end_id, device=self.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool), torch.tensor([[False, True]], device=self.device)

    def _evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        tokens, mask, where = self._to_score(tokens, mask, where)
        if _padded_on_the_left(mask):  # to the right, and back
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            moved = self._evaluate(tokens.gather(1, order), mask.gather(1, order), where.gather(1, order))
            back = order.argsort(dim=1)
            hidden = moved.hidden.gather(1, back[..., None].expand_as(moved.hidden))
            return TextEvaluation(moved.logprobs.gather(1, back), moved.entropy.gather(1, back), hidden)
        length, temperature = tokens.shape[1], self.sampling.temperature
        read = self._read(tokens, mask, where)
        targets = tokens[:, 1 : read.width + 1][where[:, 1 : read.width + 1]]
        if read.head is not None:
            logprobs, entropy = read.head.score(read.scored, targets, temperature)
        else:
            logprobs, entropy = score_logits(read.scored, targets, temperature)
        states = read.states()
        # Everything in the answer speaks about token t itself: `where` spreads the scores over [B, L], and the states
        # move one column to the right, with zeros where no state was computed.
        nothing = torch.zeros(where.shape, dtype=logprobs.dtype, device=self.device)
        hidden = F.pad(states.masked_fill(~mask[:, : read.width, None], 0.0), (0, 0, 1, length - 1 - read.width))
        return TextEvaluation(nothing.masked_scatter(where, logprobs), nothing.masked_scatter(where, entropy), hidden)

    def next_tokens(self, tokens: Tensor, mask: Tensor, where: Tensor) -> NextTokens:
        """The distributions that the tokens at `where` were drawn from, row by row; arguments as in `evaluate`."""
        if self.shards is None:
            return NextTokens(*self._states_and_head(tokens, mask, where), self.sampling.temperature)
        heads: list[LinearHead | None] = []  # FSDP2 looks for tensors in what a pass returns, and finds the states

        def states(tokens: Tensor, mask: Tensor, where: Tensor) -> Tensor:
            found, head = self._states_and_head(tokens, mask, where)
            heads.append(head)
            return found.clone()

        if len(tokens):
            return NextTokens(self.shards.run(states, tokens, mask, where), heads[0], self.sampling.temperature)
        nothing = self.shards.run(lambda: states(*self._made_up_text())[:0].clone())
        return NextTokens(nothing, heads[0], self.sampling.temperature)

    def _states_and_head(self, tokens: Tensor, mask: Tensor, where: Tensor) -> tuple[Tensor, LinearHead | None]:
        tokens, mask, where = self._to_score(tokens, mask, where)
        if _padded_on_the_left(mask):
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            return self._states_and_head(tokens.gather(1, order), mask.gather(1, order), where.gather(1, order))
        read = self._read(tokens, mask, where)
        return read.scored, read.head

    def _to_score(self, tokens: Tensor, mask: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `evaluate` on this device."""
        if torch.is_grad_enabled():
            self.forget()  # learning begins, and needs the memory of the cache
        return tokens.to(self.device), mask.to(self.device, torch.bool), where.to(self.device, torch.bool)

    def _read(self, tokens: Tensor, mask: Tensor, where: Tensor) -> StatesRead:
        """Texts that are padded on the right."""
        self._check_scored(mask, where)
        length = tokens.shape[1]
        # The hidden state of token t - 1 gives the distribution of token t. So the model need not read the last column,
        # nor columns in which every row has padding: it reads `width` columns, and `scored` says at which of them the
        # distribution of the next token is asked for.
        width = min(int(mask.sum(1).max()), length - 1, self.context or length)
        mask, scored = mask[:, :width], where[:, 1 : width + 1]
        head, anatomy = self._linear_head(), self.anatomy()
        if anatomy is not None and head is not None and width and not has_dropout(self.model):
            tree = prefix_tree(tokens[:, :width], mask)
            call = None if self.shards is None else self.shards.layer
            node_states = hidden_states(anatomy, tree, recompute=self.gradient_checkpointing, call=call)
            at_scored = node_states.index_select(0, tree.nodes[scored])
            return StatesRead(
                width, head, at_scored, lambda: node_states.index_select(0, tree.nodes.flatten()).view(*mask.shape, -1)
            )
        needs_logits = torch.zeros_like(scored) if head is not None else scored
        states, logits = self._forward(tokens[:, :width], mask, needs_logits)
        return StatesRead(width, head, logits if head is None else states[scored], lambda: states)

    @torch.no_grad()
    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        if (known := self.together.known(self, episodes)) is not None:
            return known
        answers: list[Float] = [np.zeros(0)] * len(episodes)
        with without_dropout(self):
            batches = list(self._batches(episodes))
            more = 0 if self.shards is None else self.shards.most(len(batches)) - len(batches)
            for batch in [*batches, *([[]] * more)]:
                tokens, mask, where = padded([episodes[index] for index in batch], self.pad_id)
                logprobs = as_float64(self.evaluate(tokens, mask, where).logprobs).numpy()
                for row, index in enumerate(batch):
                    start = len(episodes[index].prompt_ids)
                    answers[index] = logprobs[row, start : start + len(episodes[index].response_ids)].copy()
        return answers

    def frozen_copy(self) -> LanguageModel:
        frozen = copy.deepcopy(self)
        return frozen.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """With adapters, copies share all weights that never train: a reference costs no second model."""
        if self.adapted:
            memo |= {id(weight): weight for name, weight in self.named_parameters() if not is_of_adapter(name)}
        if self.shards is not None and self.adapted:
            raise ConfigError(
                'a sharded model with adapters cannot be copied, as this agent asks for (value_model = "separate", a '
                "model for each option): leave out [policy.lora] or `shard`, or the copy"
            )
        if self.shards is not None:
            self.shards.gather()
        memo[id(self)] = clone = self.__class__.__new__(self.__class__)
        clone.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        if self.shards is not None:
            self.shards.release()
            clone.shards = None  # so far it is whole
            clone.shards = self.shards.of_copy(clone)
        return clone

    def state_dict(  # type: ignore[override]
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> State:
        """What training changes: all weights or, with adapters, the adapters' alone."""
        if self.shards is not None:
            self.shards.release()
        whole: State = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self.adapted:
            for name in [name for name in whole if name.startswith(prefix) and not is_of_adapter(name)]:
                del whole[name]
        return whole

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if self.shards is not None:
            state_dict = self.shards.cut(state_dict, self.state_dict())
        if self.adapted and strict:
            unlike = sorted(self.state_dict().keys() ^ state_dict.keys())
            if unlike:
                raise RuntimeError(f"{len(unlike)} weights are not those of this adapter, {unlike[0]} among them")
            strict = False  # of the whole model, most are missing
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def copy_writes(self) -> bool:
        """Whether what `write` states comes from another engine or a copy in low precision, not from the policy."""
        if self.writer is not None:
            return True
        return writer_linear(self.writer_dtype, self.model) is not None and self.anatomy() is not None

    @property
    def adapted(self) -> bool:
        """Whether the model has low-rank adapters, which alone train."""
        return has_adapter(self.model)

    def reseed(self, seed: int) -> None:
        self._streams = RowStreams(seed)

    def sampling_state(self) -> State:
        return self._streams.state()

    def load_sampling_state(self, state: Mapping[str, object], /) -> None:
        self._streams = RowStreams.of(state)

    def forget(self) -> None:
        """Free the key/value cache that `write` keeps for the next call.

        `write` itself notices an optimizer step or `load_state_dict`. Call this after you have changed weights in a way
        that autograd does not see, through `parameter.data`.
        """
        self._decoding = None
        self._forgotten += 1

    def let_go(self) -> None:
        """Keep no weights but those in the model itself, which are about to be replaced."""
        self._decoding, self._recognized = None, Recognized()

    def __getstate__(
        self,
    ) -> State:  # for copy and pickle: caches and engines are not part of it
        return {**self.__dict__, "_decoding": None, "shards": None, "writer": None}

    def _forward(self, tokens: Tensor, mask: Tensor, needs_logits: Tensor) -> tuple[Tensor, Tensor]:
        """By the model's own code: states [B, L, H], and logits [N, V] at the N tokens where `needs_logits` is True."""
        if not tokens.shape[1]:
            return (
                torch.zeros(len(tokens), 0, self.hidden_size, dtype=self.dtype, device=self.device),
                torch.zeros(0, self.vocab_size, dtype=self.dtype, device=self.device),
            )
        # Causal attention never looks to the right, where the padding is: the plain causal mask is enough, and the
        # attention kernels are fastest with it.
        attention_mask = torch.ones_like(mask)
        positions = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
        recomputing = recomputed_layers(self.model) if self.gradient_checkpointing else nullcontext()
        with recomputing, nullcontext() if self.shards is None else self.shards.calling_layers(self.model):
            return forward_pass(
                self.model,
                # Something that stands in the text: the embedding of padding may be 0, where norms have no gradient.
                torch.where(mask, tokens, tokens[:, :1]),
                attention_mask,
                positions,
                select=lambda states: states[needs_logits],
            )

    def anatomy(self) -> Anatomy | None:
        """The anatomy that `FusedStep` and `trunk` need; None where the model's own code has to do the work."""
        if self.shards is not None:  # nobody changes it
            return self.shards.anatomy_of(self) if self.fused else None
        return self._recognized.of(self.model) if self.fused else None

    def _linear_head(self) -> LinearHead | None:
        """The head, if it alone gives the model's logits; each head is tried once."""
        head = linear_head(self.model)
        if head is None:
            return None
        module = self.model.get_output_embeddings()
        if self._known_head[0] is not module:
            with without_dropout(self):
                self._known_head = (module, gives_the_logits(head, self.model))
        return head if self._known_head[1] else None

    def _weights(self) -> tuple[object, ...]:
        """A value that differs after every in-place change that autograd sees, after parameters are replaced, and after
        learning began: fused optimizers change parameters and leave their versions (torch 2.13)."""
        if self.shards is not None:
            return self.writer_dtype, self._forgotten, self.shards.gathers
        versions = ((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        return (self.writer_dtype, self._forgotten, *versions)

    def _batches(self, episodes: Sequence[Episode]) -> Iterator[list[int]]:
        """Batches of indices of `episodes`, sorted by length, each within the limits at the top of this file."""
        by_length = sorted(range(len(episodes)), key=lambda index: len(episodes[index].ids))
        batch: list[int] = []
        scored, has_linear_head = 0, self._linear_head() is not None
        for index in by_length:
            scored += len(episodes[index].response_ids)
            positions = (len(batch) + 1) * len(episodes[index].ids)
            logits = 0 if has_linear_head else scored * self.vocab_size
            if batch and (positions > POSITIONS_AT_ONCE or logits > LOGITS_AT_ONCE):
                yield batch
                batch, scored = [], len(episodes[index].response_ids)
            batch.append(index)
        if batch:
            yield batch

    def _known_ids(self, name: str, *candidates: int | Sequence[int] | None) -> tuple[int, ...]:
        """The ids of the first candidate that has some. Raises ConfigError for one outside the vocabulary."""
        for candidate in candidates:
            ids = listed(candidate)
            for value in ids:
                if not 0 <= value < self._vocab_size:
                    raise ConfigError(f"{name}: {value} is outside the model's vocabulary of {self._vocab_size}")
            if ids:
                return ids
        raise ConfigError(f"{name}: the model's configuration names none: give one")

    def _check_prompts(self, texts: Int, mask: Bool, lengths: Int, rows: Bool, length: int) -> None:
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ConfigError("attention_mask: observations are padded on the right")
        if not rows.any():
            return
        if (lengths[rows] == 0).any():
            row = int(np.flatnonzero(rows & (lengths == 0))[0])
            raise DataError(
                f"row {row}: the prompt is empty, so there is nothing to continue (begin it with a start token)"
            )
        # The model never reads the last token that is written: a text may be one token longer than the context.
        if self.context is not None and lengths[rows].max() + length > self.context + 1:
            longest = int(lengths[rows].max())
            raise DataError(
                f"a text of {longest} tokens and {length} new ones exceed the model's context of {self.context}: "
                "shorten the prompt or max_new_tokens"
            )
        inside = texts[rows][mask[rows]]
        if inside.min() < 0 or inside.max() >= self.vocab_size:
            raise DataError(f"a token id is outside the model's vocabulary of {self.vocab_size}")

    def _check_scored(self, mask: Tensor, where: Tensor) -> None:
        if (where & ~mask).any():
            raise ConfigError("where: asks for a token outside the text (mask is False there)")
        if where[:, :1].any() or (where[:, 1:] & ~mask[:, :-1]).any():
            raise ConfigError("where: asks for the first token of a text, which no distribution was stated for")
        if self.context is not None and mask.shape[1] and int(mask.sum(1).max()) > self.context + 1:
            raise DataError(f"a text of {int(mask.sum(1).max())} tokens exceeds the model's context of {self.context}")


def _padded_on_the_left(mask: Tensor) -> bool:
    """On the left or in between."""
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def padded(episodes: Sequence[Episode], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask, and which tokens the agent wrote, [B, L] each, padded on the right."""
    width = max((len(episode.ids) for episode in episodes), default=0)
    tokens = np.full((len(episodes), width), pad_id, np.int64)
    mask, where = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, episode in enumerate(episodes):
        start, end = len(episode.prompt_ids), len(episode.ids)
        tokens[row, :end], mask[row, :end], where[row, start:end] = episode.ids, True, episode.actions
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where)
