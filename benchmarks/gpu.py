"""On a CUDA GPU, in ten minutes: the tests marked `gpu`, then writing and GRPO beside transformers and TRL.

    make gpu                                                   # what it prints goes to benchmarks/results/<GPU>.txt
    python benchmarks/gpu.py --device cpu --sizes S --rounds 1 # the same script at toy size, to see that it runs

Random Llamas of 135 M and 1.24 B parameters. Ours are in bfloat16, with float32 masters of what trains; transformers
writes in bfloat16; TRL trains as it comes, weights in float32 under autocast to bfloat16, but without gradient
checkpointing. Each side starts with an empty GPU, does its work once before it is timed, and its peak is what torch had
allocated, weights included. What does not fit into the ten minutes is left out and named.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import groups
import numpy as np
import side_by_side as bench
import torch

from rlhf_env import plugins
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError
from rlhf_env.learning.collect import collect
from rlhf_env.learning.devices import find_device
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import LanguageModel
from rlhf_env.policies.lora import add_adapter

ROOT = Path(__file__).resolve().parents[1]
ROWS, RANK, MINUTES = groups.ROWS, 16, 10.0
Work = Callable[[], float]


class Tee:
    """Prints, and keeps what was printed for a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str, into: TextIO = sys.stdout) -> None:
        self.lines.append(line)
        print(line, file=into, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N; cpu only shows that the script runs")
    parser.add_argument("--sizes", nargs="+", choices=bench.SIZES, default=["L", "XL"])
    parser.add_argument("--rounds", type=int, default=3, help="of each side (default: %(default)s)")
    parser.add_argument("--no-tests", action="store_true")
    given = parser.parse_args()
    try:
        device = find_device(given.device)
    except ConfigError as error:
        sys.exit(f"benchmarks/gpu.py: nothing was measured: {error}")
    started, tell = time.monotonic(), Tee()
    name = Engine(device=device).hardware
    tell(f"# {name}, {bench.machine()}")
    passed = given.no_tests or run_tests(device, tell)
    with quiet_transformers():
        for size in given.sizes:
            measure(size, device, given.rounds, lambda: time.monotonic() - started > 60 * MINUTES, tell)
    if device != "cpu":
        file = ROOT / "benchmarks" / "results" / f"{name.lower().replace(' ', '-').replace('/', '-')}.txt"
        file.write_text("\n".join(tell.lines) + "\n")
        print(f"Written to {file.relative_to(ROOT)}")
    sys.exit(0 if passed else 1)


def run_tests(device: str, tell: Tee) -> bool:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/devices", "--tb=short"]
    environment = {**os.environ, "RLHF_ENV_GPU": device}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = said.stdout.strip().splitlines()
    for line in lines if said.returncode else []:
        print(line)
    tell(f"# tests marked gpu: {lines[-1] if lines and said.returncode else 'all passed'}")
    return said.returncode == 0


# ---------------------------------------------------------------- sides, each made anew and thrown away


def measure(size: str, device: str, rounds: int, late: Callable[[], bool], tell: Tee) -> None:
    heading = f"{size}, {ROWS} texts of {bench.PROMPT} + {bench.ANSWER} tokens"
    tell(f"{heading:44} {'tokens/s':>9} {'peak GB':>8}")
    for what, sides in {
        "write": {"ours": our_writer, "transformers generate": their_writer},
        "GRPO, full weights": {"ours": our_grpo, "TRL": their_grpo},
        f"GRPO, LoRA {RANK}": {"ours": our_lora, "TRL + peft": their_lora},
    }.items():
        found: dict[str, float] = {}
        for side, make in sides.items():
            label = f"{what}: {side}"
            if late():
                tell(f"{label:44} not measured: {MINUTES:g} minutes are over")
                continue
            try:
                found[side], peak = rate(lambda make=make: make(size, device), rounds, device)  # type: ignore[misc]
            except ImportError as missing:
                tell(f"{label:44} not measured: {missing} ({bench.TRL})")
                continue
            except (RuntimeError, ConfigError) as error:  # out of memory, or an operation that the GPU lacks
                tell(f"{label:44} failed: {str(error).strip().splitlines()[0]}")
                continue
            tell(f"{label:44} {found[side]:9,.0f} {peak:>8}")
        if len(found) == 2:
            ours, theirs = found.values()
            tell(f"{what + ': ours / theirs':44} {ours / theirs:9.2f}")


def rate(make: Callable[[], Work], rounds: int, device: str) -> tuple[float, str]:
    """Tokens a second, the median of the rounds, and the peak memory from before the side was made."""
    on_gpu = device != "cpu"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    work = make()
    work()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        tokens = work()
        if on_gpu:
            torch.cuda.synchronize(device)
        rates.append(tokens / (time.perf_counter() - began))
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}" if on_gpu else "-"
    return statistics.median(rates), peak


def our_policy(size: str, device: str, *, lora: bool = False) -> LanguageModel:
    policy = bench.model(size).to(torch.bfloat16)
    if lora:
        add_adapter(policy.model, Lora(rank=RANK), seed=0)
    return Engine(device=device).place(policy)


def prompts_of(policy: Any) -> tuple[list[list[int]], list[str]]:
    episodes = bench.texts(policy.config.vocab_size, ROWS, per_prompt=groups.GROUP)
    words = bench.Words(policy.config.vocab_size)
    return [it.prompt_ids.tolist() for it in episodes], [words.decode(it.prompt_ids.tolist()) for it in episodes]


def our_writer(size: str, device: str) -> Work:
    policy = our_policy(size, device)
    ids = np.array(prompts_of(policy.model)[0])
    mask = np.ones_like(ids)
    return lambda: float(
        (policy.write({"input_ids": ids, "attention_mask": mask}, bench.ANSWER).tokens < policy.vocab_size).sum()
    )


def their_writer(size: str, device: str) -> Work:
    model = our_policy(size, device).model.eval()
    ids = torch.tensor(prompts_of(model)[0], device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def work() -> float:
        texts = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=bench.ANSWER)
        return float((texts[:, bench.PROMPT :] != 1).sum())  # 1 pads what ended

    return work


def our_grpo(size: str, device: str, *, lora: bool = False) -> Work:
    policy = our_policy(size, device, lora=lora)
    asked = prompts_of(policy.model)[1][:: groups.GROUP]
    reference = policy  # nothing reads it: there is no KL penalty on either side
    mix = load_rewards({"liked": groups.liked}, bench.Given(asked))
    setup = replace(bench.setup(policy, reference, mix, ROWS), engine=Engine(device=device))
    kind = plugins.host().load("agent", "grpo")
    agent = kind(setup, kind.Config(group_size=groups.GROUP, optimization=Optimization(lr=1e-6)))
    env = bench.environment(asked, {"liked": groups.liked}, setup)

    def work() -> float:
        written = collect(env, agent)
        agent.update(written)
        return float(written.actions.sum())

    return work


def our_lora(size: str, device: str) -> Work:
    return our_grpo(size, device, lora=True)


def their_grpo(size: str, device: str, *, lora: bool = False) -> Work:
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    model = bench.model(size).model
    asked = [{"prompt": it} for it in prompts_of(model)[1]]
    adapters = {}
    if lora:
        from peft import LoraConfig

        targets = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        adapters["peft_config"] = LoraConfig(r=RANK, lora_alpha=2 * RANK, **targets)
    trainer = GRPOTrainer(
        model,
        groups.liked,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            gradient_checkpointing=False,
            num_generations=groups.GROUP,
            per_device_train_batch_size=ROWS,
            max_completion_length=bench.ANSWER,
            beta=0.0,
            learning_rate=1e-6,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(asked),
        processing_class=bench.hub_tokenizer(model.config.vocab_size),
        **adapters,
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # set by `train`, which is not called
    trainer.model.train()

    def work() -> float:
        written = trainer._generate_and_score_completions(asked)
        bench.step_of(trainer, written)
        return float(written["completion_mask"].sum())

    return work


def their_lora(size: str, device: str) -> Work:
    return their_grpo(size, device, lora=True)


if __name__ == "__main__":
    main()
