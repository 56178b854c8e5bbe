"""What the scripts beside it share: two sides that take turns on one machine, the models, the texts, TRL's trainers.

A ratio is theirs over ours in processor time, so that more than 1 means that ours is faster. The sides take turns, so
that whatever else the machine does falls on both. A line ends with the median, the least and the greatest of the
rounds, the mark where there is one, and the distance to the roofline where it is counted: see roofline.py. A ratio is
of a processor, whose name stands above.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.functional import logprobs_under
from rlhf_env.learning.models import most_tokens, shares_prefixes
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import LanguageModel
from rlhf_env.types import Episode, Prompt

SIZES = {
    "S": {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 2048},  # 1.1 M parameters
    "M": {"hidden_size": 320, "num_hidden_layers": 6, "vocab_size": 8192},  # 10.6 M
    "L": {  # 134.5 M: the shape of SmolLM2-135M
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
    "XL": {  # 1.24 B: the shape of Llama-3.2-1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
PROMPT, ANSWER = 32, 64
SAME_LOSS = 1e-4
TRL = 'pip install -e ".[bench]"'


def arguments(description: str | None, *, rounds: int = 5, sizes: str = "S") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side (default: %(default)s)")
    parser.add_argument(
        "--sizes",
        default=sizes,
        help="S (1.1 M parameters), M (10.6 M), L (134.5 M), or several (default: %(default)s)",
    )
    found = parser.parse_args()
    heading()
    return found


def heading(what: str = "processor time, theirs / ours") -> None:
    torch.set_num_threads(1)
    print(f"on {processor()}; load {os.getloadavg()[0]:.1f}")
    print(f"{what:64} {'median':>7} {'min':>7} {'max':>7} {'at least':>9} {'roofline':>9}", flush=True)


def line(
    name: str, ratios: Sequence[float], at_least: float | None = None, distances: Sequence[float | None] = ()
) -> bool:
    """Prints a row: a ratio and a distance to the roofline for every round. Whether the mark is reached."""
    median, known = statistics.median(ratios), [it for it in distances if it is not None]
    bound = "" if at_least is None else f"{at_least:.2f}"
    distance = f"{statistics.median(known):.2f}" if known else ""
    numbers = f"{median:7.2f} {min(ratios):7.2f} {max(ratios):7.2f} {bound:>9} {distance:>9}"
    print(f"{name:64} {numbers}".rstrip(), flush=True)
    return at_least is None or median >= at_least


def peer(name: str, install: str) -> Any:
    """The library to compare with. Without it, the script ends with a line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        print(f"{name}: not measured, {missing} (to compare: {install})")
        sys.exit(0)


def config_of(size: str, **other: int) -> Any:
    """What transformers makes a model of this size of."""
    from transformers import LlamaConfig

    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaConfig(
        **{"intermediate_size": 3 * SIZES[size]["hidden_size"], **heads, **SIZES[size], **other},
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


def model(size: str, seed: int = 0, *, writer: Any = None, **other: int) -> LanguageModel:
    """A random Llama in float32, its head tied to the embeddings; `writer`: the precision of a copy that writes;
    `other` than the size says.
    """
    from transformers import LlamaForCausalLM

    config = config_of(size, **other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = LlamaForCausalLM(config)
    return LanguageModel(made, end_id=0, pad_id=1, writer_dtype=writer)


def setup(policy: LanguageModel, reference: LanguageModel, reward: RewardMix, rows: int) -> Setup:
    """What a run lends to its agent."""
    return Setup(
        policy=policy,
        reference=reference,
        tokenizer=Words(policy.vocab_size),
        reward=reward,
        batch_size=rows,
        action_length=ANSWER,
        max_new_tokens=ANSWER,
        seed=0,
        engine=Engine(most_tokens=most_tokens(policy), shares_prefixes=shares_prefixes(policy)),
    )


class Words:
    """The words w2, w3, ... as tokens, 0 the end and 1 the padding."""

    end_id, pad_id = 0, 1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)


class Given:
    """A task of these prompts."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts, self.size = prompts, len(prompts)

    def prompt(self, index: int, _options: Any) -> Prompt:
        return Prompt(str(index), self.prompts[index])


def environment(prompts: Sequence[str], rewards: RewardMix | dict[str, Any], agent_setup: Setup) -> TextVectorEnv:
    """Where the prompts are answered, a whole answer a step unless the setup says otherwise."""
    return TextVectorEnv(
        agent_setup.batch_size,
        task=Given(prompts),
        reward=rewards,
        tokenizer=agent_setup.tokenizer,
        max_new_tokens=ANSWER,
        max_prompt_tokens=PROMPT,
        action_length=agent_setup.action_length,
        autoreset_mode="Disabled",
        provided={"reference": agent_setup.reference},
    )


def texts(vocab_size: int, rows: int, *, answer: int | Sequence[int] = ANSWER, per_prompt: int = 1) -> list[Episode]:
    """Random prompts and answers of these lengths; `per_prompt` neighbours share theirs."""
    stream = np.random.default_rng(0)
    lengths = [answer] * rows if isinstance(answer, int) else list(answer)
    made = []
    for row in range(rows):
        if row % per_prompt == 0:
            prompt = stream.integers(2, vocab_size, PROMPT)
        ids = stream.integers(2, vocab_size, lengths[row])
        every = np.ones(len(ids), dtype=np.bool_)
        made.append(Episode(Prompt(str(row // per_prompt), ""), prompt, "", ids, "length", every))
    return made


def stated_by(policy: LanguageModel, rollout: Rollout) -> Rollout:
    """The rollout, as if the policy had written it."""
    from dataclasses import replace

    return replace(rollout, logprobs=logprobs_under(policy, rollout), stated=True)


def hub_tokenizer(vocab_size: int) -> Any:
    """`Words` as transformers knows tokenizers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "<pad>": 1} | {f"w{token}": token for token in range(2, vocab_size)}
    rules = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<end>", pad_token="<pad>")


def trainer(trl: Any, name: str, model: Any, *arguments: Any, rows: Sequence[dict[str, Any]], **settings: Any) -> Any:
    """`trl.<name>Trainer` on a copy of a transformers model, with an optimizer.

    In float32 and without gradient checkpointing. TRL comes with bfloat16 and with it, which on a CPU is slower.
    """
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    exact = {"bf16": False, "gradient_checkpointing": False}
    folder = tempfile.mkdtemp()
    model = copy.deepcopy(model)
    model.save_pretrained(folder)
    model.config._name_or_path = folder  # from where a trainer reads its reference
    made = getattr(trl, f"{name}Trainer")(
        model,
        *arguments,
        **{"peft_config": settings.pop("peft_config")} if "peft_config" in settings else {},
        args=getattr(trl, f"{name}Config")(
            output_dir=folder, report_to="none", use_cpu=True, disable_tqdm=True, **exact, **settings
        ),
        train_dataset=datasets.Dataset.from_list(list(rows)),
        processing_class=hub_tokenizer(model.config.vocab_size),
    )
    if getattr(made, "ref_model", None) is not None:
        made.ref_model.float()
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # set by `train`, which is not called
    made.model.train()
    return made


def step_of(trainer: Any, batch: Any) -> tuple[float, float]:
    """One update of a TRL trainer on a prepared batch: the loss, and the gradient's norm."""
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm)


def same(name: str, ours: float, theirs: float, within: float = SAME_LOSS) -> None:
    """Ends the script unless both sides came to the same number."""
    if not abs(ours - theirs) <= within * max(1.0, abs(theirs)):
        sys.exit(f"{name}: ours {ours:.6g}, theirs {theirs:.6g}: not the same work, so there is nothing to compare")


def take_turns(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    rounds: int,
    at_least: float | None = None,
    warm_up: bool = True,
    clock: Callable[[], float] = time.process_time,
    floor: Callable[[], float] | None = None,
) -> None:
    """Prints a line. Each side does its work and says how much of it that was: tokens, pairs.

    `warm_up`: each does it once before, for what is made once. `clock`: what is compared, in seconds. `floor`: the
    seconds that one call of ours cannot do without.
    """
    if warm_up:
        ours(), theirs()
    ratios, distances = [], []
    least = None if floor is None else floor()
    for _ in range(rounds):
        mine, amount = timed(ours, clock)
        ratios.append(per_unit(theirs, clock) / (mine / amount))
        distances.append(None if least is None else least / mine)
    if not line(name, ratios, at_least, distances):
        print(f"    ours spends {spent(ours)}", flush=True)
        at_floor = [ratio / it for ratio, it in zip(ratios, distances, strict=True) if it]
        if at_floor:
            print(f"    if ours took no longer than its floor: {statistics.median(at_floor):.2f}", flush=True)


# What the operations of a step do, by a part of their names; the first that fits.
KINDS = {
    "attention": ("attention", "bmm", "_softmax"),
    "matrix products": ("linear", "addmm", "aten::mm", "mkldnn"),
    "copies": ("copy", "cat", "index", "gather", "scatter", "clone", "fill", "empty"),
    "optimizer": ("addcdiv", "lerp", "Optimizer", "sqrt"),
}


def spent(work: Callable[[], float]) -> str:
    """Where the time of one call goes, in shares: what a ratio that was not reached is up against."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    shares = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for event in profile.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), None)
        shares[kind or "other operations"] += event.self_cpu_time_total
    whole = sum(shares.values())
    return ", ".join(f"{time / whole:.0%} on {kind}" for kind, time in sorted(shares.items(), key=lambda it: -it[1]))


def machine() -> str:
    """Processor and versions, in a line."""
    from importlib.metadata import version

    return f"{processor()}, torch {torch.__version__}, transformers {version('transformers')}"


# What a processor can have that this library multiplies with.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


def processor() -> str:
    """Its name, with the generation, which names leave out; its instructions; its cores."""
    name, has = platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        said = dict(
            (part.strip() for part in entry.split(":", 1))
            for entry in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
            if ":" in entry
        )
        if "model name" in said:
            name = f"{said['model name']} (family {said.get('cpu family')}, model {said.get('model')})"
        has = " ".join(it for it in INSTRUCTIONS if it in said.get("flags", "").split()) or has
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {has}"


def timed(work: Callable[[], float], clock: Callable[[], float] = time.process_time) -> tuple[float, float]:
    """Seconds, and how much work that was."""
    started = clock()
    amount = work()
    return clock() - started, amount


def per_unit(work: Callable[[], float], clock: Callable[[], float] = time.process_time) -> float:
    seconds, amount = timed(work, clock)
    return seconds / amount


def padded(ids: Sequence[Any], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64[B, L] each."""
    width = max(map(len, ids))
    rows = torch.ones(len(ids), width, dtype=torch.int64)
    mask = torch.zeros(len(ids), width, dtype=torch.int64)
    for row, some in enumerate(ids):
        place = slice(width - len(some), width) if left else slice(0, len(some))
        rows[row, place], mask[row, place] = torch.as_tensor(np.asarray(some)), 1
    return rows, mask


if __name__ == "__main__":
    print(machine())
