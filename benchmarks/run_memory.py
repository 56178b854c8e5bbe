"""Peak memory of whole GRPO runs on a model of the shape of SmolLM2-135M (random weights), and their checkpoints.

    python benchmarks/run_memory.py              needs Linux and git; for TRL: pip install -e ".[bench,peft]"

Each run is a process of its own, from loading the model to the last checkpoint: two updates on 32 texts, 8 prompts of
64 tokens with 4 answers of 128 each, in float32, on one thread. What is printed is its peak resident memory, which the
kernel counts. "before" is this library before it had adapters, from this repository's history (a clone without that
commit leaves the line out). TRL makes one update: 32 texts at once, as in the other benchmarks, with gradient
checkpointing, which is its default, and in micro-batches of 4, as many as ours takes. If the machine runs out of
memory, the kernel ends TRL's process first, and what it had by then is printed as a lower bound.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import side_by_side as bench
from earlier_build import BEFORE, earlier_build, environment_of
from safetensors import safe_open

PROMPTS, GROUP, PROMPT, ANSWER, UPDATES, RANK = 8, 4, 64, 128, 2, 16
ROWS = PROMPTS * GROUP
TRAIN = (
    "import sys\ntry:\n from rlhf_env.cli.main import main\nexcept ImportError:\n from rlhf_env.cli import main\nmain()"
)
SIDES = {
    "lora": "LoRA 16 on all linear layers, ours",
    "few": "LoRA 16 on q_proj and v_proj (peft's default), ours",
    "full": "full weights, ours",
    "before": f"full weights, before ({BEFORE})",
    "trl": "LoRA 16 on all linear layers, TRL + peft",
    "trl-checkpointing": "the same, gradient checkpointing",
    "trl-small": "the same, micro-batches of 4",
}
AT_LEAST = {"before": 3.0, "trl": 2.0}
CHECKPOINT_AT_LEAST = 50.0

EXPERIMENT = """
[task]
name = "file"
path = "prompts.jsonl"

[policy]
model = "model"
{lora}
[environment]
num_envs = {rows}
max_new_tokens = {answer}
max_prompt_tokens = {prompt}

[rewards]
repetition = {{ weight = 1.0, n = 1 }}

[agent]
name = "grpo"
group_size = {group}

[budget]
updates = {updates}

[evaluation]
prompts = 1
"""


def prompts() -> list[str]:
    stream = np.random.default_rng(0)
    vocab = bench.SIZES["L"]["vocab_size"]
    return [" ".join(f"w{token}" for token in stream.integers(2, vocab, PROMPT)) for _ in range(PROMPTS)]


def prepare(folder: Path) -> None:
    """The model with its tokenizer, prompts, and an experiment with and without adapters."""
    model = bench.model("L").model
    model.save_pretrained(folder / "model")
    bench.hub_tokenizer(model.config.vocab_size).save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": it}) + "\n" for it in prompts()))
    sizes = {"rows": ROWS, "answer": ANSWER, "prompt": PROMPT, "group": GROUP, "updates": UPDATES}
    adapters = f"[policy.lora]\nrank = {RANK}\n"
    few = f'{adapters}targets = ["q_proj", "v_proj"]\n'
    for name, lora in {"full": "", "lora": adapters, "few": few}.items():
        (folder / f"{name}.toml").write_text(EXPERIMENT.format(lora=lora, **sizes))


def peak(command: list[str], folder: Path, **environment: str) -> tuple[float, bool]:
    """The peak resident memory of a process, in MB, and whether it came to its end before the kernel ended it.

    Ends the script if the process fails otherwise.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, -signal.SIGKILL):
            said.seek(0)
            sys.exit(f"{command}: {said.read().decode()[-2000:]}")
    return usage.ru_maxrss / 1024, process.returncode == 0


def peak_of(side: str, folder: Path) -> tuple[float, bool] | None:
    """See `peak`; None where the side cannot be measured here, which is said."""
    if side.startswith("trl"):
        bench.peer("trl", bench.TRL), bench.peer("peft", bench.TRL)
        return peak([sys.executable, __file__, "--trl", side, str(folder)], folder)
    environment = {}
    if side == "before":
        build = earlier_build()
        if build is None:
            print(f"{SIDES[side]}: not measured, this clone has no commit {BEFORE}")
            return None
        environment = environment_of(build)
    experiment = folder / f"{'full' if side == 'before' else side}.toml"
    arguments = ["train", str(experiment), "--out", str(folder / side), "--threads", "1"]
    return peak([sys.executable, "-c", TRAIN, *arguments], folder, **environment)


def train_with_trl(folder: Path, side: str) -> None:
    """What a side of TRL does in its process."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # if somebody has to go, then not another program
    at_once = 4 if side == "trl-small" else ROWS
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        lambda completions, **_: [float(len(it) % 7) for it in completions],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=side == "trl-checkpointing",
            num_generations=GROUP,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=ROWS // at_once,
            max_completion_length=ANSWER,
            max_steps=1,
            save_strategy="no",
            beta=0.0,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": it} for it in prompts()]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()


def checkpoint_size(run: Path) -> float:
    """The bytes on disk of a run's last checkpoint."""
    last = max((run / "checkpoints").glob("step-*"))
    return sum(file.stat().st_size for file in last.rglob("*") if file.is_file())


def parts(run: Path) -> str:
    """What of a run's last checkpoint is weights, and what the optimizer's moments, which an exact resume needs."""
    sizes = dict.fromkeys(("policy", "optimizer"), 0)
    last = max((run / "checkpoints").glob("step-*"))
    with safe_open(last / "tensors.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            tensor = file.get_slice(name)
            for part in sizes:
                if f"/{part}/" in name:
                    sizes[part] += 4 * math.prod(tensor.get_shape())
    return (
        f"  ({sizes['policy'] / 1e6:.1f} weights, {sizes['optimizer'] / 1e6:.1f} moments)"
        if any(sizes.values())
        else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    parser.add_argument("--trl", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trl:
        train_with_trl(Path(given.trl[1]), given.trl[0])
        return
    if given.prepare:
        prepare(Path(given.prepare))
        return
    print(f"{'peak resident memory of a GRPO run, 135 M, 32 texts of 64 + 128':64} {'MB':>7} {'/ ours':>7}  at least")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: the peak of a child begins with what its parent had when it was started.
        subprocess.run([sys.executable, __file__, "--prepare", temporary], check=True, stderr=subprocess.DEVNULL)
        peaks: dict[str, float] = {}
        for side in given.sides:
            found = peak_of(side, folder)
            if found is not None:
                peaks[side], whole = found
                more = "" if whole else "  (and more: then the machine had no more)"
                line(
                    SIDES[side],
                    f"{peaks[side]:.0f}",
                    peaks[side] / peaks.get("lora", math.nan),
                    AT_LEAST.get(side),
                    more,
                )
        runs = [side for side in peaks if not side.startswith("trl")]
        if "before" in runs:
            print(f"{'a checkpoint on disk':64} {'MB':>7} {'before/':>7}  at least")
            sizes = {side: checkpoint_size(folder / side) for side in runs}
            for side in runs:
                bound = CHECKPOINT_AT_LEAST if side in ("lora", "few") else None
                line(
                    SIDES[side], f"{sizes[side] / 1e6:.1f}", sizes["before"] / sizes[side], bound, parts(folder / side)
                )


def line(name: str, size: str, ratio: float, at_least: float | None, more: str = "") -> None:
    bound = "" if at_least is None else f"{at_least:9.2f}"
    print(f"{name:64} {size:>7} {ratio:7.2f} {bound}{more}", flush=True)


if __name__ == "__main__":
    main()
