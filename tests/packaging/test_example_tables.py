"""README's numbers of the closed loop and of the real model, and those of the examples' own pages, are the results'."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "example_tables.py").exists(), reason="docs/ is not here")

RESPONSES = [{"question": f"What is {i} + 1?", "before": "I | add", "after": str(i + 1)} for i in range(11)]
QUOTED = [
    {"question": 'What is the opposite of "light"?', "before": "a lamp", "after": "dark"},
    {"question": "What is the capital of Syria?", "before": "Paris", "after": "Aleppo"},
]
MADE_UP: dict[str, dict[str, Any]] = {
    "closed_loop": {
        "minutes": 61.04,
        "processor_minutes": 12.5,  # of six loops: 125 seconds each
        "loops": [
            {
                "taste": taste,
                "seed": seed,
                "votes": 201,
                "ties": 7,
                "accuracy": 0.515,
                "pairs": 99,
                "kl": 1.234,
                "win_rate": [0.77, 0.66, 0.88],
                "seconds": 5.0,
                "at_the_page": 160 + seed,
            }
            for taste in ("curious", "cheerful")
            for seed in range(3)
        ],
        "replies": {
            "first": [{"prompt": "Hi", "shipped": "Ho", "curious": "You?", "cheerful": "Nice!"}],
            "most": {"curious": ["You?", 60], "cheerful": ["So nice!", 70]},
        },
    },
    "real_model": {
        "minutes": 31.0,
        "processor_minutes": 21.4,
        "gigabytes": 2.71,
        "ways": {
            "before": [{"overlap": 0.11, "exact": 0.05, "KL": -0.001, "tokens": 7.0}] * 3,
            "grpo": [
                {"overlap": overlap, "exact": exact, "KL": 2.16, "tokens": 3.0}
                for overlap, exact in ((0.61, 0.05), (0.71, 0.45), (0.81, 0.95))
            ],
            "sft, seed 0": [{"overlap": 0.6, "exact": 0.6, "KL": 3.0, "tokens": 2.5}],
            "dpo, seed 0": [{"overlap": 0.2, "exact": 0.1, "KL": 0.4, "tokens": 8.0}],
        },
        "responses": RESPONSES + QUOTED,
    },
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "example_tables.py"))


@pytest.mark.parametrize("name", [*MADE_UP, "demo"])
def test_the_pages_say_what_was_measured(name: str, script: dict[str, Any]) -> None:
    for it in script["said"](name, script["known_of"](name)):
        page = it.page.read_text(encoding="utf-8")
        assert script["up_to_date"](page, it) == page, f"{it.page}: python docs/example_tables.py"


@pytest.mark.parametrize(
    ("name", "told", "in_example"),
    [
        (
            "closed_loop",
            ["All six hold.", "about 125 seconds", "some 161 in which", 'hears most is "So nice!"', "0.77 (0.66 to"],
            ["All six hold.", "took 61.0 minutes", "12.5 minutes of", "| Hi | Ho | You? | Nice! |"],
        ),
        (
            "real_model",
            [
                "from 0.11 to 0.71 (by 0.60, 0.35 to 0.85 over",
                "from 0.05 to 0.48, at a KL of 2.2",
                "21 minutes of processor",
                'said "a lamp", and says "dark"',
                'Syria "Paris", and "Aleppo"',
                "at most 2.7 GB",
            ],
            [
                "31.0 minutes, 21.4 of processor time; the largest process held 2.7 GB",
                "| What is 10 + 1? | I \\| add | 11 |",
            ],
        ),
    ],
)
def test_other_results_make_other_pages(
    name: str, told: list[str], in_example: list[str], script: dict[str, Any]
) -> None:
    for it, wanted in zip(script["said"](name, MADE_UP[name]), (told, in_example), strict=True):
        old = it.page.read_text(encoding="utf-8")
        new = script["up_to_date"](old, it)
        words = " ".join(new.split())
        assert [part for part in wanted if part not in words] == []
        assert script["up_to_date"](new, it) == new != old
        assert new.count("\n| ") == old.count("\n| ") - (5 if "| Hi |" in new else 0), "the old table is gone"


def test_another_demo_makes_another_page(script: dict[str, Any]) -> None:
    known = {
        "measured": {"accuracy": 0.612, "low": 0.5, "high": 0.7, "calibration_error": 0.1, "ceiling": 0.9},
        "gained": {"ppo, seed 0": {"proxy": 2.0, "gold": -0.31}, "dpo, seed 1": {"proxy": 0.5, "gold": 0.4}},
        "printed": "| Agent | Gold |\n| --- | ---: |\n| ppo | 9.99 |\n\nOne seed.\n",
    }
    (it,) = script["said"]("demo", known)
    old = it.page.read_text(encoding="utf-8")
    new = script["up_to_date"](old, it)
    assert script["up_to_date"](new, it) == new != old
    words = " ".join(new.split())
    for told in (
        "on 0.61 of pairs (0.50 to 0.70), calibration error 0.100; the annotator's own noise allows 0.90.",
        "raised the proxy by 0.5 to 2.0 standard deviations",
        "and gold rose with it by -0.3 to 0.4.",
        "| ppo | 9.99 | One seed. ![Gold",
    ):
        assert told in words
    assert new.count("\n| ") == 3, "the old table is gone"


@pytest.mark.parametrize(
    ("name", "heading"), [("closed_loop", "## Your taste, closed by hand"), ("real_model", "## A real model")]
)
def test_every_number_of_the_section_is_compared_or_is_a_setting(
    name: str, heading: str, script: dict[str, Any]
) -> None:
    loop, sizes = script["loop"], script["loop"].Sizes()
    train = tomllib.loads((ROOT / "examples/real_model/train.toml").read_text(encoding="utf-8"))
    settings = {
        "closed_loop": {
            *map(str, (sizes.prompts, sizes.votes, sizes.blind, sizes.pairs)),
            *(f"{it:.2f}" for it in (loop.WIN_RATE, loop.LOWER_END)),
            *("0.7", "1.0", "1.3"),  # temperatures, in the command
        },
        "real_model": {"135", str(train["policy"]["lora"]["rank"])},  # million weights
    }
    it = next(iter(script["said"](name, MADE_UP[name])))
    _, _, section = it.page.read_text(encoding="utf-8").partition(f"{heading}\n")
    section = section.partition("\n## ")[0]
    for pattern in it.blocks:
        section = re.sub(pattern, "", section, flags=re.MULTILINE | re.DOTALL)
    for sentence in it.sentences:
        section = script["like"](sentence).sub("", section)
    assert set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", section)) <= settings[name]


def test_where_not_all_hold_the_page_has_to_be_written_by_hand(script: dict[str, Any]) -> None:
    known = json.loads(json.dumps(MADE_UP["closed_loop"]))
    known["loops"][4]["win_rate"] = [0.59, 0.51, 0.7]
    it = next(iter(script["said"]("closed_loop", known)))
    with pytest.raises(LookupError, match=r"write it by hand, as: Five of 6 hold\."):
        script["up_to_date"](it.page.read_text(encoding="utf-8"), it)


def test_a_sentence_is_found_whatever_its_numbers_are_and_keeps_its_lines(script: dict[str, Any]) -> None:
    it = script["Said"](ROOT / "README.md", {}, ['from 0.50 to -1 it says "now so"'])
    page = 'It rose from 12\nto 3.5 it\nsays "so",\nand so on.\n'
    assert script["up_to_date"](page, it) == 'It rose from 0.50\nto -1 it\nsays "now so",\nand so on.\n'
    for wrong in ("It fell from 12 to 3.5.", page * 2):
        with pytest.raises(LookupError, match=r"^[02] places of the page are like this one"):
            script["up_to_date"](wrong, it)


def test_the_file_holds_the_responses_before_and_after(script: dict[str, Any], tmp_path: Path) -> None:
    def written(file: str, holds: Any) -> None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(holds), encoding="utf-8")

    asked = [it["question"] for it in [*RESPONSES, {"question": "What is left out?"}, *QUOTED]]
    for agent, response in (("reference", "before\n it"), ("grpo", "after")):
        for seed in (0, 1):
            written(
                f"proof/results/{agent}-{seed}.json", {"agent": agent, "seed": seed, "run": f"cells/{agent}-{seed}"}
            )
            turns = "System: Say it.\nUser: 1 + 1?\nAssistant: 2\nUser: {}\nAssistant:"
            samples = [{"prompt": turns.format(it), "response": f"{response} {seed}"} for it in asked]
            written(f"proof/cells/{agent}-{seed}/evaluation.json", {"samples": samples})
    written("results.json", {**MADE_UP["real_model"], "responses": None})
    found = script["read"](tmp_path)
    assert found["name"] == "real_model" and found["ways"] == MADE_UP["real_model"]["ways"]
    assert [it["question"] for it in found["responses"]] == [it for it in asked if it != "What is left out?"]
    assert {(it["before"], it["after"]) for it in found["responses"]} == {("before it 0", "after 0")}
    written("results.json", {**MADE_UP["real_model"], "minutes": None})
    with pytest.raises(SystemExit, match="made by several calls"):
        script["read"](tmp_path)
