"""How time and memory grow with the batch, the length of responses, the vocabulary and the size of a group.

    make growth                                   # numbers, and docs/growth.png; a few minutes on a free machine
    python benchmarks/growth.py --small           # half the sizes, once: to see that it works

One of the four is varied, the others stand at their base. Measured are writing a rollout and one GRPO update on it, of
a random Llama of 4 layers: processor time (the least of some rounds, for what else the machine does only adds), and how
far resident memory rises above what is there after a small rollout and update. Every point has a process of its own,
forked from one that has imported everything.

A line is c * size^exponent, fitted in logarithms by least squares, with the 95 % interval of its slope (Student's t on
the residuals, so that a curve which is no power law has a wide one). Doubling the size then costs 2^exponent: 2 at
exponent 1. Points under 10 MB are left out: so little is a matter of whether freed memory could be used again. A random
model ends a text now and then by itself: of 256 tokens asked for, 241 are written on average. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side as bench
import torch
from rlhf_agents.grpo import GRPO
from update_memory import megabytes

from rlhf_env.envs.reward_functions import from_function
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning.collect import collect

BASE = {"batch": 32, "length": 32, "vocabulary": 2048, "group": 4}
SIZES = {
    "batch": (8, 16, 32, 64, 128),
    "length": (16, 32, 64, 128, 256),
    "vocabulary": (1024, 2048, 4096, 8192, 16_384),
    "group": (2, 4, 8, 16, 32),  # of each of 4 prompts
}
GROUPS = 4  # prompts, where the group is varied
NAMES = {
    "batch": "Responses in a batch",
    "length": "Tokens of a response",
    "vocabulary": "Words of the vocabulary",
    "group": f"Responses to a prompt, of {GROUPS} prompts",
}
COSTS = {
    "seconds": ("Processor time, seconds", ("writing_seconds", "update_seconds")),
    "megabytes": ("Memory on top, MB", ("writing_megabytes", "update_megabytes")),
}
LEAST_MEGABYTES = 10.0
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # Student's t, 97.5 %, by degrees of freedom

Point = dict[str, float]


@dataclass(frozen=True)
class PowerLaw:
    """cost = factor * size^exponent; `within`: half the width of the exponent's 95 % interval."""

    factor: float
    exponent: float
    within: float

    @classmethod
    def fit(cls, sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw | None:
        """By least squares in logarithms; None for fewer than three points."""
        if len(sizes) < 3:
            return None
        x, y = np.log(sizes), np.log(costs)
        spread = ((x - x.mean()) ** 2).sum()
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
        intercept = float(y.mean() - slope * x.mean())
        freedom = len(sizes) - 2
        variance = float(((y - intercept - slope * x) ** 2).sum()) / freedom
        return cls(math.exp(intercept), slope, T95[freedom] * math.sqrt(variance / spread))

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.within:.2f}"


def measure(axis: str, size: int, rounds: int) -> Point:
    """Seconds and megabytes of writing and of learning, with `axis` at `size`."""
    at = BASE | {axis: size}
    rows = GROUPS * at["group"] if axis == "group" else at["batch"]
    policy = bench.model("S", vocab_size=at["vocabulary"])
    prompts = [bench.Words(policy.vocab_size).decode(it.prompt_ids.tolist()) for it in bench.texts(1024, rows)]

    def made(rows: int) -> tuple[TextVectorEnv, GRPO]:
        rewards: dict[str, Any] = {"ids": from_function(_sum_of_ids)}
        setup = bench.setup(policy, policy, RewardMix(rewards), rows)
        setup = replace(setup, action_length=at["length"], max_new_tokens=at["length"])
        env = TextVectorEnv(
            rows,
            task=bench.Given(prompts),
            reward=rewards,
            tokenizer=setup.tokenizer,
            max_new_tokens=at["length"],
            max_prompt_tokens=bench.PROMPT,
            action_length=at["length"],
            autoreset_mode="Disabled",
        )
        return env, GRPO(setup, GRPO.Config(group_size=at["group"]))

    env, agent = made(at["group"])  # what is made once: buffers of the library, moments of the optimizer
    agent.update(collect(env, agent))
    env, agent = made(rows)
    found: dict[str, list[float]] = {}

    def cost(name: str, work: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, started = megabytes("VmRSS"), time.process_time()
        result = work()
        found.setdefault(f"{name}_seconds", []).append(time.process_time() - started)
        found.setdefault(f"{name}_megabytes", []).append(megabytes("VmHWM") - before)
        return result

    for _ in range(rounds):
        rollout = cost("writing", lambda: collect(env, agent))
        cost("update", lambda rollout=rollout: agent.update(rollout))
    # The first round takes memory from the system, later ones reuse what was freed.
    return {name: (max if name.endswith("megabytes") else min)(values) for name, values in found.items()}


def _sum_of_ids(completion_ids: Any, **_others: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(sum(map(int, ids)) % 11) for ids in completion_ids]


def apart(work: Callable[[], Point]) -> Point:
    """`work()` in a forked process: it finds no memory that another point has freed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        sys.exit("a point could not be measured (see above)")
    point: Point = json.loads(said)
    return point


def law(points: dict[int, Point], cost: str) -> PowerLaw | None:
    least = LEAST_MEGABYTES if cost.endswith("megabytes") else 0.0
    kept = {size: point[cost] for size, point in points.items() if point[cost] > least}
    return PowerLaw.fit(list(kept), list(kept.values()))


def draw(found: dict[str, dict[int, Point]], file: Path) -> None:
    """Time above, memory below, a column for each of what was varied; grey: what doubles with the size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from rlhf_env.lab.drawing import INK, LINE, MUTED, PALETTE, PAPER

    figure, panels = pyplot.subplots(2, 4, figsize=(13, 6.4), sharey="row", layout="constrained", facecolor=PAPER)
    for row, (title, costs) in enumerate(COSTS.values()):
        for column, (axis, points) in enumerate(found.items()):
            panel, sizes = panels[row][column], np.array(list(points), dtype=float)
            panel.set_facecolor(PAPER)
            for place, (cost, colour) in enumerate(zip(costs, PALETTE, strict=False)):
                values = np.array([point[cost] for point in points.values()])
                fit = law(points, cost)
                shown = values > (LEAST_MEGABYTES if cost.endswith("megabytes") else 0.0)
                panel.plot(sizes[shown], values[shown], "os"[place], color=colour, markersize=6)
                name = "writing" if cost.startswith("writing") else "GRPO update"
                if fit is not None:
                    panel.plot(sizes, fit.factor * sizes**fit.exponent, color=colour, linewidth=1.4)
                    name += f": {fit}"
                elif shown.sum() < len(sizes):
                    name += f": {'mostly ' if shown.any() else ''}under {LEAST_MEGABYTES:g} MB"
                panel.text(0.04, 0.95 - 0.1 * place, name, transform=panel.transAxes, color=colour, va="top")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(FixedLocator(list(sizes)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.0f}"))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.tick_params(colors=MUTED, labelsize=9)
            panel.grid(color=LINE, linewidth=0.6)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
            if row == 0:
                panel.set_title(NAMES[axis], fontsize=11, color=INK, loc="left")
            if column == 0:
                panel.set_ylabel(title, color=INK)
    for row in panels:  # room for what is written, and a guide: cost in proportion to the size
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, high * (high / low) ** 0.35)
        for panel, points in zip(row, found.values(), strict=True):
            sizes = np.array(list(points), dtype=float)
            panel.plot(sizes, 1.3 * low * sizes / sizes[0], color=MUTED, linewidth=1, linestyle=":", zorder=0)
    figure.suptitle(
        "Exponents: 1.00 doubles the cost when the size doubles (dotted), 0.00 changes nothing",
        fontsize=11, color=MUTED, x=0.01, ha="left",
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="four sizes of each instead of five, and one round")
    parser.add_argument("--rounds", type=int, default=3, help="times that each point is measured (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"), help="the picture (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {axis: some[:4] if given.small else some for axis, some in SIZES.items()}
    rounds = 1 if given.small else given.rounds
    found: dict[str, dict[int, Point]] = {}
    print(f"{'':12} {'size':>7} {'writing':>18} {'GRPO update':>18}", flush=True)
    for axis, some in sizes.items():
        found[axis] = {}
        for size in some:
            point = apart(lambda axis=axis, size=size: measure(axis, size, rounds))
            found[axis][size] = point
            texts = [
                f"{point[f'{it}_seconds']:7.2f} s {point[f'{it}_megabytes']:5.0f} MB" for it in ("writing", "update")
            ]
            print(f"{axis:12} {size:7,} {texts[0]:>18} {texts[1]:>18}", flush=True)
        for name, (_, costs) in COSTS.items():
            fits = [law(found[axis], cost) or "too small" for cost in costs]
            print(f"{'exponent of ' + name:20} {fits[0]!s:>18} {fits[1]!s:>18}", flush=True)
    draw(found, given.out)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
