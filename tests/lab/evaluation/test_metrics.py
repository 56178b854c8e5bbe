"""A metric is one entry of one table: whoever adds one finds it in the evaluation, in results and in the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError, PluginError
from rlhf_env.lab.benchmark.cells import run_cell
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.evaluation.against_reference import evaluate_run
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.metric import Measured, Metric
from rlhf_env.lab.evaluation.metrics import METRICS, meaning_of, with_plugins
from rlhf_env.lab.report.report import write_report
from rlhf_env.lab.statistics import Estimate
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.spending import Spending
from rlhf_env.learning.workplace import build


def share_of_a(replies: Measured) -> float:
    letters = "".join(replies.texts)
    return letters.count("a") / max(len(letters), 1)


A_SHARE = Metric(
    name="a_share",
    title="Share of a & co",
    heading="a_%",
    unit="share of letters",
    meaning="letters <a> in all replies",
    better="lower",
    measure=share_of_a,
    form="share",
    digits=3,
    curve="drift",
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[plugins.PluginHost]:
    """The plugins of this process, which are as before when the test ends."""
    host = plugins.host()
    monkeypatch.setattr(host, "_entries", dict(host._entries))
    return host


def test_a_metric_from_outside_is_in_the_evaluation_the_results_and_the_report(
    host: plugins.PluginHost, toy: dict[str, Any], tmp_path: Path
) -> None:
    plugins.register_metric("a_share", A_SHARE)
    experiment = {**toy, "budget": {"updates": 4}, "evaluation": {**toy["evaluation"], "every": 2}}
    experiment["evaluation"]["metrics"] = ["a_share"]
    grid = Grid(name="toy", seeds=1, agents={"ppo": {}, "reference": {}}, experiment=experiment)
    (tmp_path / "toy").mkdir()
    results = [run_cell(cell, tmp_path / "toy") for cell in grid.cells()]
    trained = next(result for result in results if result["agent"] == "ppo")
    letters = "".join(sample["response"] for sample in trained["samples"])
    value = trained["evaluation"]["a_share"]
    assert 0.0 < value == letters.count("a") / len(letters) < 1.0
    assert [round(point["update"]) for point in trained["curve"] if "a_share" in point] == [0, 2, 4]

    host._entries.pop(("metric", "a_share"))  # the report is made where nobody has heard of the metric
    page = write_report(tmp_path / "toy").read_text(encoding="utf-8")
    shown = f"{value:.3%}"
    assert '<th scope="col" title="letters &lt;a&gt; in all replies (share of letters)">a_%</th>' in page
    assert f"<td>{shown}</td>" in page
    assert "<dt>Share of a &amp; co (a_%)</dt>" in page
    assert "<dd>letters &lt;a&gt; in all replies; share of letters; low is good</dd>" in page
    markdown, latex = ((tmp_path / "toy" / f"table.{ending}").read_text(encoding="utf-8") for ending in ("md", "tex"))
    assert "| a_% |" in markdown and f"| {shown} |" in markdown
    assert r"a\_\%" in latex and shown.replace("%", r"\%") in latex
    (figure,) = (tmp_path / "toy" / "figures").glob("*--a_share-curve.svg")
    assert "Share of a &amp; co" in figure.read_text(encoding="utf-8")

    plugins.register_metric("a_share", A_SHARE)
    compared = {it.name: it for it in evaluate_run(tmp_path / "toy" / trained["run"], checkpoint="last").measures}[
        "a_share"
    ]
    assert compared.agent == value
    assert compared.reference == next(it for it in results if it["agent"] == "reference")["evaluation"]["a_share"]


def test_a_metric_that_nobody_asks_for_is_not_measured(host: plugins.PluginHost, toy: dict[str, Any]) -> None:
    plain = Evaluator.of(build(Experiment.from_table(toy)))()
    plugins.register_metric("a_share", A_SHARE)
    assert Evaluator.of(build(Experiment.from_table(toy)))() == plain


def test_what_a_metric_may_give() -> None:
    """A number, one for each reply, an interval, or nothing."""

    def numbers(value: Any) -> dict[str, float]:
        return Metric(name="x", title="X", measure=lambda _replies: value)(None)  # type: ignore[arg-type]

    assert numbers(2) == {"x": 2.0}
    assert numbers(np.array([1.0, 3.0])) == {"x": 2.0, "x_std": 1.0}
    assert numbers(Estimate(1.0, 0.5, 1.5)) == {"x": 1.0, "x_low": 0.5, "x_high": 1.5}
    assert numbers(Estimate(1.0, None, None)) == {"x": 1.0}
    assert numbers(None) == {}
    with pytest.raises(PluginError, match=r"the metric 'x' cannot be measured: ValueError: could not convert .*'much'"):
        numbers("much")


@pytest.mark.parametrize("name", ["", "Gold", "a b", "../a", "1st", "part/x", "kl_low", "gold_std"])
def test_names_that_files_and_figures_cannot_carry(name: str) -> None:
    with pytest.raises(PluginError, match="needs another name"):
        Metric(name=name, title="X")


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("other", A_SHARE, "calls itself 'a_share'"),
        ("kl", Metric(name="kl", title="KL", measure=share_of_a), "has the name of a metric that is there already"),
        ("x", Metric(name="x", title="X"), "has no `measure`"),
        ("x", share_of_a, "and not a Metric of rlhf_env.lab.evaluation.metric"),
    ],
)
def test_what_is_no_metric_is_refused(host: plugins.PluginHost, name: str, target: Any, says: str) -> None:
    plugins.register_metric(name, target)
    with pytest.raises(PluginError, match=says):
        with_plugins([name])


def test_an_unknown_metric_is_named_before_a_model_is_loaded(toy: dict[str, Any]) -> None:
    evaluation = {"prompts": 4, "metrics": ["a_shear"]}
    with pytest.raises(ConfigError, match="unknown metric 'a_shear'"):
        build(Experiment.from_table({**toy, "policy": {"model": "/nowhere"}, "evaluation": evaluation}))


def test_an_experiment_that_asks_for_none_is_written_as_before(toy: dict[str, Any]) -> None:
    """Runs of earlier versions go on: their experiment.toml has no such setting."""
    assert "metrics" not in Experiment.from_table(toy).to_toml()


# ---------------------------------------------------------------- the table


def test_the_table_says_what_each_number_is() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.title and metric.meaning, metric.name
        assert (metric.measure is None) is metric.spent is (metric.name in Spending().as_dict()), metric.name
        assert {metric.exact, metric.bound} - {""} <= set(names)


def test_everything_that_the_evaluator_logs_has_words(toy: dict[str, Any]) -> None:
    for agent in ("ppo", "best_of_n"):
        for key in Evaluator.of(build(Experiment.from_table({**toy, "agent": {"name": agent}})))().metrics:
            assert meaning_of(f"eval/{key}"), key
    assert (
        meaning_of("kl_low") == "lower end of: distance to the reference, estimated from the replies (nats per reply)"
    )
    assert meaning_of("rollout/whatever") == ""


# ---------------------------------------------------------------- results files


def result(**changes: Any) -> dict[str, Any]:
    plain = {"format": 1, "benchmark": "b", "task": "t", "agent": "ppo", "seed": 0, "status": "finished"}
    return {**plain, "evaluation": {"gold": 0.5, "a_share": 0.25}, **changes}


def test_the_words_about_a_metric_are_checked_where_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "one.json"

    def read(words: Any) -> Any:
        file.write_text(json.dumps(result(metrics=words)), encoding="utf-8")
        return read_results(tmp_path)

    metric = read({"a_share": A_SHARE.words}).metric("a_share")
    assert metric.words == A_SHARE.words and metric.measure is None
    assert read({}).metrics == METRICS
    for words, says in (
        ({"a_share": {**A_SHARE.words, "digits": 99}}, "digits must be in 0..9"),
        ({"a_share": {**A_SHARE.words, "form": "<b>"}}, "metrics.a_share.form is no word about a metric: '<b>'"),
        ({"a_share": {**A_SHARE.words, "measure": "os:remove"}}, "metrics.a_share.measure is no word about a metric"),
        ({"../a": {"name": "../a", "title": "A"}}, "needs another name"),
        ({"a_share": {"name": "gold", "title": "A"}}, "metrics.a_share must have a title, and 'a_share' as its name"),
        ({"a_share": 3}, "metrics.a_share must be an object"),
    ):
        with pytest.raises(DataError, match=f"one.json: .*{says}"):
            read(words)


def test_a_bound_may_be_true_or_one(tmp_path: Path) -> None:
    """Results of all versions: the flag was written as a number, and as true by hand."""
    (tmp_path / "results").mkdir()
    for flag in (True, 1.0):
        evaluation = {"gold": 0.5, "kl": 2.0, "kl_is_bound": flag}
        (tmp_path / "results" / "one.json").write_text(json.dumps(result(evaluation=evaluation)), encoding="utf-8")
        (cell,) = read_results(tmp_path).cells
        assert cell.evaluation["kl_is_bound"] == 1.0
