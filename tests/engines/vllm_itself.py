"""vLLM itself, in this process, writing for policies: what the quick tests say of a stand-in, asked of the real engine.

    make vllm                                  # makes build/vllm (3.5 GB) and runs this there, some five minutes
    python tests/engines/vllm_itself.py [FOLDER OF A MODEL]

A small Llama is made here (vLLM's kernels for processors need heads of 32 or more numbers: the model "tiny" has 8), and
trained on a toy task. FOLDER, SmolLM2-135M-Instruct for instance, then makes two updates of GRPO with adapters, and
writes in float32 and bfloat16. Ends with `N of N hold`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import add_adapter, is_of_adapter
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.vllm_writer import VllmSettings, VllmWriter

WORDS, END, PAD = 5, 4, 3  # of the tokenizer "alphabet:ab="
NEAR = 1e-8  # nats a token: float32 against float32
DRAWS, RARE = 4000, 25.0  # chi-square of 4 degrees of freedom is above this once in 20,000 times

EXPERIMENT = """\
name = "echo"
[task]
name = "echo"
length = 2
[policy]
model = "{model}"
tokenizer = "alphabet:ab="
writer = "vllm"
{more}
[environment]
num_envs = 32
max_new_tokens = 4
max_prompt_tokens = 4
[rewards]
task = 1.0
kl = 0.01
[agent]
name = "rloo"
lr = 3e-3
[budget]
updates = {updates}
[evaluation]
prompts = 16
"""

held: list[bool] = []


def holds(what: str, true: bool, seen: object = "") -> None:
    held.append(bool(true))
    print(f"{'holds' if true else 'FAILS'}  {what}  {seen}", flush=True)


def made(folder: Path, *, tied: bool = False, head: int = 32) -> LanguageModel:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=2 * head,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
        intermediate_size=96,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    return LanguageModel.from_pretrained(folder, end_id=END, pad_id=PAD)


def asked(*texts: list[int]) -> Any:
    width = max(map(len, texts))
    ids = np.array([text + [0] * (width - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": np.array([[i < len(text) for i in range(width)] for text in texts])}


def step(policy: LanguageModel) -> None:
    """A step of the optimizer of runs on what trains, along a gradient that is not 0."""
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02, fused=True)
    tokens = torch.tensor([[0, 1, 2, 0, 1]])
    where = torch.arange(5)[None] > 0
    (-policy.evaluate(tokens, torch.ones_like(where), where).logprobs.sum()).backward()
    optimizer.step()


def weights_are_handed_over(folder: Path) -> None:
    for kind in ("whole", "tied", "adapter"):
        policy = made(folder / kind, tied=kind != "whole")
        if kind == "adapter":
            add_adapter(policy.model, Lora(rank=3), 0)
            policy = LanguageModel(policy.model, end_id=END, pad_id=PAD)
            policy.requires_grad_(False)
            for name, weight in policy.named_parameters():
                weight.requires_grad_(is_of_adapter(name))
        policy.writer = VllmWriter(policy, VllmSettings(cache_mb=64), longest=16)
        prompts, texts = asked([0, 1], [1, 0, 2], [2], [0, 0]), []
        for update in range(4):
            policy.reseed(1)
            texts.append(policy.write(prompts, 8).tokens.tolist())
            distance = policy.writer.take_distance()
            holds(f"{kind}: after {update} steps the engine has the policy's weights", distance["kl"] < NEAR, distance)
            step(policy)
        holds(f"{kind}: what is written changes with them", texts[0] != texts[-1])


def texts_depend_on_their_row_alone(folder: Path) -> None:
    policy = made(folder / "rows")
    generators, set_threads = torch.random.get_rng_state(), torch.set_num_threads
    policy.writer = VllmWriter(policy, VllmSettings(cache_mb=64), longest=16)
    prompts = asked([0, 1], [1, 0, 2], [2], [0, 0], [0, 0])
    policy.reseed(5)
    together = policy.write(prompts, 8)
    holds("equal prompts are continued otherwise", (together.tokens[3] != together.tokens[4]).any())
    for row in range(5):
        policy.reseed(5)
        alone = policy.write(prompts, 8, np.arange(5) == row)
        near = np.abs(alone.logprobs[row] - together.logprobs[row]).max()
        holds(f"row {row} alone is what it is among others", (alone.tokens[row] == together.tokens[row]).all(), near)
    ends = together.tokens == END
    holds("a text ends with its end token, which is stated", ends.any() and (together.logprobs[ends] < 0).all())
    same = bool((torch.random.get_rng_state() == generators).all())
    holds("the global generator and torch.set_num_threads are as before", same and torch.set_num_threads is set_threads)


def what_is_stated_is_what_is_drawn_from(folder: Path) -> None:
    policy = made(folder / "drawn")
    policy.writer = VllmWriter(policy, VllmSettings(cache_mb=64, checked_texts=64), longest=16)
    for sampling in (Sampling(), Sampling(temperature=0.6), Sampling(top_k=3), Sampling(temperature=1.4, top_p=0.8)):
        policy.sampling = sampling
        policy.write(asked(*[[0, 1]] * 64), 8)
        distance = policy.writer.take_distance()
        holds(f"{sampling}: stated as the policy computes it", distance["kl"] < NEAR, distance["kl"])
        written = policy.write(asked(*[[0, 1]] * DRAWS), 1)
        policy.writer.take_distance()
        likely = {int(token): float(np.exp(stated)) for token, stated in zip(*written_first(written), strict=True)}
        counts = Counter(written.tokens[:, 0].tolist())
        squares = sum((counts[token] - DRAWS * p) ** 2 / (DRAWS * p) for token, p in likely.items())
        holds(f"{sampling}: drawn as often as it is stated", squares < RARE, f"chi-square {squares:.1f}")
    policy.sampling = Sampling(top_k=1)
    engine = policy.write(asked([0, 1], [2]), 8).tokens
    policy.writer = None
    holds("greedily, it is what the policy writes", (engine == policy.write(asked([0, 1], [2]), 8).tokens).all())


def written_first(written: Any) -> tuple[Any, Any]:
    return written.tokens[:, 0], written.logprobs[:, 0]


def train(folder: Path, model: Path, updates: int, more: str = "", *flags: str) -> subprocess.CompletedProcess[str]:
    file = folder / "experiment.toml"
    file.write_text(EXPERIMENT.format(model=model, updates=updates, more=more), encoding="utf-8")
    command = [sys.executable, "-m", "rlhf_env", "train", str(file), "--out", str(folder / "run"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def runs_are_trained(folder: Path) -> None:
    made(folder / "model", tied=True)
    for more in ("", "[policy.lora]\nrank = 4"):
        where = Path(tempfile.mkdtemp(dir=folder))
        ended = train(where, folder / "model", 12, more)
        what = "with adapters" if more else "of all weights"
        holds(f"12 updates {what}: exit status 0", ended.returncode == 0, ended.stderr[-300:])
        rows = [json.loads(line) for line in (where / "run/metrics.jsonl").read_text().splitlines()][1:]
        worst = max(row["writer/kl"] for row in rows)
        holds(f"12 updates {what}: writer/kl in each", len(rows) == 12 and worst < NEAR, f"at most {worst:.1e}")
        train(half := Path(tempfile.mkdtemp(dir=folder)), folder / "model", 6, more)
        ended = train(half, folder / "model", 12, more, "--resume")
        again = [json.loads(line) for line in (half / "run/metrics.jsonl").read_text().splitlines()][1:]
        same = [row["rollout/reward"] for row in again] == [row["rollout/reward"] for row in rows]
        holds(f"stopped after 6 and resumed {what}: the same rewards", same, ended.stderr[-300:])
    where = Path(tempfile.mkdtemp(dir=folder))
    ended = train(where, folder / "model", 3, '[policy.vllm]\ndtype = "bfloat16"\nmax_kl = 1e-9')
    line = ended.stderr.strip().splitlines()[-1]
    holds("above max_kl a run stops with exit status 3", ended.returncode == 3 and "writer/kl" in line, line)
    made(folder / "narrow", head=8)
    where = Path(tempfile.mkdtemp(dir=folder))
    ended = train(where, folder / "narrow", 3)
    line = ended.stderr.strip().splitlines()[-1]
    holds("what its kernels cannot do: exit status 2", ended.returncode == 2 and "head_dim=8" in line, line)
    holds("... and no run folder", not (where / "run").exists())


def a_real_model(folder: Path) -> None:
    from rlhf_env import Experiment, build

    table = {
        "task": {"name": "file", "path": str(folder / "questions.jsonl")},
        "policy": {"model": str(MODEL), "writer": "vllm", "lora": {"rank": 8}, "vllm": {"cache_mb": 256}},
        "environment": {"num_envs": 8, "max_new_tokens": 16, "max_prompt_tokens": 64},
        "rewards": {"length": {"target": 8}},
        "agent": {"name": "grpo", "lr": 1e-4},
        "budget": {"updates": 2},
    }
    questions = ["What is the capital of France?", "Name a yellow fruit.", "Two plus two is", "Say hello."]
    (folder / "questions.jsonl").write_text("".join(json.dumps({"prompt": it}) + "\n" for it in questions))
    workplace = build(Experiment.from_table(table))
    began = time.perf_counter()
    workplace.start_writer()
    print(f"       {MODEL.name}: vLLM started in {time.perf_counter() - began:.0f} s")
    rows = workplace.train().rows
    worst = max(row["writer/kl"] for row in rows)
    holds("GRPO with adapters: writer/kl", len(rows) == 2 and worst < 1e-6, f"at most {worst:.1e}")
    policy = LanguageModel.from_pretrained(MODEL)
    encoded = [workplace.setup.tokenizer.encode(it) for it in questions * 4]
    own = time.perf_counter()
    policy.write(asked(*encoded), 32)
    print(f"       16 texts of up to 32 tokens, written by the policy itself: {time.perf_counter() - own:.1f} s")
    for dtype, most in (("float32", 1e-6), ("bfloat16", 0.02)):
        policy.writer = VllmWriter(policy, VllmSettings(cache_mb=256, dtype=dtype), longest=96)
        policy.write(asked(*encoded), 32)
        distance = policy.writer.take_distance()
        holds(f"{dtype}: nats a token", distance["kl"] < most, distance)
        began = time.perf_counter()
        policy.write(asked(*encoded), 32)
        print(f"       the same by vLLM in {dtype}: {time.perf_counter() - began:.1f} s")
        policy.writer = None


PARTS: list[Callable[[Path], None]] = [
    weights_are_handed_over,
    texts_depend_on_their_row_alone,
    what_is_stated_is_what_is_drawn_from,
    runs_are_trained,
]
MODEL = Path(sys.argv[1]) if len(sys.argv) > 1 else None


def main() -> None:
    torch.set_num_threads(1)
    for part in [*PARTS, *([] if MODEL is None else [a_real_model])]:
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
    print(f"{sum(held)} of {len(held)} hold")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
