"""`rlhf-env preferences ...`, from files to votes to agreement to files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_env.cli import main as cli
from rlhf_env.feedback.asking.collecting import judge_items
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison, Ranking
from rlhf_env.feedback.store.items import Criterion, Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Episode, Prompt

Run = Callable[..., tuple[int, str, str]]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("show", "store.sqlite")` in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "preferences", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_import_show_export(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    assert run("import", "s.sqlite", "pairs.jsonl", "--annotator", "zoe@example.org")[:2] == (
        0,
        "1 new of 1 judgements are in s.sqlite\n",
    )
    status, said, _ = run("show", "s.sqlite")
    assert status == 0
    assert "comparisons         1" in said
    told = json.loads(run("show", "s.sqlite", "--json")[1])
    assert (told["judgements"]["comparisons"], told["pairs"], told["progress"]["votes"]) == (1, 1, 0)
    told = json.loads(run("agreement", "s.sqlite", "--json")[1])["agreements"][0]
    assert (told["units"], told["judgements"], told["alpha"]["value"]) == (0, 1, None), "NaN is no JSON"
    assert run("export", "s.sqlite", "out.csv", "--format", "csv")[0] == 0
    assert "zoe@example.org" not in (tmp_path / "out.csv").read_text()
    assert "person 1" in (tmp_path / "out.csv").read_text()
    assert run("export", "s.sqlite", "all.jsonl", "--emails")[0] == 0
    assert "zoe@example.org" in (tmp_path / "all.jsonl").read_text()
    status, said, _ = run("import", "s.sqlite", "all.jsonl")
    assert said == "0 new of 1 judgements are in s.sqlite\n"


def test_what_others_wrote_does_not_reach_the_terminal_as_it_is(run: Run, tmp_path: Path) -> None:
    """S9: criteria, guidelines, authors, and a file's name in what is said about it."""
    clear = "\x1b[2J\x1b]0;title\x07\u202e"
    texts = [Response(side, Author("policy", f"{side}{clear}")) for side in "ab"]
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        store.set_criterion(Criterion(f"kind{clear}", clear))
        store.add([Comparison(Prompt("p", "q"), texts[0], texts[1], "first", "z", f"kind{clear}")])
    (tmp_path / f"x{clear}.json").write_text("")
    for words in (["show"], ["agreement"], ["tournament", "--criterion", f"kind{clear}"], ["import", f"x{clear}.json"]):
        _, said, errors = run(words[0], "s.sqlite", *words[1:])
        assert "\x1b" not in said + errors and "\u202e" not in said + errors
        assert "kind" in said or "policy a" in said or "x.json" in errors


def test_one_bad_line_takes_nothing_in(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(PAIR))
    (tmp_path / "bad.jsonl").write_text(json.dumps(PAIR) + "\n{")
    (tmp_path / "worse.csv").write_text("prompt,chosen,rejected\nq,a,a\n")
    status, _, errors = run("import", "s.sqlite", "good.jsonl", "bad.jsonl", "worse.csv")
    assert status == 2
    assert [line.split(": ")[1] for line in errors.splitlines()] == ["bad.jsonl:2", "worse.csv:2"]
    assert not (tmp_path / "s.sqlite").exists()
    for command in (["show"], ["agreement"], ["ask"], ["export", "out.csv"]):
        status, _, errors = run(command[0], "s.sqlite", *command[1:])
        assert (status, "there is no such file" in errors) == (2, True)
        assert not (tmp_path / "s.sqlite").exists()
    run("import", "s.sqlite", "good.jsonl")
    status, _, errors = run("export", "s.sqlite", "x", "--format", "xml")
    assert (status, "format: 'xml' is none of jsonl" in errors) == (2, True)


def test_from_responses_to_agreement(run: Run, tmp_path: Path, episode: Callable[..., Episode], author: Author) -> None:
    """Three simulated people compare texts of known length; the longer one wins unless a hand slips."""
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        for i in range(20):
            texts = [episode([5] * words, name=f"p{i}", prompt=[i]) for words in (1, 2 + i)]
            store.add_response(texts[0].prompt, *(Response.from_episode(text, author) for text in texts))
    assert run("ask", "s.sqlite", "--overlap", "3") == (
        0,
        "20 items asked for; 0 of 60 votes on 20 items, 0 complete\n",
        "Next: rlhf-env annotate --store s.sqlite    # people judge, on a local page; Ctrl-C ends it\n",
    )
    run("ask", "s.sqlite", "--kind", "ranking", "--overlap", "1")
    (tmp_path / "who.toml").write_text(
        '[gold]\nname = "length"\ntarget = 200\n[annotator]\nname = "simulated"\ntemperature = 0.0\nflip_rate = 0.1\n'
    )
    status, said, errors = run("simulate", "s.sqlite", "who.toml", "--people", "3")
    assert (status, errors) == (0, "")
    assert said == "80 votes; 80 of 80 votes on 40 items, 40 complete\n"
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        votes = list(store.comparisons())
    assert {it.annotator for it in votes} == {"simulated 1", "simulated 2", "simulated 3"}
    right = sum(len(it.preference.chosen.text) > len(it.preference.rejected.text) for it in votes if it.preference)
    assert 45 <= right < 60  # 54 expected, standard deviation 2.3
    status, said, _ = run("agreement", "s.sqlite")
    assert "comparison by overall: 60 judgements of 3 annotators, 20 judged by two or more" in said
    assert "alpha             0." in said
    assert run("simulate", "s.sqlite", "who.toml", "--people", "3")[1].startswith("0 votes")
    (tmp_path / "who.toml").write_text('[gold]\nname = "lenght"\n[annotator]\nname = "simulated"\n')
    status, _, errors = run("simulate", "s.sqlite", "who.toml")
    assert (status, "did you mean 'length'" in errors) == (2, True)


def _written(text: str) -> Response:
    return Response(text, Author("policy", "m", 1.0), ids=(1, 2), prompt_ids=(3,), finish_reason="stop")


def test_a_judge_of_ones_own_reads_what_the_task_says_of_its_prompts(run: Run, tmp_path: Path) -> None:
    """A function as gold: it is given the columns, and a conversation as messages, as it is when it is trained on."""
    question = {"role": "user", "content": "How many?"}
    prompt = Prompt("q", "User: How many?\nAssistant:", {"answer": "two"}, (question,))
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        store.add_response(prompt, *(_written(text) for text in ("one", "two", "three")))
    (tmp_path / "gold.py").write_text(
        "def right(prompts, completions, answer):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'How many?'}], prompts\n"
        "    return [float(said[0]['content'] == told) for said, told in zip(completions, answer)]\n"
    )
    judge = '[gold]\nfunction = "gold.py:right"\n[annotator]\nname = "simulated"\ntemperature = 0.0\n'
    (tmp_path / "judge.toml").write_text(judge)
    run("ask", "s.sqlite", "--kind", "ranking", "--size", "3")
    status, said, errors = run("simulate", "s.sqlite", "judge.toml")
    assert (status, said, errors) == (0, "1 votes; 1 of 1 votes on 1 items, 1 complete\n", "")
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        (vote,) = store.judgements()
    assert isinstance(vote, Ranking)
    assert vote.responses[vote.ranks.index(1)].text == "two"

    (tmp_path / "judge.toml").write_text(judge.replace("gold.py:right", "gold.py:other"))
    (tmp_path / "gold.py").write_text("def other(completions, level):\n    return [0.0 for _ in completions]\n")
    status, _, errors = run("simulate", "s.sqlite", "judge.toml")
    assert (status, "takes 'level', which is none of" in errors, "columns are answer" in errors) == (2, True, True)


def test_responses_of_people_are_asked_about(run: Run, tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("prompt,response\nq,a\nq,b\n")
    assert run("responses", "s.sqlite", "theirs.csv", "--human", "Ann")[1] == "2 responses are in s.sqlite\n"
    said = run("ask", "s.sqlite", "--kind", "criteria", "--criteria", "kind, true", "--per-prompt", "0")[1]
    assert said.startswith("2 items asked for")
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        assert {item.criteria for _, item in store.items()} == {("kind", "true")}
        assert {response.author for _, response in store.responses()} == {Author("human", "Ann")}
    status, _, errors = run("ask", "s.sqlite", "--kind", "criteria")
    assert (status, "criteria: names go with the kind" in errors) == (2, True)


def test_an_annotator_without_a_ruler_is_told_so(
    tmp_path: Path, episode: Callable[..., Episode], author: Author
) -> None:
    import numpy as np

    from rlhf_env.errors import ConfigError, DataError

    class Simple:
        name = "simple"

        def compare(self, pairs: object, _rng: object) -> list[str]:
            return ["tie"]

    text, other = (Response.from_episode(episode([i]), author) for i in (5, 6))
    typed = Response("typed", Author("human", "Ann"))
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        store.add_items([Item(kind="comparison", prompt=Prompt("p", "q"), responses=(text, other))])
        assert judge_items(store, Simple(), np.random.default_rng(0)) == 1  # type: ignore[arg-type]
        (vote,) = store.judgements()
        assert isinstance(vote, Comparison)
        assert vote.verdict == "tie"
        store.add_items([Item(kind="comparison", prompt=Prompt("p", "q"), responses=(text, typed))])
        with pytest.raises(DataError, match="no token ids"):
            judge_items(store, Simple(), np.random.default_rng(0))  # type: ignore[arg-type]
        Simple.name = "another"
        store.add_items([Item(kind="rating", prompt=Prompt("p", "q"), responses=(text,), priority=1.0)])
        with pytest.raises(ConfigError, match="'another' does not judge items of kind 'rating'"):
            judge_items(store, Simple(), np.random.default_rng(0))  # type: ignore[arg-type]
        assert store.progress().votes == 1
