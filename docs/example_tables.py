"""The numbers of two examples and of the demo in README and in their own pages, out of what they measured:

    make closed-loop                                 # a quarter of an hour; results in runs/closed_loop
    python docs/example_tables.py runs/closed_loop   # docs/closed_loop.json, what the pages need of them
    make real-model                                  # as long; runs/real_model
    python docs/example_tables.py runs/real_model    # docs/real_model.json
    make demo                                        # minutes; runs/demo
    python docs/example_tables.py runs/demo          # docs/demo.json and demo.png
    python docs/example_tables.py                    # the pages, of these files

A test compares the pages with the files. The pages are written by hand: what is put into them is tables, and in the
sentences below the numbers and what stands in quotes.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/closed_loop"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/real_model"))
import loop
import run

from rlhf_env import read_results
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.page.shown import without_markers
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.report.figures import demo_picture
from rlhf_env.lab.report.formats import markdown_tables
from rlhf_env.lab.report.sheets import sheets
from rlhf_env.lab.statistics import Estimate

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
README = ROOT / "README.md"
NAMES = ("closed_loop", "real_model", "demo")
PROMPTS = 6  # of the table of replies
TRAINED = ("ppo", "grpo", "dpo")  # by the demo
QUESTIONS = 11  # of the table of responses
QUOTED = ('What is the opposite of "light"?', "What is the capital of Syria?")  # in README
COUNTED = ("none", "one", "two", "three", "four", "five", "six")

_VARIABLE = re.compile(r'"[^"]*"|(?<!\w)-?\d+(?:\.\d+)?')


def file_of(name: str) -> Path:
    """Where the results of an example are."""
    return DOCS / f"{name}.json"


def known_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file_of(name).read_text(encoding="utf-8"))
    return found


# ---------------------------------------------------------------- what was measured


def read(folder: Path) -> dict[str, Any]:
    """What the file holds, from an example's folder. Raises SystemExit where a call of it was not the only one."""
    versions = {"platform": platform.platform(), "python": platform.python_version()}
    if (folder / "agents").is_dir():
        return {"name": "demo", "versions": versions, **_of_demo(folder)}
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if results["minutes"] is None:
        raise SystemExit(
            f"{folder}: made by several calls, of which nobody knows what they took: remove it, run it anew"
        )
    more = {"replies": _replies(folder, results["loops"])} if "loops" in results else {"responses": _responses(folder)}
    return {"name": "closed_loop" if "loops" in results else "real_model", "versions": versions, **results, **more}


def _of_demo(folder: Path) -> dict[str, Any]:
    """The table, the reward model as it was measured, and what the trained agents gained, by agent and seed."""
    found = read_results(folder / "agents")
    scores = {(cell.agent, cell.seed): cell.evaluation or {} for cell in found.cells}
    gained = {
        f"{agent}, seed {seed}": {
            "proxy": (it["proxy"] - before["proxy"]) / before["proxy_std"],
            "gold": it["gold"] - before["gold"],
        }
        for (agent, seed), it in scores.items()
        if agent in TRAINED
        for before in [scores["reference", seed]]
    }
    measured = json.loads((folder / "agents/reward_model.json").read_text(encoding="utf-8"))
    first, *_ = sheets(found, conclude(found))
    return {"measured": measured, "gained": gained, "printed": markdown_tables([first], tasks=False)}


def _replies(folder: Path, loops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the first seed: what was judged first, and what each trained model replied most often, and how often."""
    seed = loops[0]["seed"]
    tastes = [it["taste"] for it in loops if it["seed"] == seed]
    judged: dict[str, dict[str, dict[str, str]]] = {}  # replies, by taste, prompt and author
    for taste in tastes:
        with PreferenceStore(folder / f"{taste}-{seed}/blind.sqlite") as store:
            pairs = sorted((it for it in store.judgements() if isinstance(it, Comparison)), key=lambda it: it.created)
        judged[taste] = {
            _plain(it.prompt.text): {one.author.name: _plain(one.text) for one in (it.first, it.second)} for it in pairs
        }
    asked = judged[tastes[0]]
    in_all = [prompt for prompt in asked if all(prompt in of for of in judged.values())]
    first = [
        {"prompt": prompt, "shipped": asked[prompt]["reference"]}
        | {taste: of[prompt]["trained"] for taste, of in judged.items()}
        for prompt in in_all[:PROMPTS]
    ]
    most = {taste: Counter(it["trained"] for it in of.values()).most_common(1)[0] for taste, of in judged.items()}
    return {"first": first, "most": most}


def _responses(folder: Path) -> list[dict[str, str]]:
    """Of seed 0: the first questions, and those that README quotes, with the responses before and after."""
    found: dict[str, dict[str, str]] = {}
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("proof/results/*.json")]
    for when, agent in (("before", "reference"), ("after", "grpo")):
        (cell,) = [it for it in cells if (it["agent"], it["seed"]) == (agent, 0)]
        evaluation = json.loads((folder / f"proof/{cell['run']}/evaluation.json").read_text(encoding="utf-8"))
        for it in evaluation["samples"]:
            question = it["prompt"].rpartition("User: ")[2].removesuffix("Assistant:")  # the last turn
            found.setdefault(_plain(question), {})[when] = _plain(it["response"])
    wanted = [*list(found)[:QUESTIONS], *QUOTED]
    return [{"question": question, **both} for question, both in found.items() if question in wanted]


def _plain(text: str) -> str:
    """On one line, without the marks that are for the model: as who judged it read it."""
    return " ".join(without_markers(text).split())


# ---------------------------------------------------------------- what the pages say of it


@dataclass(frozen=True)
class Said:
    """What a page has to have of the results."""

    page: Path
    blocks: Mapping[str, str]
    """Tables and prints, by a pattern that finds the old one in the page."""
    sentences: Sequence[str]
    """Parts of sentences, whose numbers and quotes are put in place of those that stand there."""


def said(name: str, known: Mapping[str, Any]) -> Iterator[Said]:
    yield from {"closed_loop": _of_the_loop, "real_model": _of_the_model, "demo": _of_the_demo}[name](known)


def _of_the_loop(known: Mapping[str, Any]) -> Iterator[Said]:
    loops = [loop.Loop(**it) for it in known["loops"]]
    printed = {r"^Taste .*?(?=^```$)": f"{loop.table(loops, seconds=False)}\n"}
    held = sum(it.holds for it in loops)
    bar = f"All {COUNTED[held]} hold." if held == len(loops) else f"{COUNTED[held].capitalize()} of {len(loops)} hold."
    seconds = known["processor_minutes"] * 60 / len(loops)
    at_the_page = sum(it.at_the_page for it in loops) / len(loops)
    took = f"takes about {seconds:.0f} seconds of processor time, and some {at_the_page:.0f} in which the person reads"
    reply, _ = known["replies"]["most"]["cheerful"]
    yield Said(README, printed, [bar, took, f'what *cheerful* hears most is "{reply}"'])
    tastes = ("curious", "cheerful")
    heads = ("Prompt", "Shipped model", *(f"Trained by *{taste}*" for taste in tastes))
    rows = [[it[key] for key in ("prompt", "shipped", *tastes)] for it in known["replies"]["first"]]
    call = f"took {known['minutes']:.1f} minutes on two cores that other work kept busy: "
    call += f"{known['processor_minutes']:.1f} minutes of processor time"
    yield Said(
        ROOT / "examples/closed_loop/README.md",
        {**printed, r"^\| Prompt \|.*?\n(?!\|)": _markdown(heads, rows)},
        [bar, took, call],
    )


def _of_the_model(known: Mapping[str, Any]) -> Iterator[Said]:
    ways = known["ways"]
    mean = {way: {key: sum(it[key] for it in of) / len(of) for key in of[0]} for way, of in ways.items()}
    rose = {key: run.rise(ways["before"], ways["grpo"], key) for key in ("overlap", "exact")}
    before, after = mean["before"], mean["grpo"]
    minutes, gigabytes = known["processor_minutes"], known["gigabytes"]
    by_question = {it["question"]: it for it in known["responses"]}
    light, syria = (by_question[it] for it in QUOTED)

    def from_to(key: str) -> str:
        return f"from {before[key]:.2f} to {after[key]:.2f}"

    yield Said(
        README,
        {},
        [
            f"rose {from_to('overlap')} (by {_with_ends(rose['overlap'])} over three seeds)",
            f"which is not trained on, {from_to('exact')}, at a KL of {after['KL']:.1f} nats",
            f"{minutes:.0f} minutes of processor time with sft and dpo beside it, at most {gigabytes:.1f} GB a process",
            f'opposite of "light" it said "{light["before"]}", and says "{light["after"]}"',
            f'for the capital of Syria "{syria["before"]}", and "{syria["after"]}"',
        ],
    )
    rows = [[it["question"], it["before"], it["after"]] for it in known["responses"][:QUESTIONS]]
    by_seed = {
        (way, key): _listed([f"{it[key]:.2f}" for it in ways[way]]) for way in ("before", "grpo") for key in rose
    }
    yield Said(
        ROOT / "examples/real_model/README.md",
        {
            r"^ +overlap  exact .*?(?=^```$)": f"{run.table(ways)}\n\n{run.cost(known)}\n",
            r"^\| Question \|.*?\n(?!\|)": _markdown(("Question", "Before", "After GRPO"), rows),
        },
        [
            f"F1 rose from {by_seed['before', 'overlap']} to {by_seed['grpo', 'overlap']}",
            f"exact match from {by_seed['before', 'exact']} to {by_seed['grpo', 'exact']}",
            f"that of F1 begins at {rose['overlap'].low:.2f}, that of exact match, which was no bar, at "
            f"{rose['exact'].low:.2f}",
        ],
    )


def _of_the_demo(known: Mapping[str, Any]) -> Iterator[Said]:
    model, gained = known["measured"], known["gained"].values()
    proxy, gold = (
        f"{min(of):.1f} to {max(of):.1f}" for of in ([it[key] for it in gained] for key in ("proxy", "gold"))
    )
    agrees = f"{model['accuracy']:.2f} of pairs ({model['low']:.2f} to {model['high']:.2f})"
    yield Said(
        DOCS / "demo.md",
        {r"^\| Agent \|.*?(?=^!\[)": f"{known['printed']}\n"},
        [
            f"agrees with the annotator on {agrees}, calibration error {model['calibration_error']:.3f}",
            f"the annotator's own noise allows {model['ceiling']:.2f}",
            f"raised the proxy by {proxy} standard deviations of the reference's own scores",
            f"and gold rose with it by {gold}",
        ],
    )


def _with_ends(it: Estimate) -> str:
    return f"{it.value:.2f}, {it.low:.2f} to {it.high:.2f}"


def _listed(numbers: Sequence[str]) -> str:
    return f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    lines[1] = f"|{'---|' * len(heads)}"
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the pages


def up_to_date(text: str, it: Said) -> str:
    """A page with these tables and sentences in place of the old ones. Raises LookupError where there are none."""
    for pattern, block in it.blocks.items():
        at = _the_one(re.compile(pattern, re.MULTILINE | re.DOTALL), text, pattern)
        text = text[: at.start()] + block + text[at.end() :]
    for sentence in it.sentences:
        at = _the_one(like(sentence), text, sentence)
        text = text[: at.start()] + _filled(at[0], _VARIABLE.findall(sentence)) + text[at.end() :]
    return text


def like(sentence: str) -> re.Pattern[str]:
    """Finds a sentence whatever its numbers and quotes are, and wherever its lines end."""
    constant = [r"\s+".join(map(re.escape, part.split(" "))) for part in _VARIABLE.split(sentence)]
    return re.compile(f"(?:{_VARIABLE.pattern})".join(constant))


def _the_one(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    found = list(pattern.finditer(text))
    if len(found) != 1:
        raise LookupError(f"{len(found)} places of the page are like this one: write it by hand, as: {what}")
    return found[0]


def _filled(old: str, values: Sequence[str]) -> str:
    """The old words with other numbers and quotes; one that is the same keeps the ends of its lines."""
    now = iter(values)

    def filled(it: re.Match[str]) -> str:
        value = next(now)
        return it[0] if _plain(it[0]) == value else value

    return _VARIABLE.sub(filled, old)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        found = read(Path(sys.argv[1]))
        file_of(found["name"]).write_text(f"{json.dumps(found, indent=1)}\n", encoding="utf-8")
        sys.stdout.write(f"{file_of(found['name'])}\n")
        if found["name"] == "demo":
            demo_picture(read_results(Path(sys.argv[1]) / "agents"), DOCS / "demo.png")
    else:
        for name in NAMES:
            for it in said(name, known_of(name)):
                it.page.write_text(up_to_date(it.page.read_text(encoding="utf-8"), it), encoding="utf-8")
                sys.stdout.write(f"{it.page}\n")
