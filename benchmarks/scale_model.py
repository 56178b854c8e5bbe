"""What more GPUs would bring: updates in data parallel, simulated by discrete events; the assumptions are printed.

    python benchmarks/scale_model.py                        # 1, 8, 64 and 1,024 GPUs
    python benchmarks/scale_model.py --parameters 7e9 --texts 4096
    python benchmarks/scale_model.py --validate             # against runs of 1 and 2 processes here (minutes)

One update is simulated as docs/scale.md says that it goes: every process writes its block of neighbouring texts, all at
once, a token a step, until its longest one ends; texts that have ended are queued at the reward servers, first come,
first served (or, with --rewards-at-the-end, when all have ended); when every score is there, tokens and their
log-probabilities are exchanged; micro-batches are dealt out by tokens; gradients are added up in a ring; every process
takes the step.

A process waits where others write longer texts, where rewards are not there yet, and where others learn from more
tokens; what each of these costs is printed as a share of the time of all processes. "Where it stops" is the smallest
number of GPUs whose efficiency, speed-up by number, is below one half.

What it knows nothing of: stragglers and failures of machines, congestion, memory that is full, and everything that
depends on a GPU's kernels beyond the bandwidth and the arithmetic below. No GPU was measured: the numbers of GPUs are
makers' data sheets times a utilisation that is assumed. `--validate` shows how far the structure is right, here.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

GPUS = (1, 8, 64, 1_024)
UPDATES = 20


@dataclass(frozen=True)
class Assumptions:
    """Seconds, bytes, texts. `unit` of each field stands beside it where it is printed."""

    parameters: float = 1e9
    weight_bytes: float = 2.0  # of each parameter, as written and learned from
    gradient_bytes: float = 4.0  # of each parameter, as added up
    cache_bytes: float = 65_536.0  # keys and values of a token
    memory_bandwidth: float = 3.35e12  # bytes a second of a GPU
    arithmetic: float = 989e12  # products a second of a GPU
    utilisation: float = 0.4  # of it, in learning
    step_overhead: float = 2e-3  # seconds of a step of writing, whatever is written
    micro_batch_tokens: float = 16_384
    micro_batch_overhead: float = 5e-3
    node: int = 8  # GPUs that are joined by the nearer network
    near: float = 450e9  # bytes a second to a neighbour
    far: float = 50e9
    latency_near: float = 10e-6
    latency_far: float = 30e-6
    prompt: int = 512  # tokens
    mean_length: float = 512.0  # tokens of a text: log-normal, cut off at the longest
    spread_of_length: float = 0.6  # standard deviation of the logarithm
    longest: int = 2_048
    reward_seconds: float = 0.05  # of one text at one server
    reward_servers: int = 64
    rewards_at_the_end: bool = False
    alone_seconds: float = 20e-6  # of the first process for each text, while the others wait
    optimizer_bytes: float = 32.0  # that a step reads and writes of each parameter


@dataclass
class Spent:
    """Seconds of all processes together."""

    wall: float = 0.0
    writing: float = 0.0
    waiting_for_texts: float = 0.0
    waiting_for_rewards: float = 0.0
    alone: float = 0.0
    network: float = 0.0
    learning: float = 0.0
    waiting_for_learners: float = 0.0
    servers_at_work: float = 0.0
    tokens: float = 0.0

    def add(self, other: Spent) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


# -------------------------------------------------------------------- the parts of an update


def lengths_of(texts: int, of: Assumptions, stream: np.random.Generator) -> np.ndarray:
    """int64[texts]: tokens of each text."""
    location = math.log(of.mean_length) - of.spread_of_length**2 / 2
    drawn = np.exp(stream.normal(location, of.spread_of_length, texts))
    return np.clip(drawn.astype(np.int64), 1, of.longest)


def ends_of(lengths: np.ndarray, of: Assumptions) -> np.ndarray:
    """float64[texts]: when each text of a process ends. A step reads the weights once and the cache of each text."""
    ordered = np.sort(lengths)
    steps = np.arange(1, ordered[-1] + 1)
    at_work = len(ordered) - np.searchsorted(ordered, steps, side="left")
    cached = at_work * (of.prompt + steps) * of.cache_bytes
    seconds = of.step_overhead + (of.parameters * of.weight_bytes + cached) / of.memory_bandwidth
    return np.asarray(np.cumsum(seconds)[lengths - 1])


def scored(asked: Sequence[float], of: Assumptions) -> float:
    """When the last score is there: a queue, first come, first served, at `reward_servers` servers."""
    if of.reward_seconds == 0:
        return max(asked)
    free = [0.0] * of.reward_servers
    heapq.heapify(free)
    last = 0.0
    for arrival in sorted(asked):
        done = max(arrival, heapq.heappop(free)) + of.reward_seconds
        heapq.heappush(free, done)
        last = max(last, done)
    return last


def ring(count: int, size: float, of: Assumptions) -> float:
    """Seconds to add up `size` bytes of `count` processes: a ring in each machine, one between machines, and back."""
    near = min(count, of.node)
    machines = math.ceil(count / of.node)
    seconds = 0.0
    if near > 1:
        seconds += 2 * (near - 1) * (size / near / of.near + of.latency_near)
    if machines > 1:  # each GPU of a machine passes its share on
        share = size / near
        seconds += 2 * (machines - 1) * (share / machines / of.far + of.latency_far)
    return seconds


def dealt(lengths: np.ndarray, count: int, of: Assumptions) -> Iterator[tuple[float, int]]:
    """Of each process: tokens and micro-batches. Neighbours stay together, as many tokens each as can be."""
    tokens = lengths + of.prompt
    bounds = np.searchsorted(np.cumsum(tokens), np.arange(1, count) * tokens.sum() / count, side="left")
    for part in np.split(tokens, bounds):
        yield float(part.sum()), math.ceil(part.sum() / of.micro_batch_tokens)


def update(count: int, texts: int, of: Assumptions, stream: np.random.Generator) -> Spent:
    lengths = lengths_of(texts, of, stream)
    blocks = [block for block in np.array_split(lengths, count) if len(block)]
    ends = [ends_of(block, of) for block in blocks]
    written = [float(end.max()) for end in ends] + [0.0] * (count - len(blocks))
    all_written = max(written)
    asked = [all_written] * texts if of.rewards_at_the_end else [float(at) for end in ends for at in end]
    at_scores = max(all_written, scored(asked, of))
    alone = texts * of.alone_seconds
    exchanged = 0.0
    if count > 1:
        exchanged = math.log2(count) * of.latency_far + float(lengths.sum()) * 16 / (
            of.near if count <= of.node else of.far
        )
    learning = [
        6 * of.parameters * tokens / (of.arithmetic * of.utilisation) + batches * of.micro_batch_overhead
        for tokens, batches in dealt(lengths, count, of)
    ]
    step = of.parameters * of.optimizer_bytes / of.memory_bandwidth
    added_up = ring(count, of.parameters * of.gradient_bytes, of) if count > 1 else 0.0
    wall = at_scores + alone + exchanged + max(learning) + added_up + step
    return Spent(
        wall=wall,
        writing=sum(written),
        waiting_for_texts=count * all_written - sum(written),
        waiting_for_rewards=count * (at_scores - all_written),
        alone=count * alone,
        network=count * (exchanged + added_up),
        learning=sum(learning) + count * step,
        waiting_for_learners=count * max(learning) - sum(learning),
        servers_at_work=texts * of.reward_seconds,
        tokens=float(lengths.sum()),
    )


def simulate(count: int, texts: int, of: Assumptions, updates: int = UPDATES) -> Spent:
    stream, total = np.random.default_rng(0), Spent()
    for _ in range(updates):
        total.add(update(count, texts, of, stream))
    return total


# -------------------------------------------------------------------- what is printed


def show(title: str, texts_of: Sequence[tuple[int, int]], of: Assumptions) -> None:
    print(f"\n{title}")
    heading = (
        "GPUs",
        "texts",
        "seconds",
        "tokens/s",
        "speed-up",
        "efficiency",
        "writing",
        "texts?",
        "rewards?",
        "alone",
        "network",
    )
    print("".join(f"{name:>11}" for name in (*heading, "learning", "learners?", "servers")))
    base = None
    for count, texts in texts_of:
        found = simulate(count, texts, of)
        speed = found.tokens / found.wall
        base = base or speed / count
        whole = count * found.wall
        shares = [
            share / whole
            for share in (
                found.writing,
                found.waiting_for_texts,
                found.waiting_for_rewards,
                found.alone,
                found.network,
                found.learning,
                found.waiting_for_learners,
            )
        ]
        busy = found.servers_at_work / (of.reward_servers * found.wall)
        numbers = [f"{count:,}", f"{texts:,}", f"{found.wall / UPDATES:.2f}", f"{speed:,.0f}", f"{speed / base:.1f}"]
        cells = [*numbers, f"{speed / base / count:.2f}", *(f"{100 * share:.1f} %" for share in (*shares, busy))]
        print("".join(f"{cell:>11}" for cell in cells))


def stops(texts: int, of: Assumptions, *, weak: bool) -> str:
    """The smallest power of two whose efficiency is below one half."""
    alone = simulate(1, texts, of, 3)
    base = alone.tokens / alone.wall
    for exponent in range(1, 15):
        count = 2**exponent
        many = simulate(count, texts * count if weak else texts, of, 3)
        if many.tokens / many.wall / base / count < 0.5:
            return f"{count:,} GPUs"
    return "not up to 16,384 GPUs"


def tell(texts: int, of: Assumptions) -> None:
    print("assumed:")
    for field in fields(of):
        print(f"  {field.name:22} {getattr(of, field.name):,}")
    print(f"{UPDATES} updates each; shares are of the time of all GPUs; 'texts?', 'rewards?', 'learners?': waited for;")
    print("'servers': how much of their time the reward servers are at work")
    show(f"The same {texts:,} texts an update", [(count, texts) for count in GPUS], of)
    print(f"efficiency falls below one half at {stops(texts, of, weak=False)}")
    each = max(1, texts // 64)
    show(f"{each:,} texts an update and GPU", [(count, each * count) for count in GPUS], of)
    print(f"efficiency falls below one half at {stops(each, of, weak=True)}")


# -------------------------------------------------------------------- against runs

FILE = """
name = "run"
[policy]
model = "model"
[task]
name = "file"
path = "prompts.jsonl"
[environment]
num_envs = {rows}
max_prompt_tokens = {prompt}
max_new_tokens = {answer}
[rewards]
mine = {{ function = "worth.py:worth" }}
[agent]
name = "grpo"
group_size = 4
[budget]
updates = 6
[evaluation]
prompts = 1
"""
WORTH = "def worth(completions, **_):\n    return [float(sum(map(ord, text)) % 7) for text in completions]\n"
PROMPT, ANSWER = 16, 48


def timed(folder: Path, rows: int, count: int) -> tuple[float, float, float]:
    """Seconds of an update: writing and scoring, learning; and tokens written. Medians over updates but the first."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    file, out = folder / f"{rows}.toml", folder / f"{rows}-{count}"
    file.write_text(FILE.format(rows=rows, prompt=PROMPT, answer=ANSWER))
    command = [sys.executable, "-m", "rlhf_env", "train", file.name, "--out", out.name]
    running = []
    for rank in range(count):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in world.items()} if count > 1 else {}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        running.append(
            subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
        )
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit(f"{rows} texts in {count} processes: a run failed")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "time/collect_share" in line][1:]
    before = [0.0, *(line["spent/generated_tokens"] for line in lines)]
    tokens = statistics.median(now - then for then, now in itertools.pairwise(before[1:]))
    seconds = [tokens / line["time/tokens_per_second"] for line in lines]
    collected = [line["time/collect_share"] * whole for line, whole in zip(lines, seconds, strict=True)]
    writing = statistics.median(collected)
    return writing, statistics.median(seconds) - writing, tokens


def validate() -> None:
    """Constants from runs of one process; what they say of two, beside a run of two."""
    import side_by_side as bench
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4_096,
        hidden_size=384,
        intermediate_size=1_024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        size = sum(weight.numel() for weight in model.parameters())
        model.save_pretrained(folder / "model")
        bench.hub_tokenizer(config.vocab_size).save_pretrained(folder / "model")
        stream = np.random.default_rng(0)
        rows = [" ".join(f"w{token}" for token in stream.integers(2, config.vocab_size, PROMPT - 2)) for _ in range(16)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
        (folder / "worth.py").write_text(WORTH)
        few, many = 32, 64
        one = {texts: timed(folder, texts, 1) for texts in (few, many)}
        two = timed(folder, many, 2)
    # Writing: a part that is there whatever is written, and one for each text. Learning: by tokens.
    each = max(0.0, (one[many][0] - one[few][0]) / (many - few))
    fixed = max(0.0, one[few][0] - each * few)
    of_texts, whole = one[many][1], one[many][0] + one[many][1]
    said_writing, said_learning = fixed + each * many / 2, of_texts / 2 + exchange(size)
    print(f"{size / 1e6:.1f} million parameters, {many} texts of {PROMPT} + {ANSWER} tokens an update; seconds:")
    print(f"{'':28}{'writing':>10}{'learning':>10}{'together':>10}{'speed-up':>10}")
    said = (said_writing, said_learning)
    for name, (writing, learning) in {
        "one process": one[many][:2],
        "two, as simulated": said,
        "two, measured": two[:2],
    }.items():
        print(f"{name:28}{writing:10.2f}{learning:10.2f}{writing + learning:10.2f}{whole / (writing + learning):10.2f}")
    error = sum(said) / (two[0] + two[1])
    print(f"simulated / measured, two processes: {error:.2f}")


def _add_up(rank: int, port: int, size: int, answer: str) -> None:
    import time

    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradient, took = torch.zeros(size), []
    for _ in range(5):
        begun = time.perf_counter()
        torch.distributed.all_reduce(gradient)
        took.append(time.perf_counter() - begun)
    if rank == 0:
        Path(answer).write_text(str(statistics.median(took)))
    torch.distributed.destroy_process_group()


def exchange(size: int) -> float:
    """Seconds in which two processes of this machine add up `size` numbers."""
    import torch.multiprocessing

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    with tempfile.NamedTemporaryFile() as answer:
        torch.multiprocessing.spawn(_add_up, (port, size, answer.name), nprocs=2)
        return float(Path(answer.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--validate", action="store_true", help="against runs of 1 and 2 processes on this machine")
    parser.add_argument("--texts", type=int, default=1_024, help="texts of an update (default 1,024)")
    for field in fields(Assumptions):
        name = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(
                name, type=int if field.type == "int" else float, default=field.default, help="(default %(default)s)"
            )
    asked = vars(parser.parse_args())
    if asked.pop("validate"):
        validate()
        return
    texts = asked.pop("texts")
    tell(texts, replace(Assumptions(), **asked))


if __name__ == "__main__":
    main()
