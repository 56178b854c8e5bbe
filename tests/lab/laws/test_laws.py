"""The laws that come with the library: each is declared, measures what it says, and its result can be had again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rlhf_env.lab.laws
from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.reward_models.ensemble import combined
from rlhf_env.lab.laws import clipping, entropic, records
from rlhf_env.lab.laws.form import judge
from rlhf_env.lab.laws.page import laws_page
from rlhf_env.lab.laws.power import seeds_needed
from rlhf_env.lab.laws.records import MODULES, compared_with_shipped, load_law, shipped
from rlhf_env.lab.laws.running import law_table
from rlhf_env.lab.studies.exact import estimators

HOUSE = {"__init__", "climbs", "clipping", "form", "page", "power", "records", "running", "tilting", "worlds"}
QUICK = ("kl-placement", "entropic", "sum-collapse", "std-of-groups", "best-of-n-bound", "length-bias", "displacement")
SHIPPED = shipped()


def verdict(name: str, seeds: int = 10) -> str:
    law = load_law(name)
    return judge(law, [law.measure(seed, law.at) for seed in range(seeds)])[1]


class TestDeclared:
    def test_each_module_is_a_law_with_a_name(self) -> None:
        folder = Path(rlhf_env.lab.laws.__file__).parent
        assert {file.stem for file in folder.glob("*.py")} - HOUSE == set(MODULES.values())
        assert len(MODULES) >= 15

    @pytest.mark.parametrize("name", MODULES)
    def test_it_says_what_it_is(self, name: str) -> None:
        law = load_law(name)
        assert law.name == name
        assert all(text.endswith(".") for text in (law.claim, law.prediction))
        assert "redicted" in law.prediction
        assert any(char.isdigit() for char in law.source)
        assert law.smallest > 0.0
        assert bool(law.axis) == bool(law.places)
        assert not set(law.pilot) & set(range(law.most)), "the pilot is on seeds of its own"
        assert len((Path(rlhf_env.lab.laws.__file__).parent / f"{MODULES[name]}.py").read_text().splitlines()) < 100

    def test_an_unknown_name_is_told_its_neighbour(self) -> None:
        with pytest.raises(ConfigError, match="'clip-hihg', did you mean 'clip-high'"):
            load_law("clip-hihg")


class TestABugTurnsTheVerdict:
    """The library's own code is what a law measures: a bug there is seen."""

    def test_in_the_penalty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert verdict("kl-placement", 16) == "confirmed"
        right = estimators.kl_estimate

        def turned(logprobs: torch.Tensor, other: torch.Tensor, kind: Any) -> torch.Tensor:
            return right(logprobs, other, kind) * (-1.0 if kind == "k1" else 1.0)

        monkeypatch.setattr(estimators, "kl_estimate", turned)
        assert verdict("kl-placement", 16) == "refuted", "k1 in the reward is more biased than the others now"

    def test_in_the_entropic_ensemble(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert verdict("entropic") == "confirmed"
        monkeypatch.setattr(
            entropic, "combined", lambda scores, how, penalty: combined(scores, "uncertainty", penalty=penalty)
        )
        assert verdict("entropic") == "refuted"

    def test_in_the_clip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clipping on the wrong side raises entropy where it should lower it."""
        assert verdict("clip-high", 12) == "confirmed"
        right = clipping.train_on_coins

        def turned(*given: Any, low: float = np.inf, high: float = np.inf) -> Any:
            return right(*given, low=high, high=low)

        monkeypatch.setattr("rlhf_env.lab.laws.clip_high.train_on_coins", turned)
        assert verdict("clip-high", 12) == "refuted"


class TestShipped:
    @pytest.mark.parametrize("record", [one for one in SHIPPED if "analysis" in one], ids=lambda one: str(one["name"]))
    def test_its_verdict_follows_from_its_numbers(self, record: Any) -> None:
        law, analysis = load_law(record["name"]), record["analysis"]
        assert {name: record[name] for name in ("claim", "source", "prediction", "smallest", "at", "axis")} == {
            name: getattr(law, name) for name in ("claim", "source", "prediction", "smallest", "at", "axis")
        }
        assert analysis["needed"] == seeds_needed(analysis["effect"], float(np.std(analysis["pilot_effects"], ddof=1)))
        if "effects" in record:
            effect, found = judge(law, record["effects"])
            assert (found, effect.value) == (record["verdict"], pytest.approx(record["effect"]["value"]))
            assert [place["at"] for place in record["places"]] == sorted(law.places)
        else:
            assert record["verdict"] == "not run yet"

    @pytest.mark.parametrize("name", QUICK)
    def test_the_same_seed_gives_the_same_effect(self, name: str) -> None:
        (record,) = (one for one in SHIPPED if one["name"] == name)
        law = load_law(name)
        np.testing.assert_allclose(
            [law.measure(seed, law.at) for seed in (0, 1)], record["effects"][:2], rtol=1e-6, atol=1e-9
        )

    def test_eleven_are_decided(self) -> None:
        assert sum(one["verdict"] in ("confirmed", "refuted") for one in SHIPPED) >= 11

    def test_the_page_is_made_of_them(self) -> None:
        page = Path(__file__).parents[3] / "docs" / "laws.md"
        if not page.exists():
            pytest.skip("installed without its docs")
        assert laws_page(SHIPPED) == page.read_text(encoding="utf-8"), "rlhf-env lab laws --markdown makes it"

    def test_compared_with_a_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (record,) = (one for one in SHIPPED if one["name"] == "entropic")
        assert compared_with_shipped(record).startswith("as shipped: the same")
        other = {**record, "effects": [-1.0] * 5, "verdict": "refuted"}
        assert "shipped: confirmed" in compared_with_shipped(other)
        monkeypatch.setattr(records, "SHIPPED", tmp_path)
        assert "no result" in compared_with_shipped(record)
        (tmp_path / "entropic.json").write_text("{")
        with pytest.raises(DataError, match="is not JSON"):
            shipped(["entropic"])


def test_the_readme_counts_the_verdicts_as_they_are() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert f"{law_table(shipped()).title}." in readme


def test_the_readme_has_the_numbers_of_the_shipped_model_s_laws() -> None:
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").split())
    found = {one["name"]: one for one in SHIPPED if one["name"].startswith("study-")}
    needed = [one["analysis"]["needed"] for one in found.values()]
    (pilot,) = {len(one["analysis"]["pilot"]) for one in found.values()}
    assert f"{min(needed)} to {max(needed)} seeds, by a pilot of {'four' if pilot == 4 else pilot})" in readme
    waiting = []
    for one in found.values():
        if one["verdict"] == "not run yet":
            waiting.append(one["analysis"]["seeds"])
            continue
        numbers = "{value:.2f}, {low:.2f} to {high:.2f}".format(**one["effect"])
        after = f"; about {one['would_decide']} seeds" if one["would_decide"] else f", {len(one['effects'])} seeds)"
        assert f"({numbers}{after}" in readme, one["name"]
    assert not waiting or f"**not run yet**: {' and '.join(map(str, waiting))} seeds" in readme
    assert waiting or "not run yet" not in readme


def test_the_readme_has_the_verdicts_of_the_exact_worlds() -> None:
    """Which of the five effects were seen there, and where the law of entropy holds."""
    found = {one["name"]: one for one in SHIPPED}
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").split())
    assert "**In exact worlds**, more labels, a larger proxy and fewer wrong labels do move the peak outwards" in readme
    assert {found[name]["verdict"] for name in ("more-labels", "larger-proxy", "label-noise")} == {"confirmed"}
    assert "both kinds of ensemble stay inconclusive" in readme
    assert {found[name]["verdict"] for name in ("worst-case", "uncertainty")} == {"inconclusive"}
    assert "with an R² of 0.95 where one answer in ten is right (it does where three in ten are)" in readme
    entropy = found["entropy-reward"]
    assert (entropy["at"], entropy["verdict"]) == (0.1, "refuted") and "less 0.95" in entropy["prediction"]
    assert {it["at"]: it["verdict"] for it in entropy["places"]}[0.3] == "confirmed"


class TestCommand:
    @pytest.fixture
    def call(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.chdir(tmp_path)
        return lambda *words: CliRunner().invoke(app, ["lab", "laws", *words], catch_exceptions=False)

    def test_the_list_is_of_what_is_shipped(self, call: Callable[..., Any]) -> None:
        assert json.loads(call("--list", "--json").stdout) == SHIPPED
        assert call("--list", "--markdown").stdout == laws_page(SHIPPED)
        assert call("--list").stdout.startswith(f"{len(MODULES)} laws: ")

    def test_one_is_decided_and_compared(self, call: Callable[..., Any], tmp_path: Path) -> None:
        found = call("std-of-groups")
        assert found.exit_code == 0
        before, after = found.stdout.index("Before the run:"), found.stdout.index("confirmed:")
        assert before < after
        assert "as shipped: the same" in found.stdout
        assert json.loads((tmp_path / "runs/laws/std-of-groups.json").read_text())["verdict"] == "confirmed"
        assert call("std-of-groups", "--plan").stdout.rstrip().endswith("(power 0.90)")
        kept, plan = (json.loads((tmp_path / f"runs/laws/std-of-groups{it}.json").read_text()) for it in ("", ".plan"))
        assert (kept["verdict"], plan["verdict"]) == ("confirmed", "not run yet"), "a plan costs no result"
        (as_json,) = json.loads(call("std-of-groups", "--json", "--seeds", "4").stdout)
        assert len(as_json["effects"]) == 4
