"""The settings of the table [policy]: who writes the texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Literal

import torch

from rlhf_env.device_names import AUTO, problems_of_device
from rlhf_env.errors import Problem
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import ROWS_AT_ONCE
from rlhf_env.policies.low_precision import WriterDtype
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.server_writer import ServerSettings
from rlhf_env.policies.vllm_writer import VllmSettings
from rlhf_env.settings import AtLeastOne, IsPath, Name, fault, settings

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


@settings
class PolicySettings:
    """The model that generates texts: its weights, tokenizer, precision and device, and how tokens are sampled."""

    model: Annotated[Name, IsPath()] = "tiny"
    """A folder, that of a run (its best checkpoint, else its last), a shipped model, a hub name; "tiny" (small and
    random, for toy tasks); or "table", a table of logits for tasks of one prompt and so few responses that they can be
    enumerated."""
    tokenizer: Annotated[Name, IsPath()] | None = None
    """Default: the model's own. "tiny" needs one ("bytes" or "alphabet:abc"), and so does "table" ("alphabet:abc")."""
    dtype: Literal["float32", "float64", "bfloat16", "auto"] = "float32"
    """The precision of the weights and of what is computed from them. In "bfloat16", what trains keeps a copy and
    moments in float32; adapters, losses and log-probabilities are in float32 too (docs/precision.md). "auto": that of
    the model's own files; of files in float16 it is float32, as steps in float16 need a scaling that is not done."""
    writer_dtype: WriterDtype | None = None
    """Let a copy of the policy in this precision write, made anew after each update: quicker on processors
    that have instructions for it (`benchmarks/writing.py` measures it); on others the policy writes as without. What is
    stated is what the copy finds likely, and importance ratios correct what is learned; agents that correct nothing are
    refused. "auto": a copy where it pays. Evaluations are written by the policy itself (docs/writer_copies.md)."""
    writer: Literal["vllm", "server"] | None = None
    """"vllm": let vLLM write the texts of training, its engine in this process with the policy's weights, handed over
    after each update. What is stated is what the engine draws from; the difference to the policy is measured in each
    update (`writer/kl`), corrected by importance ratios, and bounded. Agents that correct nothing are refused.
    Evaluations are written by the policy itself. "server": let a server write what is only measured, for agents that do
    not train (best_of_n, reference). See docs/scale.md."""
    vllm: VllmSettings | None = None
    """How: [policy.vllm], beside `writer = "vllm"`."""
    server: ServerSettings | None = None
    """Which: [policy.server], beside `writer = "server"`."""
    device: str = AUTO
    """Where the model computes: "cpu", "cuda", "cuda:1", "mps"; "auto": a CUDA GPU if there is one, else the processor.
    A run can be resumed on another device; its bits may then differ."""
    attention: Attention = "auto"
    """Which of the library's attention implementations its modules use (`attn_implementation`); "auto": its choice. The
    quicker way of `fused` computes attention itself, in place of "eager" and "sdpa"; with any other one it is off.
    (The library's "eager" takes a softmax in float32, in models in float64 too.)"""
    gradient_checkpointing: bool = False
    """Keep the input of each layer alone for the backward pass, and compute the layer again there: the same gradients
    from less memory, for the time of one more forward pass in updates."""
    sampling: Sampling = field(default_factory=Sampling)
    """The distribution that tokens are drawn from."""
    rows_at_once: AtLeastOne = ROWS_AT_ONCE
    """Texts that are sampled side by side and whose keys and values are kept: it bounds the memory. Of more texts, some
    begin when others end; with fewer than `num_envs`, acting token by token reads all texts anew at each step."""
    fused: bool = True
    """Sample by a quicker way through the models of the common families, whose weights it copies for as long; false:
    through the library's modules, with the same results up to rounding."""
    lora: Lora | None = None
    """Train low-rank adapters, and leave the model as it is: [policy.lora]. The reference then shares the model, and a
    checkpoint holds the adapters alone."""
    revision: str | None = None
    """Of a hub name: a branch, tag or commit. With a commit, what the model's owner changes later changes nothing."""

    def problems(self) -> Iterator[Problem]:
        yield from problems_of_device(self.device)
        if self.vllm is not None and self.writer != "vllm":
            yield Problem('[policy.vllm] is how vLLM writes: set writer = "vllm" beside it', ("vllm",))
        if (self.server is None) is (self.writer == "server"):
            yield Problem('writer = "server" and a table [policy.server] with its url and model belong together', ())
        if self.writer is not None and self.writer_dtype is not None:
            yield fault("writer_dtype", f"is of a copy, and writer = {self.writer!r} writes: leave one out")
        if self.writer is not None and self.model == "table":
            yield fault("writer", f"= {self.writer!r} writes for language models, and a table of logits is none")
        if self.writer == "vllm" and self.lora is not None and self.lora.dora:
            yield Problem('vLLM has no adapters with dora = true: leave it out, or writer = "vllm"', ("lora", "dora"))

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """None: the model's own."""
        named = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
        return named.get(self.dtype)

    @property
    def attn_implementation(self) -> str | None:
        """What transformers calls it; None: its own choice."""
        return None if self.attention == "auto" else self.attention
