"""README's table of speed out of the prints of `make bench-speed`, with a column for each processor.

    python benchmarks/readme_table.py                  all of benchmarks/results/, as README has it

A print is measured by nobody else on the machine: `make bench-speed | tee benchmarks/results/PROCESSOR.txt`. What was
measured more than once counts as it was measured last; what is not in a print is "-" in its column.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
LINE = re.compile(r"^(?P<name>\S.*?) +(?P<median>\d+\.\d+) +\d+\.\d+ +\d+\.\d+(?P<rest>( +\d+\.\d+)*)$")
MARK_ENDS = 10  # of what follows the greatest number: the mark, then the distance to the roofline
BEFORE = "ours at `1d702d9`, float32"
# Beside whom, what work, and how the lines begin that have it.
ROWS: tuple[tuple[str, str, Sequence[str]], ...] = (
    (
        "transformers `generate`",
        "writing 32 texts of 64 tokens, S / M / L (L: 8 texts)",
        ("generate S: 32 prompts", "generate M: 32 prompts", "generate L: 8 prompts"),
    ),
    (
        "`generate` in waves of 32",
        "writing 96 texts of uneven length, S / M / L",
        ("generate S: 96", "generate M: 96", "generate L: 96"),
    ),
    (
        "transformers' continuous batching",
        "the same, S / M / L",
        ("continuous S: 96", "continuous M: 96", "continuous L: 96"),
    ),
    (
        "llama.cpp's server, Q8_0",
        "writing 32 texts of 32 + 128 tokens in 8 bits, SmolLM2-135M",
        ("llama.cpp, server, Q8_0: SmolLM2-135M, 32 x (32 + 128)",),
    ),
    (
        "TRL 1.16 GRPO",
        "rollout and update of 8 prompts x 4 x 64 tokens, S / M",
        ("TRL GRPO, S, 8 x 4 x 64, rollout and update", "TRL GRPO, M, 8 x 4 x 64, rollout and update"),
    ),
    (
        "TRL 1.16 GRPO",
        "the same of 4 x 4 x 64, L",
        ("TRL GRPO, L, 4 x 4 x 64, rollout and update",),
    ),
    (
        "TRL 1.16 + peft GRPO",
        "the same with LoRA 16, L, written in float32 / in 8 bits",
        (
            "TRL + peft GRPO, L, 4 x 4 x 64, rollout and update",
            "TRL + peft GRPO, L, 4 x 4 x 64, in 8 bits, rollout and update",
        ),
    ),
    (
        "TRL 1.16 RLOO with reference KL",
        "rollout and update of 8 x 4 x 64, S",
        ("TRL RLOO, S, 8 x 4 x 64, rollout and update",),
    ),
    (
        "TRL 1.16 DPO",
        "8 pairs, S, live / cached reference",
        ("TRL DPO, S, 8 pairs of 32 + 64, live", "TRL DPO, S, 8 pairs of 32 + 64, cached"),
    ),
    ("TRL 1.16 RewardTrainer", "16 pairs of 96 tokens, S", ("TRL RewardTrainer, S, 16 pairs of 96",)),
    (
        "TRL 1.12 PPO",
        "32 x 64, S, separate / shared value model",
        ("TRL 1.12 PPO, S, 32 x 64, separate", "TRL 1.12 PPO, S, 32 x 64, shared"),
    ),
    ("Stable-Baselines3 PPO on the token view", "32 x 64 tokens, S", ("Stable-Baselines3 PPO, S, 32 x 64",)),
    (
        BEFORE,
        "writing 32 x (32 + 128), L: float32 / bfloat16 / 8 bits",
        (
            "writing L: 32 x (32 + 128), float32, now",
            "writing L: 32 x (32 + 128), a copy in bfloat16",
            "writing L: 32 x (32 + 128), a copy in 8 bits",
        ),
    ),
    (
        BEFORE,
        "long answers, 16 x (64 + 1,024), M: float32 / 8 bits",
        (
            "long answers M: 16 x (64 + 1024), float32, now",
            "long answers M: 16 x (64 + 1024), a copy in 8 bits",
        ),
    ),
    (
        BEFORE,
        "16 answers to one prompt of 512, L: float32 / 8 bits",
        (
            "one prompt L: 1 x (512 + 16 x 64), float32, now",
            "one prompt L: 1 x (512 + 16 x 64), a copy in 8 bits",
        ),
    ),
    (
        BEFORE,
        "memory of writing 64 x (64 + 1,024), M: float32 / bfloat16",
        (
            "writing M: 64 x (64 + 1024), float32, now",
            "writing M: 64 x (64 + 1024), a copy in bfloat16",
        ),
    ),
    (
        "ours at `1d702d9`",
        "the 512 cells of `rlhf-env bench examples/benchmark.toml`, by a sample of them",
        ("all cells",),
    ),
    (
        "ours without oneDNN",
        "writing 32 x (32 + 128), L, float32: what oneDNN alone gains",
        ("writing L: 32 x (32 + 128), what oneDNN alone gains",),
    ),
    (
        "one thread",
        "rollout and update of 4 x 4 x 64, L, two threads, wall time",
        ("GRPO, L, 4 x 4 x 64, rollout and update, wall",),
    ),
)


@dataclass(frozen=True)
class Found:
    """What a line of a print says."""

    median: str
    mark: str
    distance: str


def read(text: str) -> dict[str, Found]:
    """The lines of a print by their names."""
    found = {}
    for line in text.splitlines():
        if parts := LINE.match(line.rstrip()):
            mark, distance = parts["rest"][:MARK_ENDS].strip(), parts["rest"][MARK_ENDS:].strip()
            found[parts["name"]] = Found(parts["median"], mark, distance)
    return found


def last(prints: dict[str, Found], begins: str) -> Found | None:
    """The line of that name; else, of the lines that begin so, the last one whose name goes on with other than a letter
    or a digit."""
    if begins in prints:
        return prints[begins]
    names = [name for name in prints if name.startswith(begins) and not name[len(begins) : len(begins) + 1].isalnum()]
    return prints[names[-1]] if names else None


def table(prints: dict[str, dict[str, Found]]) -> str:
    """`prints`: by processor. One without a distance to the roofline has no column for it."""
    counted = {it: any(found.distance for found in of.values()) for it, of in prints.items()}
    heads = "".join(f" {it} |{' roofline |' if counted[it] else ''}" for it in prints)
    lines = [f"| beside | work | mark |{heads}", f"|---|---|---:|{'---:|' * (len(prints) + sum(counted.values()))}"]
    for beside, work, names in ROWS:
        found = {it: [last(of, name) for name in names] for it, of in prints.items()}
        # Marks have changed over the rounds: the last column's are in force.
        newest = [next((it[at] for it in reversed(list(found.values())) if it[at]), None) for at in range(len(names))]
        cells = [joined([f"{float(it.mark):g}" if it and it.mark else "" for it in newest])]
        for name, of in found.items():
            cells.append(joined([it.median if it else "" for it in of]))
            cells += [joined([it.distance if it else "" for it in of])] if counted[name] else []
        lines.append(f"| {beside} | {work} | {' | '.join(cells)} |")
    return "\n".join(lines)


def joined(parts: Sequence[str]) -> str:
    return " / ".join(part or "-" for part in parts) if any(parts) else "-"


def processor(file: Path) -> str:
    """`amd-epyc-zen4-2-cores.txt` as people write it."""
    words = re.sub(r"-\d+-cores$", "", file.stem).split("-")
    return " ".join(
        it.upper() if it in ("amd", "epyc") else re.sub(r"(?<=[a-z])(\d)", r" \1", it.title()) for it in words
    )


def of_results() -> str:
    files = sorted(RESULTS.glob("*.txt"), reverse=True)
    return table({processor(file): read(file.read_text(encoding="utf-8")) for file in files})


if __name__ == "__main__":
    print(__doc__ if len(sys.argv) > 1 else of_results())
