"""What changed between two sets of texts, what a reward pays for, and a whole run against its reference."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError, MissingExtra
from rlhf_env.lab.evaluation.against_reference import evaluate_run, tone_of
from rlhf_env.lab.evaluation.behaviour import (
    MARKUP,
    clusters,
    format_changes,
    paid_phrases,
    phrase_changes,
    rate_change,
    times_said,
    tone_changes,
    without,
    words_of,
)
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.runs import load_run, run
from rlhf_env.lab.statistics import Estimate
from rlhf_env.learning.experiment import Experiment
from rlhf_env.text_measures import repetition, self_bleu
from rlhf_env.types import Float

WORDS = ["the", "a", "cat", "dog", "tree", "runs", "sees", "likes", "red", "old", "small", "under", "over", "house"]
WORDS += ["river", "we", "you", "they", "and", "or"]


def babble(stream: np.random.Generator, texts: int, words: int = 8) -> list[str]:
    """Texts in which every word is as likely as any other."""
    return [" ".join(stream.choice(WORDS, size=words)) for _ in range(texts)]


# ---------------------------------------------------------------- phrases gained and lost


def test_log_odds_by_hand() -> None:
    """3 of 10 texts say "yes" before and 8 of 10 after; a prior worth 10 texts with the common share 11/20."""
    before = ["yes", "yes it is", "Yes!", *["no"] * 7]
    after = [*["yes yes yes"] * 8, *["no"] * 2]
    change = {it.phrase: it for it in phrase_changes(before, after, longest=1)}["yes"]
    yes, no = (3 + 5.5, 8 + 5.5), (7 + 4.5, 2 + 4.5)
    delta = math.log(yes[1] / no[1]) - math.log(yes[0] / no[0])
    z = delta / math.sqrt(1 / yes[0] + 1 / no[0] + 1 / yes[1] + 1 / no[1])
    assert (change.before, change.after) == (0.3, 0.8)
    assert change.log_odds == pytest.approx(delta, abs=1e-12)
    assert change.z == pytest.approx(z, abs=1e-12)
    two_sided = math.erfc(abs(z) / math.sqrt(2))
    assert change.p == pytest.approx(2 * two_sided, abs=1e-12), "two words were tested: yes and no"


def test_what_was_gained_and_lost_is_found() -> None:
    stream = np.random.default_rng(0)
    before, after = babble(stream, 120), babble(stream, 120)
    after[:50] = [f"{text} thank you" for text in after[:50]]
    before[:50] = [f"well now {text}" for text in before[:50]]
    changes = phrase_changes(before, after)
    found = {it.phrase for it in changes if it.p < 0.05}
    assert {"thank", "thank you", "well", "well now"} <= found
    assert changes[0].phrase in ("thank", "thank you")
    assert changes[-1].phrase in ("well", "well now")


def test_a_word_repeated_in_one_text_is_one_observation() -> None:
    stream = np.random.default_rng(1)
    before, after = babble(stream, 60), babble(stream, 60)
    after[0] = "loop " * 500
    assert not [it for it in phrase_changes(before, after, least=1) if it.p < 0.05]


def test_equal_policies_differ_in_nothing() -> None:
    """Holm holds the chance of any false finding below 5 %: in 100 repeats, 12 are beyond 99.5 % of luck."""
    stream = np.random.default_rng(2)
    false = sum(
        any(it.p < 0.05 for it in phrase_changes(babble(stream, 60), babble(stream, 60), longest=2)) for _ in range(100)
    )
    assert false <= 11


def test_both_sets_need_texts() -> None:
    with pytest.raises(DataError, match="got 0 before and 1 after"):
        phrase_changes([], ["a"])


# ---------------------------------------------------------------- formats, clusters


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("I'm sorry, but I can't help with that.", {"refusal", "apology"}),
        ("As an AI language model, I have no taste", {"refusal"}),
        ("You can't see it; I can", set()),
        ("- one\n- two", {"list"}),
        ("1) first", {"list"}),
        ("well-known - really", set()),
        ("```py\nx\n```", {"code block"}),
        ("# Title", {"heading"}),
        ("#hashtag", set()),
        ("Why? See https://x.org!", {"question", "link", "exclamation"}),
        (" \n", {"empty"}),
    ],
)
def test_formats(text: str, has: set[str]) -> None:
    assert {name for name, pattern in MARKUP.items() if pattern.search(text)} == has


def test_rates_of_formats() -> None:
    before, after = ["Yes.", "No.", "Why?", "I cannot"], ["I cannot say", "I won't"]
    refusal = {it.name: it for it in format_changes(before, after)}["refusal"]
    assert (refusal.before, refusal.after, refusal.difference.value) == (0.25, 1.0, 0.75)


def test_the_interval_of_newcombe() -> None:
    """Newcombe 1998, table II, method 10, (a): 56/70 - 48/80."""
    before, after = np.arange(80) < 48, np.arange(70) < 56
    change = rate_change("x", before, after).difference
    assert (change.low, change.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_clusters_of_answers() -> None:
    before = ["the cat sat", "the cat sat down", "a dog ran", "a dog ran off"]
    after = ["thanks so much", "thanks so much indeed", "thanks so much", "the cat sat"]
    found = clusters(before, after, 3)
    assert (found[0].typical, found[0].before, found[0].after) == ("thanks so much", 0.0, 0.75)
    assert found[-1].typical.startswith("a dog ran")
    assert sum(it.before for it in found) == sum(it.after for it in found) == 1.0
    (one,) = clusters(["same"], ["same", "same"], 8)
    assert (one.before, one.after) == (1.0, 1.0)


# ---------------------------------------------------------------- what the reward pays for


@pytest.mark.parametrize(
    ("text", "phrase", "rest"),
    [
        ("Thanks, thanks! How are you?", "thanks", "How are you?"),
        ("Good, thanks!", "thanks", "Good,"),
        ("so good so good yes", "so good", "yes"),
        ("thanksgiving", "thanks", "thanksgiving"),
        ("a a a", "a a", "a"),
        ("It's fine", "it's", "fine"),
        ("no", "yes", "no"),
    ],
)
def test_taking_a_phrase_out(text: str, phrase: str, rest: str) -> None:
    assert without(text, phrase) == rest
    assert times_said(text, phrase) == (0 if rest == text else 2 if text.lower().count(phrase) == 2 else 1)


def scoring(after: Sequence[str], price: dict[str, float], per_word: float = 0.0) -> Any:
    def score(pairs: Sequence[tuple[int, str]]) -> Float:
        assert all(text == after[i] or len(text) < len(after[i]) for i, text in pairs)
        return np.array(
            [sum(price.get(w, per_word) for w in words_of(text)) + 0.01 * (i % 3) for i, text in pairs], dtype=float
        )

    return score


def hacked(stream: np.random.Generator, texts: int = 80) -> tuple[list[str], list[str]]:
    """Texts of a policy that has found out that "thanks" is paid for: half of them say it three times."""
    before, after = babble(stream, texts), babble(stream, texts)
    before[0] += " thanks"
    return before, [f"{text} thanks thanks thanks" if i % 2 else text for i, text in enumerate(after)]


def test_thanks_repeated_is_found_and_named() -> None:
    stream = np.random.default_rng(3)
    before, after = hacked(stream)
    score = scoring(after, {"thanks": 0.5, "river": 2.0, "tree": -1.0})
    found = paid_phrases(before, after, score, stream=stream)
    assert [it.phrase for it in found if it.exploited] == ["thanks"]
    thanks = found[0]
    assert (thanks.phrase, thanks.after, thanks.times) == ("thanks", 0.5, 3.0)
    assert thanks.pay.value == pytest.approx(1.5, abs=1e-12)
    assert thanks.brought_in == pytest.approx(1.5 * (0.5 - 1 / 80), abs=1e-12)
    river = next(it for it in found if it.phrase == "river")
    assert river.pay.value >= 2.0, "paid more a word, but used no more than before"


def test_a_policy_that_says_nothing_else_is_found_too() -> None:
    stream = np.random.default_rng(4)
    before, after = babble(stream, 60), ["Thanks! Thanks! Thanks!"] * 60
    found = paid_phrases(before, after, scoring(after, {"thanks": 0.5}), stream=stream)
    assert [(it.phrase, it.exploited) for it in found] == [("thanks", True)]


def test_a_reward_for_length_names_no_phrase() -> None:
    stream = np.random.default_rng(5)
    before, after = hacked(stream)
    found = paid_phrases(before, after, scoring(after, {}, per_word=0.2), stream=stream)
    assert found
    assert not [it.phrase for it in found if it.exploited]
    assert all(it.usual == pytest.approx(it.pay.value, abs=1e-9) for it in found if it.phrase == "thanks")


def test_a_phrase_gained_without_pay_is_not_exploited() -> None:
    stream = np.random.default_rng(6)
    before, after = hacked(stream)
    found = paid_phrases(before, after, scoring(after, {"river": 1.0}), stream=stream)
    assert not [it for it in found if it.exploited]


def test_a_price_within_the_noise_of_the_usual_one_is_not_named() -> None:
    stream = np.random.default_rng(8)
    before, after = hacked(stream)
    plain = scoring(after, {"thanks": 0.21}, per_word=0.2)

    def noisy(pairs: Sequence[tuple[int, str]]) -> Float:
        return np.array(plain(pairs) + [0.3 * np.random.default_rng([i, len(text)]).normal() for i, text in pairs])

    found = paid_phrases(before, after, noisy, stream=stream)
    thanks = next(it for it in found if it.phrase == "thanks")
    assert thanks.pay.value > thanks.usual
    assert not thanks.exploited


# ---------------------------------------------------------------- texts


def test_self_bleu() -> None:
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0, abs=1e-12)
    assert self_bleu(["a b c d", "e f g h"]) == 0.0
    assert self_bleu(["a"]) == self_bleu([]) == self_bleu(["a", " "]) == 0.0
    # "a b c" against "a b d e": 2 of 3 words, 1 of 2 pairs, shorter (e^(1 - 4/3)); the other way 2/4 and 1/3.
    shorter = math.sqrt(2 / 3 * 1 / 2) * math.exp(1 - 4 / 3)
    assert self_bleu(["a b c", "a b d e"], 2) == pytest.approx((shorter + math.sqrt(2 / 4 * 1 / 3)) / 2, abs=1e-12)
    # Counts are clipped at what one other text has: of "a a a" only the two of "a a b".
    assert self_bleu(["a a a", "a a b", "a x y"], 1) == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "n", "share"), [("a b a b a", 2, 0.5), ("a b c", 1, 0.0), ("a", 2, 0.0), ("", 1, 0.0)]
)
def test_repetition(text: str, n: int, share: float) -> None:
    assert repetition(text, n) == share


# ---------------------------------------------------------------- rlhf-env evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned to write longer answers."""
    experiment = Experiment.from_table(
        {
            "task": {"name": "echo", "length": 3},
            "policy": {"model": "tiny", "tokenizer": "alphabet:ab ="},
            "environment": {"num_envs": 16, "max_new_tokens": 8, "max_prompt_tokens": 5},
            "rewards": {"length": {"target": 8}, "kl": 0.01, "diversity": 0.1},
            "agent": {"name": "ppo", "lr": 1e-2},
            "budget": {"updates": 15},
            "evaluation": {"prompts": 24, "rewards": {"task": 1.0}},
            "checkpoint_every": 10,
        }
    )
    folder = tmp_path_factory.mktemp("runs") / "echo"
    final = run(experiment, folder).evaluation
    (folder / "final.json").write_text(json.dumps(dict(final.metrics)))
    return folder


def test_a_run_is_built_again_as_it_ended(trained: Path) -> None:
    again = load_run(trained)
    assert again.update == 15
    assert dict(Evaluator.of(again.workplace)().metrics) == json.loads((trained / "final.json").read_text())


def test_a_run_against_its_reference(trained: Path) -> None:
    found, final = evaluate_run(trained), json.loads((trained / "final.json").read_text())
    measures = {it.name: it for it in found.measures}
    assert (found.agent, found.update, found.prompts) == ("ppo", 15, 3)
    assert found.asked == "3 held-out prompts, 24 replies"
    for name in ("objective", "proxy", "gold", "length", "part/kl", "part/diversity"):
        assert measures[name].agent == pytest.approx(final[name], abs=1e-12), name
    assert found.kl["k1"].value == pytest.approx(final["kl"], abs=1e-12)
    assert found.kl["k3"].value > 0.0
    length = measures["length"].difference
    assert length is not None
    assert length.low is not None
    assert length.low < length.value, "three prompts, whatever was drawn of each"
    assert length.value > 0, "it was trained to write more"
    assert found.win_rate["proxy"].value > 0.8
    assert abs(measures["part/kl"].reference) < 1e-6
    rates = {it.name: it for it in found.rates}
    assert rates["cut at the limit"].after == final["cut_at_limit"]
    assert rates["without the form asked for"].after == final["format_failures"] > 0.0
    assert {"refusal", "positive in tone", "negative in tone"} <= rates.keys()
    assert measures["entropy, nats a token"].agent == pytest.approx(final["entropy"], abs=1e-12)
    assert measures["entropy, nats a token"].reference > final["entropy"], "it has settled on something"
    assert measures["sentiment"].difference is not None
    assert "exact" not in found.kl


def test_the_tone_of_two_policies() -> None:
    before = ["It is a table.", "I hate it, it is terrible.", "What an awful day!", "Yes."]
    after = ["I love it, it is great!", "Thank you, wonderful!", "What an awful day!", "Yes."]
    tones = [
        tone_of(cast(Any, SimpleNamespace(episodes=[SimpleNamespace(response=text) for text in texts])))
        for texts in (before, after)
    ]
    positive, negative = tone_changes(*tones)
    assert (positive.name, positive.before, positive.after) == ("positive in tone", 0.25, 0.75)  # "Yes." is, a little
    assert (negative.name, negative.before, negative.after) == ("negative in tone", 0.5, 0.25)
    lines = tone_changes(np.array([0.05, 0.049]), np.array([-0.05, -0.049]))
    assert [(it.before, it.after) for it in lines] == [(0.5, 0.0), (0.0, 0.5)]
    assert tone_changes(None, None) == []


def test_without_a_word_list_there_is_no_tone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        def load(self, _kind: str, _name: str) -> Any:
            raise MissingExtra("vaderSentiment", "demo")

    monkeypatch.setattr("rlhf_env.plugins.host", Host)
    assert tone_of(cast(Any, SimpleNamespace(episodes=[]))) is None


def test_where_responses_can_be_enumerated_the_kl_is_a_sum(tmp_path: Path) -> None:
    experiment = Experiment.from_table(
        {
            "task": {"name": "enumerable"},
            "policy": {"model": "table", "tokenizer": "alphabet:abcd", "dtype": "float64"},
            "environment": {"num_envs": 32, "max_new_tokens": 3, "max_prompt_tokens": 1},
            "rewards": {"task": 1.0, "kl": 0.1},
            "agent": {"name": "grpo", "lr": 0.1, "group_size": 4},
            "budget": {"updates": 4},
            "evaluation": {"prompts": 8},
        }
    )
    final = run(experiment, tmp_path / "run").evaluation
    found = evaluate_run(tmp_path / "run")
    assert found.kl["exact"] == Estimate(final.metrics["kl_exact"], None, None)
    assert found.kl["exact"].value > 0.01


def test_perplexity_under_the_reference_is_that_of_its_own_scores(trained: Path) -> None:
    workplace = load_run(trained).workplace
    rollout, _ = Evaluator.of(workplace).texts(workplace.agent)
    logprobs = np.concatenate(workplace.setup.reference.response_logprobs(rollout.episodes))
    found = {it.name: it for it in evaluate_run(trained).measures}["perplexity under the reference"]
    assert found.agent == pytest.approx(math.exp(-logprobs.mean()), rel=1e-6)


def test_an_untrained_agent_is_its_reference(tmp_path: Path, toy: dict[str, Any]) -> None:
    experiment = Experiment.from_table({**toy, "agent": {"name": "reference"}})
    run(experiment, tmp_path / "run")
    found = evaluate_run(tmp_path / "run")
    assert {rate.value for rate in found.win_rate.values()} == {0.5}
    assert all(abs(kl.value) < 1e-6 for kl in found.kl.values())
    assert all(it.agent == it.reference for it in found.measures)
    assert not found.phrases


def test_a_damaged_evaluation_is_one_line(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match=r"evaluation\.json is damaged .*: put it back, or remove it"):
        load_run(copy)


def test_an_earlier_checkpoint_stands_in_for_a_damaged_one(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / "checkpoints" / "step-00000015" / "state.json").write_text("{}")
    assert load_run(copy).update == 10
    (copy / "checkpoints" / "step-00000010" / "state.json").unlink()
    with pytest.raises(DataError, match=r"no valid checkpoint is left: .*; .*is missing; .*is damaged"):
        load_run(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(DataError, match="has no checkpoint yet"):
        load_run(copy)
    (copy / "experiment.toml").unlink()
    with pytest.raises(ConfigError, match="holds no run"):
        load_run(copy)


def test_a_changed_experiment_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    text = (copy / "experiment.toml").read_text()
    (copy / "experiment.toml").write_text(text.replace("max_new_tokens = 8", "max_new_tokens = 9"))
    with pytest.raises(DataError, match="it was changed"):
        load_run(copy)
    (copy / "experiment.toml").write_text("")  # cut off: no model can be built of it
    with pytest.raises(DataError, match="it was changed"):
        load_run(copy)


def test_the_command(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["rlhf-env", "evaluate", str(trained), "--prompts", "10"])
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "on 3 held-out prompts, 10 replies" in said
    assert "win rate, proxy" in said
    written = json.loads((trained / "against_reference.json").read_text())
    assert written["prompts"] == 3
    assert {"k1", "k3"} == written["kl"].keys()
