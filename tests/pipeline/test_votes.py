"""A reward model from a person's own votes: one call, one command, one folder, and nothing else."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf_env import RewardModelSettings, fit_to_votes, load_scorer, plugins
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.judgements import Author, Judgement, Preference, Response
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, Ranking, Rating
from rlhf_env.feedback.reward_models import fitting
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.pipeline import votes as votes_module
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

QUICK = RewardModelConfig(epochs=1, batch_size=8)
NOBODY = Author("dataset", "file")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-layer GPT-2 that reads 64 bytes."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    tiny_language_model("gpt2", init_std=0.2, context=64).save_pretrained(folder)
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<end>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    return str(folder)


def response(text: str) -> Response:
    return Response(text, NOBODY)


def compared(i: int, who: str = "me", *, verdict: str = "first", **more: Any) -> Comparison:
    """The first answer has more of the letter a."""
    rng = np.random.default_rng(i)
    one, other = ("".join(rng.permutation(list("a" * n + "b" * (9 - n)))) for n in (7, 2))
    said = verdict if verdict in ("first", "tie", "cannot say") else "second"
    return Comparison(Prompt(f"p{i}", f"ask {i}"), response(one), response(other), said, who, **more)  # type: ignore[arg-type]


def stored(folder: Path, judgements: list[Judgement], name: str = "prefs.sqlite") -> Path:
    with PreferenceStore(folder / name) as store:
        store.add(judgements)
    return folder / name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(here: Path) -> Path:
    return stored(here, [compared(i) for i in range(60)])


def settings(base: str, **more: Any) -> RewardModelSettings:
    return RewardModelSettings(base=base, **{"reward_model": QUICK, **more})


def said_by(source: Path, out: Path, wanted: RewardModelSettings, **more: Any) -> str:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    fit_to_votes(source, out, wanted, console=console, **more)
    return console.export_text()


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the fit was given, instead of a fit."""
    given: list[Any] = []
    whole = fitting.fit_reward_model

    def spy(judgements: Any, trunk: Any, config: Any, **more: Any) -> Any:
        given.append((list(judgements), config, more))
        return whole(judgements, trunk, replace(config, epochs=1), **more)

    monkeypatch.setattr(votes_module, "fit_reward_model", spy)
    yield given


def test_the_folder_has_a_reward_model_that_rewards_use_and_how_it_was_made(store: Path, base: str) -> None:
    wanted = settings(base, reward_model=RewardModelConfig(epochs=8, batch_size=8, learning_rate=3e-3, patience=8))
    fitted = fit_to_votes(store, "runs/taste", wanted)
    assert fitted.scorecard is not None
    assert fitted.scorecard.accuracy.low > 0.5
    assert {"reward_model.json", "scorecard.json", "scorecard.html", "settings.toml", "record.json"} <= {
        file.name for file in Path("runs/taste").iterdir()
    }
    table = tomllib.loads(fitted.rewards_table)["rewards"]["bradley_terry"]
    assert table == {"weight": 1.0, "model": "runs/taste"}
    reward = plugins.build_plugin("reward", "bradley_terry", {"model": table["model"]})
    assert reward is not None
    sides = [(Prompt("p", "ask 7"), response(text)) for text in ("aaaaaaabb", "aabbbbbbb")]
    scores = load_scorer("runs/taste").score_responses(sides)
    assert scores[0] > scores[1]
    assert scores.tolist() == fitted.scorer.score_responses(sides).tolist()
    record = json.loads(Path("runs/taste/record.json").read_text())
    assert record["judgements"] == 60 and "torch" in record["versions"]
    assert record["prompts"] + record["held_out_prompts"] == 60


def test_its_own_settings_file_makes_the_same_model_again(store: Path, base: str) -> None:
    from rlhf_env.pipeline.reward_settings import GivenSettings

    fit_to_votes(store, "one", settings(base, seed=3))
    made = GivenSettings(Path("one/settings.toml"), {"store": "prefs.sqlite", "out": "two"}, {}).made()
    assert made.reward_model == QUICK and made.seed == 3
    assert made.store is not None
    fit_to_votes(made.store, "two", made)
    for name in ("model.safetensors", "reward_head.safetensors"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_what_is_held_out_is_what_the_scorecard_command_holds_out(store: Path, base: str) -> None:
    from rlhf_env.feedback.reward_models.scorecard import scorecard_of

    fitted = fit_to_votes(store, "rm", settings(base))
    assert fitted.scorecard is not None
    again = scorecard_of("rm", store, held_out=1 / 6)
    assert (again.pairs, again.accuracy) == (fitted.scorecard.pairs, fitted.scorecard.accuracy)


def test_what_is_printed(here: Path, base: str) -> None:
    votes = [
        compared(i, who, verdict="second" if who == "ned" else "first")
        for i in range(40)
        for who in ("ann", "bo", "cy", "ned")
    ]
    said = said_by(stored(here, [*votes, compared(3, verdict="tie")]), here / "rm", settings(base))
    assert re.search(
        r"Accuracy on held-out prompts: 0\.\d{3} \(95 % interval 0\.\d{3} to 0\.\d{3}; \d+ votes on \d+ pro", said
    )
    assert "The annotators' own ceiling, one vote against the majority of the others: 0.750" in said
    assert re.search(r"on what the votes say together \(majority\): \d\.\d{3} \(.*; \d+ pairs\)", said)
    assert "Calibration error: " in said
    assert "left out: nothing preferred: tie: 1" in said
    assert re.search(r"ned: 0\.00 \[0\.00, 0\.\d\d\] of \d\d", said)
    assert "Against the rest: ned: their votes mean the opposite" in said
    assert said.rstrip().endswith('[rewards.bradley_terry]\nweight = 1.0\nmodel = "rm"')


def test_a_ceiling_that_nobody_can_know_is_called_so(store: Path, base: str) -> None:
    assert "unknown, since no held-out pair was judged by two people" in said_by(store, Path("rm"), settings(base))
    said = said_by(store, Path("all"), settings(base, held_out=0.0))
    assert "Accuracy: unknown: nothing was held out." in said
    assert not Path("all/scorecard.json").exists()


# ---------------------------------------------------------------- losses


def ranking(i: int, ranks: tuple[int, ...] = (1, 2, 3), who: str = "me") -> Ranking:
    return Ranking(Prompt(f"r{i}", f"rank {i}"), tuple(response(t) for t in ("aaa", "aab", "abb")), ranks, who)


def rated(i: int, score: int, text: str = "aaa", who: str = "me") -> Rating:
    return Rating(Prompt(f"q{i}", f"rate {i}"), response(text), score, who)


MIXED: list[Judgement] = [
    *(compared(i, margin=2.0) for i in range(12)),
    *(ranking(i, (1, 1, 2) if i == 0 else (1, 2, 3)) for i in range(6)),
    *(rated(i, score, text) for i in range(6) for score, text in ((5, "aaa"), (2, "abb"))),
]


@pytest.mark.parametrize(
    ("loss", "comparisons", "rankings", "ratings", "margin"),
    [
        ("by kind", 12, 6, 12, None),
        ("bradley-terry", 12 + 2 + 5 * 3 + 6, 0, 0, None),
        ("margins", 12 + 2 + 5 * 3 + 6, 0, 0, 1.0),
        ("ranking-pairs", 12, 6, 0, None),
        ("plackett-luce", 12 + 2, 5, 0, None),
        ("likert", 0, 0, 12, None),
    ],
)
def test_what_each_loss_learns_from(
    loss: Any, comparisons: int, rankings: int, ratings: int, margin: float | None, here: Path, base: str, lessons: Any
) -> None:
    wanted = settings(base, loss=loss, held_out=0.0, margin_scale=0.5, votes="each")
    fit_to_votes(stored(here, MIXED), "rm", wanted)
    ((given, config, _),) = lessons
    counts = [sum(isinstance(one, kind) for one in given) for kind in (Preference, Ranking, Rating)]
    assert counts == [comparisons, rankings, ratings]
    assert config.ranking_loss == {"plackett-luce": "plackett-luce", "ranking-pairs": "pairs"}.get(loss, "auto")
    assert {one.margin for one in given if isinstance(one, Preference) and one.prompt.id == "p0"} <= {margin}


@pytest.mark.parametrize(
    ("loss", "judgements", "why"),
    [
        ("likert", [compared(0)], "likert fits none of the judgements (1 comparisons)"),
        ("margins", [compared(0)], "no judgement states a margin"),
        ("plackett-luce", [compared(0)], "plackett-luce fits none"),
        ("ranking-pairs", [rated(0, 3)], "ranking-pairs fits none of the judgements (1 ratings)"),
        ("bradley-terry", [rated(0, 3)], "bradley-terry fits none of the judgements (1 ratings)"),
        ("by kind", [compared(0, verdict="tie")], "nothing to learn from: 1 comparisons, and none of them prefers"),
        ("by kind", [ranking(0, (1, 1, 1))], "rankings in which all are equal (1)"),
    ],
)
def test_a_loss_that_fits_nothing_is_refused(
    loss: Any, judgements: list[Judgement], why: str, here: Path, base: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        fit_to_votes(stored(here, judgements), "rm", settings(base, loss=loss))
    assert sorted(file.name for file in here.iterdir()) == ["prefs.sqlite"]


# ---------------------------------------------------------------- which judgements


def test_one_criterion_and_some_annotators(here: Path, base: str, lessons: Any) -> None:
    judgements: list[Judgement] = [
        *(compared(i, who, criterion=name) for i in range(4) for who in ("ann", "bo") for name in ("kind", "true")),
        CriteriaRating(Prompt("c", "criteria"), response("aaa"), {"kind": 4, "long": 1}, "cy"),
    ]
    source = stored(here, judgements)
    with pytest.raises(
        ConfigError, match=r"judged by several, none of them overall: kind \(9\), true \(8\), long \(1\)"
    ):
        fit_to_votes(source, "rm", settings(base))
    with pytest.raises(ConfigError, match=r"'knd': did you mean 'kind'\?.*; without: nobody called 'any' judged"):
        fit_to_votes(source, "rm", settings(base, criterion="knd", without=("any",)))
    said = said_by(source, Path("rm"), settings(base, criterion="kind", without=("bo",), held_out=0.0))
    ((given, *_),) = lessons
    assert [(type(one), one.annotator, one.criterion) for one in given] == [
        *[(Preference, "ann", "kind")] * 4,
        (Rating, "cy", "kind"),
    ]
    assert "left out: judgements of bo: 8" in said
    assert "left out: judgements by another criterion (true): 4" in said


def test_diverse_data_lie_far_apart(here: Path, base: str, lessons: Any) -> None:
    alike = [replace(compared(0), prompt=Prompt(f"n{i}", "the same words")) for i in range(10)]
    other = [replace(compared(i + 1), prompt=Prompt(f"o{i}", f"{'xyz'[i]} {'uvw'[i]} {'rst'[i]}")) for i in range(3)]
    fit_to_votes(stored(here, [*alike, *other]), "rm", settings(base, diverse=4, held_out=0.0, votes="each"))
    ((given, *_),) = lessons
    assert [one.prompt.id[0] for one in given] == ["n", "o", "o", "o"]


def test_a_file_is_read_as_preferences_import_reads_it(here: Path, base: str) -> None:
    rows = [f"ask {i},aaaaa,bbbbb,{who}" for i in range(20) for who in ("ann", "bo", "cy")]
    Path("votes.csv").write_text("\n".join(["prompt,chosen,rejected,annotator", *rows]) + "\n")
    fitted = fit_to_votes("votes.csv", "rm", settings(base))
    assert fitted.record["judged_by_several"] == fitted.record["prompts"]
    assert [one["annotator"] for one in fitted.record["annotators"]] == ["ann", "bo", "cy"]


def test_texts_beyond_the_context_are_named_by_line_or_left_out(here: Path, base: str, lessons: Any) -> None:
    lines = [
        json.dumps({"prompt": f"ask {i}", "chosen": "a" * (80 if i == 1 else 4), "rejected": "b"}) for i in range(20)
    ]
    Path("pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"pairs\.jsonl:2: prompt and response have \d+ tokens together, .* reads 64"):
        fit_to_votes("pairs.jsonl", "rm", settings(base))
    said = said_by(Path("pairs.jsonl"), Path("rm"), settings(base, over_long="leave out", held_out=0.0))
    assert len(lessons[0][0]) == 19
    assert "left out: judgements to fit to of texts longer than the model's context of 64: 1" in said
    fit_to_votes("pairs.jsonl", "cut", settings(base, over_long="cut left", held_out=0.0))
    assert max(len(one.chosen.text) for one in lessons[1][0]) < 64 and len(lessons[1][0]) == 20


def test_a_share_that_holds_nothing_out_is_refused_with_one_that_does(here: Path, base: str) -> None:
    source = stored(here, [compared(i) for i in range(5)])
    with pytest.raises(
        ConfigError, match=r"of 5 prompts none is held out at a share of 0\.001: say --held-out"
    ) as caught:
        fit_to_votes(source, "rm", settings(base, held_out=0.001))
    found = re.search(r"--held-out (0\.\d+)", str(caught.value))
    assert found is not None
    assert fit_to_votes(source, "rm", settings(base, held_out=float(found[1]))).record["held_out_prompts"] == 1
    with pytest.raises(ConfigError, match="everything was judged on one prompt, so no prompt can be held out"):
        fit_to_votes(stored(here, [compared(0)], "one.sqlite"), "other", settings(base))


# ---------------------------------------------------------------- ensembles, fairness, importance


def test_members_and_models_are_ensembles(store: Path, base: str) -> None:
    one = fit_to_votes(store, "members", settings(base, reward_model=replace(QUICK, members=3), dtype="float64"))
    assert isinstance(one.scorer, RewardModel) and one.scorer.members == 3
    assert one.scorer.heads.dtype == torch.float64
    other = fit_to_votes(store, "models", settings(base, models=2))
    assert isinstance(other.scorer, RewardEnsemble) and other.scorer.members == 2
    sides = [(Prompt("p", "ask 7"), response("aaaaaaabb"))]
    assert load_scorer("models").score_responses(sides).tolist() == other.scorer.score_responses(sides).tolist()
    plugins.build_plugin("reward", "ensemble", {"model": "models"})


def test_fairness_acts_on_a_list_of_words_from_a_file(here: Path, base: str, lessons: Any) -> None:
    judgements = [replace(compared(i), prompt=Prompt(f"p{i}", f"he said {i}")) for i in range(30)]
    Path("words.csv").write_text("men,women\nhe,she\nhis,her\n")
    wanted = settings(base, reward_model=replace(QUICK, fairness=2.0), groups="words.csv")
    said = said_by(stored(here, judgements), Path("rm"), wanted)
    (_, config, more), *_ = lessons
    assert config.fairness == 2.0
    assert {one[0].text.split()[0] for pair in more["counterfactuals"] for one in pair} == {"he", "she"}
    assert re.search(r"Fairness, men and women: scores differ by \d\.\d{3} log-odds", said)
    Path("words.csv").write_text("men,women\nhe,\n")
    with pytest.raises(ConfigError, match=r"words\.csv:2: a word is missing: one for each of men, women"):
        fit_to_votes("prefs.sqlite", "other", wanted)


def test_importance_weights_need_token_ids_and_change_the_weights(here: Path, base: str, lessons: Any) -> None:
    def written(text: str) -> Response:
        ids = tuple(text.encode())
        return Response(text, Author("policy", "x", 1.0), ids, tuple(b"ask"), "length")

    with pytest.raises(ConfigError, match="60 responses have no token ids, so no policy wrote them"):
        fit_to_votes(
            stored(here, [compared(i) for i in range(30)]), "rm", settings(base, wanted=base, drawn=base, held_out=0.0)
        )
    judgements: list[Judgement] = [
        Comparison(Prompt(f"p{i}", "ask"), written("ab" * (i % 5 + 1)), written("b" * (i % 7 + 1)), "first", "me")
        for i in range(12)
    ]
    source = stored(here, judgements, "ids.sqlite")
    plain = settings(base, wanted=base, drawn=base, held_out=0.0, votes="each")
    fit_to_votes(source, "same", plain)
    said = said_by(source, Path("other"), replace(plain, wanted_temperature=0.5))
    same, other = (given for given, *_ in lessons)
    assert [one.weight for one in same] == pytest.approx([1.0] * len(same))
    assert len({round(one.weight, 6) for one in other}) > 1
    assert re.search(r"importance weights: effective sample size \d+\.\d of 12 pairs", said)


# ---------------------------------------------------------------- refused, interrupted, in the way


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(here: Path, base: str) -> None:
    Path("rm").write_text("a file")
    wanted = settings("no-such-model", reward_model=replace(QUICK, fairness=1.0), groups="no.csv")
    with pytest.raises(ConfigError) as caught:
        fit_to_votes("no.sqlite", "rm", wanted)
    said = caught.value.problems
    assert [
        any(word in problem for problem in said)
        for word in ("rm is a file", "no-such-model", "no.csv", "no.sqlite: there is no such file")
    ] == [True] * 4
    assert [file.name for file in here.iterdir()] == ["rm"]


def test_what_stands_in_the_way_is_kept(store: Path, base: str) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="mine holds something else than a reward model"):
        fit_to_votes(store, "mine", settings(base), overwrite=True)
    fit_to_votes(store, "rm", settings(base))
    with pytest.raises(ConfigError, match="rm holds a reward model already: name another folder, or --overwrite"):
        fit_to_votes(store, "rm", settings(base, seed=1))
    before = Path("rm/settings.toml").read_text()
    fit_to_votes(store, "rm", settings(base, seed=1), overwrite=True)
    assert Path("rm/settings.toml").read_text() == before.replace("seed = 0", "seed = 1")


def test_an_interrupt_leaves_nothing_or_the_older_model(
    store: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_to_votes(store, "rm", settings(base))
    older = {file.name: file.read_bytes() for file in Path("rm").iterdir()}

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(votes_module, "_write_scorecard", interrupted)  # the last thing that is written
    for out in ("rm", "other"):
        with pytest.raises(KeyboardInterrupt):
            fit_to_votes(store, out, settings(base, seed=1), overwrite=True)
    assert {file.name: file.read_bytes() for file in Path("rm").iterdir()} == older
    assert sorted(file.name for file in Path().iterdir()) == ["prefs.sqlite", "rm"]


def test_accuracy_on_what_the_votes_say_together_knows_who_says_the_opposite(here: Path, base: str) -> None:
    """Two of five people say the opposite of what the letters say: each vote is a coin, together they are right."""
    rng = np.random.default_rng(0)
    votes: list[Judgement] = []
    for i in range(80):
        for who in ("ann", "ben", "cleo", "dan", "eve"):
            right = rng.random() < (0.05 if who in ("dan", "eve") else 0.95)
            votes.append(compared(i, who, verdict="first" if right else "second"))
    config = RewardModelConfig(epochs=4, batch_size=8, learning_rate=3e-3, patience=4)
    fitted = fit_to_votes(stored(here, votes), "rm", settings(base, reward_model=config, votes="dawid-skene"))
    assert fitted.scorecard is not None
    assert fitted.scorecard.accuracy.value < 0.7
    weighed = fitted.record["accuracy_on_weighed_votes"]
    assert weighed["value"] > 0.9
    assert weighed["pairs"] == fitted.record["held_out_prompts"]


# ---------------------------------------------------------------- three of forty


def test_a_model_of_forty_peoples_votes_is_as_good_as_one_without_the_three_who_say_the_opposite(
    here: Path, base: str
) -> None:
    """The accuracy is that on the truth, on prompts that nobody voted on."""
    rng = np.random.default_rng(0)
    against = ("w0", "w1", "w2")
    votes: list[Judgement] = []
    for i in range(100):
        for who in rng.choice(40, 5, replace=False):
            right = rng.random() < (0.1 if who < 3 else 0.75)
            votes.append(compared(i, f"w{who}", verdict="first" if right else "second"))
    source = stored(here, votes)
    config = RewardModelConfig(epochs=5, batch_size=8, learning_rate=2e-3, validation=0.0)
    truth = [compared(i).preference for i in range(1000, 1200)]
    accuracy = {}
    for name, without in (("all", ()), ("without", against)):
        wanted = settings(base, reward_model=config, votes="dawid-skene", without=without, held_out=0.0)
        fitted = fit_to_votes(source, name, wanted)
        assert isinstance(fitted.scorer, RewardModel)
        chosen, rejected = fitted.scorer.score_pairs([pair for pair in truth if pair is not None])
        accuracy[name] = float(np.mean(chosen > rejected))
    assert accuracy["all"] >= accuracy["without"] > 0.7


# ---------------------------------------------------------------- the command


def command(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    import shlex
    import sys
    from unittest import mock

    from rlhf_env.cli.main import main

    with mock.patch.object(sys, "argv", ["rlhf-env", *shlex.split(words)]), pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command_and_a_file_that_says_the_same(
    store: Path, base: str, capsys: pytest.CaptureFixture[str], lessons: Any
) -> None:
    status, out, err = command(
        f"reward-model prefs.sqlite --base {base} --out one --epochs 1 --members 2 --seed 5", capsys
    )
    assert (status, err) == (0, "")
    assert 'model = "one"' in out
    Path("fit.toml").write_text(
        f'store = "prefs.sqlite"\nbase = "{base}"\nout = "two"\nmembers = 3\nseed = 5\n[reward_model]\nepochs = 1\n'
    )
    status, out, err = command("reward-model --config fit.toml --members 2", capsys)
    assert (status, err) == (0, "")
    assert "--members 2 replaces members = 3 of fit.toml" in out
    (one, config_one, _), (two, config_two, _) = lessons
    assert (one, config_one) == (two, config_two)
    assert Path("one/reward_head.safetensors").read_bytes() == Path("two/reward_head.safetensors").read_bytes()


def test_every_fault_has_its_place_in_the_file_or_on_the_command_line(
    store: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fit.toml").write_text('votes = "some"\nmebmers = 2\n\n[reward_model]\ndropout = 1.5\n')
    status, _, err = command(f"reward-model prefs.sqlite --base {base} --out rm --config fit.toml --seed -1", capsys)
    assert status == 2
    assert sorted(line[:60] for line in err.splitlines()) == [
        "rlhf-env: --seed -1: seed must be from 0 to 1,099,511,627,77",
        "rlhf-env: fit.toml, line 1: votes must be one of 'each', 'ma",
        "rlhf-env: fit.toml, line 2: no setting 'mebmers': did you me",
        "rlhf-env: fit.toml, line 5: dropout must be in [0, 1), got 1",
    ]
    assert not Path("rm").exists()


def test_every_option_of_the_command_is_a_setting() -> None:
    import dataclasses

    from rlhf_env.cli.reward_models import SETTINGS
    from rlhf_env.pipeline.reward_settings import RewardModelFile

    known = {field.name for cls in (RewardModelFile, RewardModelConfig) for field in dataclasses.fields(cls)}
    assert set(SETTINGS) <= known
