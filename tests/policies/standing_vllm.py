"""A stand-in for the package vllm: names, arguments and results of vllm 0.32 that `VllmWriter` uses, on a small scale.

    vllm.LLM(model=FOLDER, **engine arguments)                          raises for an argument that EngineArgs has not
    llm.generate([{"prompt_token_ids": ids}], [SamplingParams], use_tqdm=, lora_request=) -> [RequestOutput]
        RequestOutput.outputs[0]: CompletionOutput(token_ids, logprobs, finish_reason)
        CompletionOutput.logprobs: a list of {token id: Logprob(logprob)}, one dict a token
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pairs of names and tensors})
    llm.apply_model(function of the model); llm.reset_prefix_cache(); llm.llm_engine.add_lora(LoRARequest)
    vllm.lora.request.LoRARequest(lora_name, lora_int_id, lora_path, load_inplace=)

It reads the folder that it is given with transformers, computes whole texts without a cache, and draws from generators
that are seeded by request, as vLLM does. `make vllm` asks the same questions of vllm itself (tests/engines).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

ENGINE_ARGUMENTS = {
    *("skip_tokenizer_init", "trust_remote_code", "load_format", "generation_config", "dtype", "max_model_len"),
    *("max_num_seqs", "kv_cache_memory_bytes", "enforce_eager", "logprobs_mode", "use_tqdm_on_load", "seed"),
    *("disable_log_stats", "enable_lora", "max_loras", "max_lora_rank"),
}


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 16
    logprobs: int | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    load_inplace: bool = False


class LLM:
    """`made` has every engine of this process, the last one last; `calls` what each was asked to do beside writing."""

    made: list[LLM] = []  # noqa: RUF012 - of all
    cannot: str = ""  # what generate raises, where it is to fail
    seen: list[SamplingParams]

    def __init__(self, model: str, **arguments: Any) -> None:
        unknown = arguments.keys() - ENGINE_ARGUMENTS
        if unknown:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        assert arguments["logprobs_mode"] == "processed_logprobs"
        self.base, self.arguments = model, arguments
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, arguments["dtype"]))
        self.adapted: Any = None
        self.calls: list[str] = []
        self.seen, self.llm_engine = [], self
        torch.set_num_threads = _does_nothing  # as vLLM's worker on processors does
        torch.manual_seed(arguments["seed"])
        LLM.made.append(self)

    def generate(
        self, prompts: Any, params: list[SamplingParams], *, use_tqdm: bool, lora_request: LoRARequest | None = None
    ) -> list[RequestOutput]:
        torch.rand(3)  # its sampler draws from the global generator, too
        if LLM.cannot:
            raise RuntimeError(f"{LLM.cannot}\nand more lines")
        self.seen = params
        model = self.model if lora_request is None else self.adapted
        return [RequestOutput([self._written(model, *asked)]) for asked in zip(prompts, params, strict=True)]

    @torch.no_grad()
    def _written(self, model: Any, prompt: dict[str, list[int]], asked: SamplingParams) -> CompletionOutput:
        ids, said, generator = list(prompt["prompt_token_ids"]), [], torch.Generator().manual_seed(asked.seed or 0)
        assert len(ids) + asked.max_tokens <= self.arguments["max_model_len"]
        while len(said) < asked.max_tokens and not (said and ids[-1] in asked.stop_token_ids):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            if asked.temperature:
                logits = logits / asked.temperature
            else:
                logits = logits.masked_fill(logits < logits.max(), -torch.inf)
            ordered, order = logits.sort(descending=True)
            if asked.top_k:
                ordered[asked.top_k :] = -torch.inf
            probs = ordered.softmax(-1)
            ordered[probs.cumsum(-1) - probs >= asked.top_p] = -torch.inf
            logprobs = ordered.log_softmax(-1)
            drawn = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
            token = int(order[drawn])
            ids.append(token)
            said.append({token: Logprob(float(logprobs[drawn]))})
        ended = ids[-1] in asked.stop_token_ids
        return CompletionOutput(ids[len(ids) - len(said) :], said, "stop" if ended else "length")

    def collective_rpc(self, method: str, *, kwargs: Any) -> None:
        assert method == "reload_weights"
        self.calls.append(method)
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, weight in kwargs["weights_iterator"]:
            own[name].data.copy_(weight)

    def apply_model(self, _function: Any) -> None:
        self.calls.append("apply_model")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def add_lora(self, request: LoRARequest) -> None:
        from peft import PeftModel

        assert self.arguments["enable_lora"]
        assert request.load_inplace
        self.calls.append("add_lora")
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        self.adapted = PeftModel.from_pretrained(base, request.lora_path).eval()


def _does_nothing(_threads: int) -> None: ...


def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """From now on, `import vllm` gives this; the class of its engines."""
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, package.lora = LLM, SamplingParams, lora  # type: ignore[attr-defined]
    lora.request, request.LoRARequest = request, LoRARequest  # type: ignore[attr-defined]
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "cannot", "")
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # so that what the writer sets is taken back
    return LLM
