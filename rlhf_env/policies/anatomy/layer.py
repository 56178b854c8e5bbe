"""The description of a model: a trunk of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_env.policies.anatomy.rotary import Rotary, rotary_table


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One transformer layer: attention, then an MLP, each added to the residual stream.

    The modules are the model's own. Those in a tuple read the same input; their outputs are concatenated.
    """

    before_attention: nn.Module | None
    """The norm before attention; None: attention reads the residual stream itself (OLMo 2 and 3)."""
    qkv: tuple[nn.Module, ...]
    """The projections to queries, keys and values, or the one module that makes all three. To queries alone where
    `keys_from` names another layer."""
    q_norm: nn.Module | None = None
    """The norm of queries (Qwen 3, Gemma 3 and 4, OLMo 2 and 3, Cohere)."""
    k_norm: nn.Module | None = None
    """The norm of keys."""
    v_norm: nn.Module | None = None
    """The norm of values (Gemma 4)."""
    norms_of_heads: bool = True
    """Whether `q_norm` and `k_norm` see every head by itself. False: all heads side by side (OLMo 2 and 3)."""
    keys_from: int | None = None
    """The number of the layer whose keys and values this one reads (Gemma 4). None: it has its own."""
    out: nn.Module
    """The projection of what attention gives."""
    after_attention: nn.Module | None = None
    """The norm between `out` and the residual stream (Gemma 2 to 4, OLMo 2 and 3, GLM 4)."""
    parallel: bool = False
    """Whether the MLP reads what attention reads, and not its result (Cohere). It then has no `before_mlp`."""
    before_mlp: nn.Module | None
    """The norm before the MLP; None: it reads the residual stream itself (OLMo 2 and 3)."""
    up: tuple[nn.Module, ...] = ()
    """The projections to gate and up, or the one module that makes both, or that to up alone."""
    gated: bool = True
    """Whether there is a gate."""
    activation: Callable[[Tensor], Tensor] = field(default=torch.nn.functional.silu)
    """The activation of the gate, or of up where there is no gate."""
    down: nn.Module | None = None
    """The projection back to the width of the residual stream; None where there are `experts`."""
    experts: Callable[[Tensor], Tensor] | None = None
    """A mixture of experts in place of `up` and `down`. It is called as the library calls it, on [1, N, H]: every token
    is routed by itself."""
    after_mlp: nn.Module | None = None
    """The norm between `down` and the residual stream (Gemma 2 to 4, OLMo 2 and 3, GLM 4)."""
    residual_multiplier: float = 1.0
    """The factor of what attention and MLP add to the residual stream (Granite)."""
    finish: Callable[[Tensor, Tensor | None], Tensor] | None = None
    """What happens to the residual stream [N, H] at the end of the layer, by the model's own modules (Gemma 4); the
    second argument is the layer's share of `Anatomy.layer_inputs`, [N, P]."""
    heads: int
    """The number of query heads."""
    kv_heads: int
    """The number of heads of keys and values; each serves heads / kv_heads query heads (grouped-query attention)."""
    head_size: int
    """The width of one head."""
    scaling: float
    """The factor of the scores q k."""
    softcap: float | None = None
    """The cap of the scores, see `attention.attend`."""
    window: int | None = None
    """Sliding-window attention: how many positions a query looks at, its own included. None: all before it."""
    rotary_table: str | None
    """Which of `Anatomy.rotary_tables` rotates queries and keys; None where positions are learned, and in layers that
    know no positions (SmolLM 3, Cohere 2)."""

    @property
    def own_kv_heads(self) -> int:
        """The number of heads of keys and values that the layer itself computes."""
        return self.kv_heads if self.keys_from is None else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A trunk, which is a language model without its head; and what becomes of the head's logits."""

    embed: nn.Module
    """The token embedding."""
    embedding_multiplier: float = 1.0
    """The factor of what `embed` gives (Granite)."""
    learned_positions: nn.Module | None = None
    """The position embedding (GPT-2); None where positions are rotary."""
    rotary: Callable[..., tuple[Tensor, Tensor]] | None = None
    """What computes the angles of rotary embeddings, a module of the model; None where positions are learned."""
    longest: int | None = None
    """The number of positions whose angles are the same in every batch ("longrope"); None: those of all are."""
    interleaved: bool = False
    """Whether elements 2i and 2i + 1 are rotated together (GLM, Cohere), and not i and i + D/2."""
    rotary_from_float32: bool = False
    """See `Rotary.from_float32`."""
    layer_inputs: Callable[[Tensor, Tensor], Tensor] | None = None
    """What each layer is told of each token besides the residual stream (Gemma 4): [N, layers, P] from token ids
    int64[N] and their embeddings [N, H]."""
    layers: tuple[Layer, ...]
    norm: nn.Module
    """The norm after the last layer."""
    logit_scale: float = 1.0
    """What a language model with this trunk multiplies the logits of its head with (Cohere, Granite)."""
    logit_cap: float | None = None
    """Its cap of the logits after that (Gemma), as in `lm_head.LinearHead`."""

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The residual stream [N, H] before the first layer, of `tokens` int64[N] at `positions` int64[N]."""
        x: Tensor = self.embed(tokens)
        if self.embedding_multiplier != 1.0:
            x = x * self.embedding_multiplier
        return x if self.learned_positions is None else x + self.learned_positions(positions)

    def rotary_tables(self, like: Tensor, positions: int) -> dict[str, Rotary]:
        """The rotations of the positions from 0 on, by `Layer.rotary_table`; of the device and precision of `like`."""
        head_sizes = {layer.rotary_table: layer.head_size for layer in self.layers if layer.rotary_table is not None}
        every_position = torch.arange(positions, device=like.device)[None]
        tables: dict[str, Rotary] = {}
        for name, head_size in head_sizes.items():
            assert self.rotary is not None
            cosine, sine = self.rotary(like, every_position, **({"layer_type": name} if name != "all" else {}))
            tables[name] = rotary_table(
                cosine[0],
                sine[0],
                head_size,
                interleaved=self.interleaved,
                from_float32=self.rotary_from_float32,
            )
        return tables
