"""Memory of each process of a GRPO run: by the arithmetic of `rlhf-env lab memory`, and as the kernel counts it.

    OMP_NUM_THREADS=1 python benchmarks/memory_arithmetic.py              needs Linux; --sizes 60M 135M, --ways full

Models of three sizes with random weights, in float32, on processors: all weights trained; LoRA; and all weights divided
among two processes by FSDP2 ([engine] shard). Each process is a fresh one, makes two updates of 8 texts of 32 + 32
tokens in micro-batches of 128 tokens, and writes no checkpoint, which would take memory of the processor that a GPU's
arithmetic does not have. Its peak is counted anew when it begins to write and when it begins to learn; what it had
before it loaded the model is taken off. Printed: estimated and measured MB, and their ratio; then, of FSDP2, the bytes
of parameters, gradients and moments that a process has, beside those of one process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROWS, GROUP, PROMPT, ANSWER, TOKENS, RANK = 8, 4, 32, 32, 128, 16
SIZES: dict[str, dict[str, int]] = {
    "60M": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 32_768,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "vocab_size": 49_152,
    },
}
WAYS = {"full": "", "lora": f"[policy.lora]\nrank = {RANK}\n", "fsdp2": "[engine]\nshard = true\n"}
WITHIN = 0.10
# Texts of a group earn different numbers: of a gradient that is 0 no step is taken, and no moments are made.
WORTH = "def worth(completions, **_):\n    return [float(sum(map(ord, text)) % 7) for text in completions]\n"

EXPERIMENT = """
[task]
name = "file"
path = "prompts.jsonl"

[policy]
model = "model"

[environment]
num_envs = {rows}
max_new_tokens = {answer}
max_prompt_tokens = {prompt}

[rewards]
mine = {{ function = "worth.py:worth" }}

[agent]
name = "grpo"
group_size = {group}
micro_batch_tokens = {tokens}

[budget]
updates = 2

{way}
"""


def status(field: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024 / 1e6


def prepare(folder: Path, size: str) -> None:
    import numpy as np
    import side_by_side as bench
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], tie_word_embeddings=True, eos_token_id=1, pad_token_id=1, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    bench.hub_tokenizer(config.vocab_size).save_pretrained(folder / "model")
    stream = np.random.default_rng(0)
    rows = [" ".join(f"w{token}" for token in stream.integers(2, config.vocab_size, PROMPT)) for _ in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (folder / "worth.py").write_text(WORTH)
    numbers = {"rows": ROWS, "answer": ANSWER, "prompt": PROMPT, "group": GROUP, "tokens": TOKENS}
    for way, more in WAYS.items():
        (folder / f"{way}.toml").write_text(EXPERIMENT.format(way=more, **numbers))


def measure(file: str) -> None:
    """Two updates of an experiment, and what they took: one line of JSON from the first process."""
    import rlhf_agents.grpo
    import torch

    from rlhf_env.envs.tokenizers import load_tokenizer
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.learning.loop import train
    from rlhf_env.learning.processes import join
    from rlhf_env.learning.shards import part_of
    from rlhf_env.learning.workplace import build

    torch.set_num_threads(1)
    processes = join()
    experiment = Experiment.load(file)
    small: dict[str, Any] = {
        "policy": {"tokenizer": "bytes"},
        "environment": {"num_envs": 2},
        "agent": {"name": "grpo", "group_size": 2},
    }
    if experiment.policy.lora is not None:
        small["policy"]["lora"] = {"rank": 2}
    warm = build(replace(Experiment.from_table(small), engine=experiment.engine))
    warm.agent.update(warm.source.next(warm.agent))  # what is imported later is here now
    tokenizer = load_tokenizer("model")  # which is on no GPU
    del warm
    gc.collect()
    before = status("VmRSS")
    workplace = build(experiment)
    peaks = {"writing": 0.0, "learning": 0.0}
    update, collect = rlhf_agents.grpo.GRPO.update, type(workplace.source).next

    def counted(phase: str, call: Any, *arguments: Any) -> Any:
        if phase == "learning":  # as its first pass would
            workplace.setup.policy.forget()  # type: ignore[attr-defined]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        result = call(*arguments)
        peaks[phase] = max(peaks[phase], status("VmHWM") - before)
        return result

    rlhf_agents.grpo.GRPO.update = lambda self, rollout: counted("learning", update, self, rollout)  # type: ignore[method-assign]
    type(workplace.source).next = lambda self, agent: counted("writing", collect, self, agent)  # type: ignore[method-assign]
    train(
        workplace.agent,
        workplace.source,
        experiment.budget,
        spending=workplace.setup.spending,
        engine=workplace.setup.engine,
    )
    del tokenizer
    optimizer: Any = workplace.agent.optimizer  # type: ignore[attr-defined]
    policy = workplace.setup.policy
    parameters = sum(part_of(weight).numel() * 4 for weight in policy.parameters())
    trained = sum(weight.numel() * 4 for weight in optimizer._trained)
    if processes.is_first:
        print(json.dumps({**peaks, "p+g+m": (parameters + 3 * trained) / 1e6}), flush=True)
    processes.leave()


def measured(folder: Path, way: str) -> dict[str, float]:
    """By fresh processes."""
    count = 2 if way == "fsdp2" else 1
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    running = []
    for rank in range(count):
        said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in said.items()} if count > 1 else {}
        # Of large tensors that are gone the memory goes back, as a GPU's does; otherwise holes of the heap are counted.
        environment |= {"MASTER_ADDR": "127.0.0.1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", f"{way}.toml"]
        running.append(
            subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        )
    said_by = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{way}: a process failed")
    found: dict[str, float] = json.loads(said_by[0].splitlines()[-1])
    return found


def estimated(folder: Path, way: str) -> dict[str, float]:
    from rlhf_env.lab.memory import needs_of

    need = needs_of(folder / f"{way}.toml", processes=2 if way == "fsdp2" else 1)
    stays = sum(need.stays.values())
    return {name: (stays + sum(getattr(need, name).values())) / 1e6 for name in ("writing", "learning")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="(default: all)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(default: all)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return
    if given.prepare:
        prepare(Path(given.prepare[0]), given.prepare[1])
        return
    print(
        f"{'size':6} {'way':6} {'phase':9} {'estimated':>9} {'measured':>9} {'ratio':>6}   MB of each process",
        flush=True,
    )
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            subprocess.run([sys.executable, __file__, "--prepare", temporary, size], check=True)
            alone: dict[str, float] = {}
            for way in given.ways:
                found, expected = measured(folder, way), estimated(folder, way)
                for phase, worth in expected.items():
                    ratio = worth / found[phase]
                    note = "" if abs(ratio - 1.0) <= WITHIN else f"   not within {WITHIN:.0%}"
                    print(f"{size:6} {way:6} {phase:9} {worth:9.0f} {found[phase]:9.0f} {ratio:6.2f}{note}", flush=True)
                if way == "full":
                    alone = found
                if way == "fsdp2" and alone:
                    peak, peak_alone = (max(it["writing"], it["learning"]) for it in (found, alone))
                    kept = found["p+g+m"] / alone["p+g+m"]
                    print(f"{size:6} fsdp2: of one process's parameters, gradients and moments {kept:.2f}", end="")
                    print(f", of its peak {peak / peak_alone:.2f}", flush=True)


if __name__ == "__main__":
    main()
