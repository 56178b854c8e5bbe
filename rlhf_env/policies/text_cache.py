"""The key/value cache of `FusedStep`: shared prompts once per group, and for every text what is its own.

Each text that is being written has a place, 0 to R - 1. In every layer, place r holds keys and values in slots that are
filled from the left, one more at each step: slot s has the text's token s or, in a ring, the newest of its tokens
s, s + S, s + 2 S, and so on:

    place 0   a b c d . .        place 0 has 4 tokens, place 1 has 6; the next token of each goes into its own slot
    place 1   p q r s t u

A layer with sliding-window attention has a ring of as many slots as its window: what the newest token looks at is what
is there, and attention does not care in which order. (Keys are rotated by their positions before they are stored.)

Where several texts have a long prompt in common, its keys and values are stored once, and a place holds only the tokens
after it. The queries of all texts of a group are then one matrix, which reads the prompt once.

Every step reads the memory of the places in use from its first byte to its last, the slots that are still empty too:
their scores are hidden. To step over the empty slots of every head takes several times as long as to
read on, because a processor fetches ahead only what follows. So memory holds little more than the longest text, and
grows as that does. A place whose text has ended takes the text of the last place, or a new one: nothing else is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_env.policies.anatomy import Layer
from rlhf_env.policies.arena import Arena
from rlhf_env.types import Int

# Prompts are shared where that saves reading this many bytes per layer and step: it costs some ten operations.
WORTH_SHARING = 2**20

# Slots come in multiples of this many, and grow by an eighth at least: keys and values then move within their memory,
# and oneDNN, which multiplies in 16 bits, compiles a kernel for every new number of slots.
SLOTS_AT_ONCE = 32

# Added to the score of what is not to be looked at. Not -inf: where a group's prompt has left the window of one of its
# texts, all scores of that text are this number, and their softmax must still be a number. (Its weight is then 0.)
HIDDEN = -1e30


@dataclass
class LayerMemory:
    """Keys and values of one layer."""

    kv_heads: int
    window: int | None
    texts: tuple[Arena, Arena]
    """Keys and values of every place."""
    prompts: tuple[Arena, Arena]
    """Keys and values of the prompts that are shared."""

    @classmethod
    def of(cls, layer: Layer, like: Tensor) -> LayerMemory:
        """Without any place, on the device and in the precision of `like`."""
        texts, prompts = (
            (Arena(layer.kv_heads, layer.head_size, like), Arena(layer.kv_heads, layer.head_size, like))
            for _ in range(2)
        )
        return cls(layer.kv_heads, layer.window, texts, prompts)

    @property
    def keys(self) -> Tensor:
        """[places, kv_heads, slots, D]; `values` alike."""
        return self.texts[0].memory

    @property
    def values(self) -> Tensor:
        return self.texts[1].memory

    @property
    def prompt_keys(self) -> Tensor:
        """[prompts, kv_heads, P, D]; `prompt_values` alike."""
        return self.prompts[0].memory

    @property
    def prompt_values(self) -> Tensor:
        return self.prompts[1].memory

    @property
    def slots(self) -> int:
        return self.texts[0].slots

    def reserve(self, places: int, slots: int, expected: int) -> None:
        """Have this many places, of which those in use are the first, and at least this many slots; `expected`: how
        many slots may be needed later."""
        most = max(expected, 2 * slots)  # later calls may go on with the texts
        most = most if self.window is None else min(most, self.window)
        places, slots = max(places, len(self.keys)), max(self.slots, min(slots, most))
        if places > len(self.keys) or slots > self.slots:
            for arena in self.texts:
                arena.resize(places, slots, expected=(places, most))

    def add_prompts(self, first: int, new: Sequence[Tensor]) -> None:
        """Put the keys and values [D', kv_heads, L, D] of prompts, two tensors, behind the `first` ones."""
        end, width = first + len(new[0]), new[0].shape[2]
        for arena, states in zip(self.prompts, new, strict=True):
            if end > len(arena) or width > arena.slots:
                arena.resize(max(end, len(arena)), max(width, arena.slots))
            arena.memory[first:end, :, :width], arena.memory[first:end, :, width:] = states, 0.0

    def write(self, keys: Tensor, values: Tensor, step: DecodingStep) -> None:
        """Store the keys and values [R, kv_heads, D] of the newest token of every place."""
        if step.slot is not None:
            slot = step.slot % self.slots
            self.keys[: step.rows, :, slot], self.values[: step.rows, :, slot] = keys, values
        else:
            index = step.index(self)
            for memory, new in ((self.keys, keys), (self.values, values)):
                flat = memory.view(-1, memory.shape[-1])
                flat.index_copy_(0, index, new.reshape(-1, memory.shape[-1]).to(memory.dtype))


@dataclass
class DecodingStep:
    """Where one token more per place goes, and what it looks at; the same for all layers."""

    rows: int
    lengths: Int
    """int64[R], the tokens in each place before this step."""
    slot: int | None
    """The slot of the new token, before it goes around a ring, where it is the same in all places; else None."""
    like: Tensor
    groups: PromptGroups | None
    _made: dict[object, Tensor] = field(default_factory=dict)

    def index(self, memory: LayerMemory) -> Tensor:
        """int64[R * kv_heads]: the number of the new token's slot among all slots of all heads of all places."""
        key = memory.kv_heads, memory.slots
        if key not in self._made:
            heads = np.arange(self.rows * memory.kv_heads).reshape(self.rows, -1)
            slots = heads * memory.slots + (self.lengths % memory.slots)[:, None]
            self._made[key] = torch.from_numpy(slots.reshape(-1)).to(self.like.device)
        return self._made[key]

    def bias(self, memory: LayerMemory) -> Tensor | None:
        """[R * kv_heads, 1, slots], 0 on text and `HIDDEN` elsewhere; None where all places hold as many tokens."""
        if self.slot is not None:
            return None
        key = "bias", memory.kv_heads, memory.slots
        if key not in self._made:
            ends = torch.from_numpy(np.repeat(self.lengths, memory.kv_heads)).to(self.like.device)
            hidden = torch.arange(memory.slots, device=self.like.device) > ends[:, None]
            bias = torch.zeros(hidden.shape, dtype=self.like.dtype, device=self.like.device)
            self._made[key] = bias.masked_fill_(hidden, HIDDEN).unsqueeze(1)
        return self._made[key]


@dataclass
class PromptGroups:
    """Which places share which prompt. N is the size of the largest group."""

    prompts: int
    members: Tensor
    """int64[prompts * N]: the places of every group, the first one again where a group is smaller."""
    back: Tensor
    """int64[R]: where each place stands in `members`."""
    prompt_lengths: Int
    """int64[prompts]"""
    positions: Int
    """int64[prompts, N]: the position of the newest token of every member."""
    like: Tensor
    _made: dict[object, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt_of: Int, prompt_lengths: Int, lengths: Int, like: Tensor) -> PromptGroups:
        """`prompt_of` int64[R]: the prompt of each place; `lengths` int64[R]: how many tokens each has after it."""
        sizes = np.bincount(prompt_of, minlength=len(prompt_lengths))
        order = np.argsort(prompt_of, kind="stable")
        within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        members = np.repeat(order[np.cumsum(sizes) - sizes, None], sizes.max(), 1)
        members[prompt_of[order], within] = order
        position = np.empty_like(order)
        position[order] = prompt_of[order] * members.shape[1] + within
        members_flat, back = (torch.from_numpy(it).to(like.device) for it in (members.reshape(-1), position))
        positions = prompt_lengths[:, None] + lengths[members]
        return cls(len(prompt_lengths), members_flat, back, prompt_lengths, positions, like)

    def bias(self, kv_heads: int, per_head: int, width: int, window: int | None) -> Tensor | None:
        """[prompts * kv_heads, 1 or N * per_head, width], 0 where a query looks; None where all look at everything."""
        slides = window is not None and bool((self.positions >= window).any())
        if not slides and bool((self.prompt_lengths == width).all()):
            return None
        key = kv_heads, per_head, width, window if slides else None
        if key not in self._made:
            slots = np.arange(width)
            looks = (slots < self.prompt_lengths[:, None])[:, None]
            if slides and window is not None:
                looks = looks & (slots > self.positions[:, :, None] - window)
                looks = np.repeat(looks, per_head, 1)
            hidden = torch.from_numpy(~np.repeat(looks, kv_heads, 0)).to(self.like.device)
            bias = torch.zeros(hidden.shape, dtype=self.like.dtype, device=self.like.device)
            self._made[key] = bias.masked_fill_(hidden, HIDDEN)
        return self._made[key]


class TextCache:
    """Keys and values of texts that are being written, for layers like `layers`, on the device and in the precision of
    `like`."""

    def __init__(self, layers: Sequence[Layer], like: Tensor) -> None:
        self.like = like
        self.layers = [None if layer.keys_from is not None else LayerMemory.of(layer, like) for layer in layers]
        self.lengths: Int = np.zeros(0, np.int64)
        """int64[R]: the tokens in each place, without those of a shared prompt."""
        self.prompt_of: Int = np.zeros(0, np.int64)
        """int64[R]: the shared prompt of each place."""
        self.prompt_lengths: Int = np.zeros(0, np.int64)
        self.shares: bool | None = None
        """Whether prompts are shared; None before the first."""
        self._slots = 0  # of layers without a window
        self._expected = 0  # the most slots that are expected to be needed

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text."""
        before = self.prompt_lengths[self.prompt_of] if self.shares else 0
        return int((self.lengths + before).max(initial=0))

    def add(self, nodes: Tensor, lengths: Int, rows: Int, room: int) -> Callable[[int, Tensor, Tensor], None]:
        """Make places for new texts: text `rows[i]`, of int64[R'], goes into the i-th new one.

        The answer takes in what a layer, given by its number, has for them: keys and values [N, kv_heads, D], in which
        those of token t of prompt d, of `lengths[d]` tokens, are at `nodes[d, t]`. `room`: how many tokens are expected
        after the prompt.
        """
        if self.shares is None:
            self.shares = self._sharing_pays(lengths, rows)
        first, width = len(self.lengths), int(lengths.max())
        end, own_width = first + len(rows), 0 if self.shares else width
        self._expected = max(self._expected, own_width + room)
        self._reserve(end, own_width + 1)
        first_prompt = len(self.prompt_lengths)
        if self.shares:
            self.prompt_of = np.append(self.prompt_of, first_prompt + rows)
            self.prompt_lengths = np.append(self.prompt_lengths, lengths)
        self.lengths = np.append(self.lengths, np.zeros_like(rows) if self.shares else lengths[rows])
        source = torch.from_numpy(rows).to(nodes.device)

        def take(number: int, keys: Tensor, values: Tensor) -> None:
            memory = self.layers[number]
            assert memory is not None
            if self.shares:
                memory.add_prompts(first_prompt, [states[nodes].transpose(1, 2) for states in (keys, values)])
                return
            columns = torch.from_numpy(_ring(lengths, min(width, memory.slots), memory.slots)).to(nodes.device)
            tokens = nodes.gather(1, columns)[source]
            for kept, new in ((memory.keys, keys), (memory.values, values)):
                kept[first:end, :, : columns.shape[1]] = new[tokens].transpose(1, 2)

        return take

    def step(self) -> DecodingStep:
        """Make room for one token more in every place."""
        rows, longest = len(self.lengths), int(self.lengths.max())
        uniform = bool((self.lengths == longest).all())
        self._reserve(rows, longest + 1)
        groups = None
        if self.shares:
            groups = PromptGroups.of(self.prompt_of, self.prompt_lengths, self.lengths, self.like)
        return DecodingStep(rows, self.lengths.copy(), longest if uniform else None, self.like, groups)

    @property
    def _memories(self) -> list[LayerMemory]:
        return [memory for memory in self.layers if memory is not None]

    def _reserve(self, places: int, slots: int) -> None:
        """Have memory for this many places and slots."""
        if slots > self._slots:
            grown = -(-(slots + slots // 8) // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
            self._slots = min(grown, self._expected) if slots <= self._expected else grown
        for memory in self._memories:
            memory.reserve(places, self._slots, self._expected)

    def advance(self) -> None:
        """Every place has one token more."""
        self.lengths += 1

    def keep(self, kept: Int) -> Int:
        """Free all places but `kept`, int64, ascending. Returns the old place of every new one, int64[len(kept)]."""
        order, moved_to = _compacted(kept)
        width = int(self.lengths[kept].max(initial=0))
        for memory in self._memories:
            for tensor in (memory.keys, memory.values):
                _move(tensor, order, moved_to, width)
        self.lengths = self.lengths[order]
        if self.shares:
            self.prompt_of = self.prompt_of[order]
            prompts, prompts_moved = _compacted(np.unique(self.prompt_of))
            for memory in self._memories:
                for tensor in (memory.prompt_keys, memory.prompt_values):
                    _move(tensor, prompts, prompts_moved, tensor.shape[2])
            new_number = np.zeros(len(self.prompt_lengths), np.int64)
            new_number[prompts] = np.arange(len(prompts))
            self.prompt_of, self.prompt_lengths = new_number[self.prompt_of], self.prompt_lengths[prompts]
        return order

    def _sharing_pays(self, lengths: Int, rows: Int) -> bool:
        memories = self._memories
        per_token = sum(it.kv_heads * it.keys.shape[-1] for it in memories) * self.like.element_size() * 2
        saved = int(lengths[rows].sum() - lengths.sum())
        return saved * per_token >= WORTH_SHARING * len(memories)


def attend_to_cache(queries: Tensor, layer: Layer, memory: LayerMemory, step: DecodingStep) -> Tensor:
    """Attention [R, heads * D] of the newest token of every place, `queries` [R, heads, D], to its text."""
    rows, _, size = queries.shape
    # One batched matmul for all places and heads: its batch is R * kv_heads, and the query heads that share a key head
    # are the rows of one matrix, [R * kv_heads, heads / kv_heads, D]. Grouped-query attention copies no key.
    keys, values = memory.keys[:rows].flatten(0, 1), memory.values[:rows].flatten(0, 1)
    queries = queries.to(keys.dtype)
    per_head = queries.reshape(len(keys), -1, size)
    # No causal mask: the newest token may look at every slot in which a token is.
    scores = _scores(layer, per_head, keys, step.bias(memory))
    if step.slot is not None and step.slot + 1 < memory.slots:
        scores[:, :, step.slot + 1 :] = HIDDEN
    if step.groups is None:
        return torch.bmm(scores.softmax(-1), values).view(rows, -1)
    # What the prompt gives, and the logarithm of what its scores weigh: one more column among the scores of the rest.
    of_prompt, weight = _attend_to_prompts(queries, layer, memory, step.groups)
    probabilities = torch.cat([scores, weight], dim=-1).softmax(-1)
    own = torch.bmm(probabilities[:, :, :-1].to(values.dtype), values)
    return torch.addcmul(own.to(of_prompt.dtype), of_prompt, probabilities[:, :, -1:]).view(rows, -1)


def _attend_to_prompts(
    queries: Tensor, layer: Layer, memory: LayerMemory, groups: PromptGroups
) -> tuple[Tensor, Tensor]:
    """Attention of `queries` [R, heads, D] to shared prompts, [R * kv_heads, heads / kv_heads, D], and the logarithm of
    the sum of the exponentials of the scores, [R * kv_heads, heads / kv_heads, 1]; in float32 at least."""
    _, heads, size = queries.shape
    kv_heads, width = memory.kv_heads, memory.prompt_keys.shape[2]
    keys = memory.prompt_keys[: groups.prompts].flatten(0, 1)
    values = memory.prompt_values[: groups.prompts].flatten(0, 1)
    # [prompts, N, kv_heads, heads / kv_heads, D] -> [prompts * kv_heads, N * heads / kv_heads, D], and back.
    grouped = queries.index_select(0, groups.members).view(groups.prompts, -1, kv_heads, heads // kv_heads, size)
    matrix = grouped.transpose(1, 2).reshape(len(keys), -1, size)
    scores = _scores(layer, matrix, keys, groups.bias(kv_heads, heads // kv_heads, width, memory.window))
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    # The largest probability is exp(largest score) / sum of the exponentials.
    weight = scores.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log_()
    attended = torch.bmm(probabilities.to(values.dtype), values).to(weight.dtype)

    def of_rows(of_groups: Tensor) -> Tensor:
        split = of_groups.view(groups.prompts, kv_heads, -1, heads // kv_heads, of_groups.shape[-1]).transpose(1, 2)
        return split.flatten(0, 1).index_select(0, groups.back).flatten(0, 1)

    return of_rows(attended), of_rows(weight)


def _scores(layer: Layer, queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Scores [N, n, slots] of `queries` [N, n, D] and `keys` [N, slots, D]."""
    if layer.softcap is not None:
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(layer.scaling / layer.softcap).tanh_()
        return scores.mul_(layer.softcap) if bias is None else torch.add(bias, scores, alpha=layer.softcap)
    if bias is not None:
        return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=layer.scaling)
    return torch.bmm(queries, keys.transpose(1, 2)).mul_(layer.scaling)


def _ring(lengths: Int, columns: int, slots: int) -> Int:
    """int64[D, columns]: the newest token, of texts of `lengths` int64[D], that belongs into each of the first
    `columns` slots of a ring of `slots`; 0 where there is none."""
    first = np.arange(columns)
    newest = first + (lengths[:, None] - 1 - first) // slots * slots
    tokens: Int = np.where(first < lengths[:, None], newest, 0)
    return tokens


def _compacted(kept: Int) -> tuple[Int, Int]:
    """How `kept` places, int64, ascending, become the first ones: the old place of every new one; and those of the new
    ones that take another's text."""
    order = np.arange(len(kept))
    free = np.setdiff1d(order, kept, assume_unique=True)
    order[free] = kept[len(kept) - len(free) :]
    return order, free


def _move(memory: Tensor, order: Int, moved_to: Int, width: int) -> None:
    """Copy the first `width` slots of place `order[r]` to place r, for each r of `moved_to`."""
    for place in moved_to.tolist():
        memory[place, :, :width] = memory[order[place], :, :width]
