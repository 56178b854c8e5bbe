"""A made-up benchmark: its result files, and what is read of a report."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

# --- A benchmark folder with planted numbers, as the laboratory would leave it --------------------------------------

AGENTS = ("best_of_n", "dpo", "grpo", "ppo", "random", "reference")
GOLD = {"best_of_n": 0.62, "dpo": 0.66, "grpo": 0.71, "ppo": 0.69, "random": 0.11, "reference": 0.52}
PROXY = {"best_of_n": 0.9, "dpo": 1.2, "grpo": 1.62, "ppo": 1.45, "random": -2.0, "reference": 0.1}
PROMPTS = ("Hey, how are you?", "What do you like to do?", "I had a long day.", "Where are you from?")
STOCK = ("I am great, thank you! How about you?", "I love it! It sounds so nice.", "", "That is awesome! I like music.")


def cell(agent: str = "ppo", seed: int = 0, *, task: str = "chitchat", **changes: Any) -> dict[str, Any]:
    """One result. Seeds lie 0.01 apart, around the planted value for seed 1."""
    offset = 0.01 * (seed - 1)
    trains = agent in ("dpo", "grpo", "ppo")
    kl = {"reference": 0.0, "random": 60.0, "best_of_n": 2.08}.get(agent, 3.0 + seed)
    return {
        "format": 1,
        "benchmark": "demo",
        "task": task,
        "agent": agent,
        "seed": seed,
        "status": "finished",
        "reason": "budget",
        "error": None,
        "agent_settings": {"learning_rate": 1e-4, "epochs": 2},
        "config_hash": f"{len(agent):02d}{seed:02d}c0ffee",
        "run": f"cells/{task}/{agent}/seed-{seed}",
        "spending": {
            "updates": 60 if trains else 0,
            "generated_tokens": 100_000 + 2_000 * seed if trains else 0,
            "seconds": 61.4 if trains else 0.0,
        },
        "evaluation": {
            "gold": GOLD[agent] + offset,
            "proxy": PROXY[agent] + offset,
            "kl": kl,
            "kl_is_bound": agent == "best_of_n",
            "length": 9.5 + seed,
            "distinct_2": 0.4,
            "inference_tokens": 80.0 if agent == "best_of_n" else 10.0,
        },
        "curve": curve(agent, offset, 100_000 + 2_000 * seed) if trains else curve(agent, offset, 0)[-1:],
        "samples": [
            {
                "prompt": prompt,
                "response": STOCK[(i + len(agent)) % len(STOCK)],
                "gold": 0.5,
                "proxy": 1.25,
                "kl": 2.0,
                "finish_reason": "stop" if i else "length",
            }
            for i, prompt in enumerate(PROMPTS)
        ],
        **changes,
    }


def curve(agent: str, offset: float, tokens: int, points: int = 9) -> list[dict[str, Any]]:
    """From the reference's values to the agent's own."""
    shares = [1 - math.exp(-3.5 * i / (points - 1)) for i in range(points)]
    return [
        {
            "update": 60 * i // (points - 1),
            "generated_tokens": tokens * i // (points - 1),
            "gold": GOLD["reference"] + (GOLD[agent] + offset - GOLD["reference"]) * share / shares[-1],
            "proxy": PROXY["reference"] + (PROXY[agent] + offset - PROXY["reference"]) * share / shares[-1],
            "kl": 3.0 * share,
            "length": 9.5,
        }
        for i, share in enumerate(shares)
    ]


def metrics(agent: str, seed: int, updates: int = 60) -> list[dict[str, Any]]:
    wobble = len(agent) + seed
    return [
        {
            "update": update,
            "rollout/part/bradley_terry": 1.5 * update / updates + 0.1 * math.sin(wobble * update),
            "rollout/part/bradley_terry_std": 1.0,
            "rollout/part/kl": -3.0 * update / updates + 0.1 * math.cos(wobble * update),
            "rollout/part/diversity": 0.6 + 0.05 * math.sin(wobble + update),
            "spent/generated_tokens": 1700 * update,
        }
        for update in range(1, updates + 1)
    ]


def write(folder: Path, cells: Sequence[dict[str, Any]], **extra: dict[str, Any]) -> Path:
    """The folder with these results, a metrics file for those that train, and `extra` as JSON files beside them."""
    (folder / "results").mkdir(parents=True)
    for i, result in enumerate(cells):
        (folder / "results" / f"{i:03d}.json").write_text(json.dumps(result), encoding="utf-8")
        if result["agent"] in ("dpo", "grpo", "ppo") and result["run"].startswith("cells/chitchat"):
            run = folder / result["run"]
            run.mkdir(parents=True)
            (run / "experiment.toml").write_text("", encoding="utf-8")
            rows = metrics(result["agent"], result["seed"])
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, data in extra.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def grid(agents: Sequence[str] = AGENTS, seeds: int = 3) -> list[dict[str, Any]]:
    return [cell(agent, seed) for agent in agents for seed in range(seeds)]


def two_tasks(folder: Path) -> Path:
    """Six seeds of three agents on two tasks, one run failed: all that can be compared is. No curves, to be quick."""
    cells = [
        cell(a, s, task=task) for task in ("chitchat", "sums") for a in ("dpo", "ppo", "reference") for s in range(6)
    ]
    for each in cells:
        each.update(run="", curve=[], samples=[])
    cells[9].update(status="failed", error="loss is not finite")
    return write(folder, cells)


# --- Reading what was written ---------------------------------------------------------------------------------------

ABOUT = {
    "title": "Four agents learn small talk",
    "what_gold_is": "Upbeat, human-like conversation.",
    "command": "rlhf-env demo",
    "versions": {"rlhf-env": "0.1.0"},
}
REWARD_MODEL = {
    "accuracy": 0.713,
    "low": 0.69,
    "high": 0.735,
    "pairs": 3200,
    "held_out_pairs": 800,
    "ceiling": 0.86,
    "annotator": "simulated",
}


class Parsed(HTMLParser):
    """What a browser would make of a page: elements, attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(page: str) -> Parsed:
    return Parsed(page)


def texts_of(page: str) -> str:
    return " ".join(" ".join(parse(page).texts).split())


def printed(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
