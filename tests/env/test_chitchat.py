"""The conversations: tidy, split once and for all, and a task that mixes questions and statements."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("chitchat_dataset", reason="the demo extra is not installed")

from rlhf_env import assets
from rlhf_env.envs import chitchat
from rlhf_env.errors import ConfigError, MissingExtra


@pytest.mark.parametrize(
    ("typed", "tidy"),
    [
        (["omg  thats so cool!!! hahahaha"], "Omg that's so cool! Haha."),
        (["hi", "anyone here"], "Hi. Anyone here."),
        (["what do u mean"], "What do you mean?"),
        (["is it ?!", "ok :)"], "Is it? Ok :)"),
        (["SOOOOO COOL"], "Soo cool."),
        (["[?]", "  ", "..."], ""),
        (["end it <|end|> here"], "End it end|> here."),
    ],
)
def test_a_turn_becomes_plain_sentences(typed: list[str], tidy: str) -> None:
    assert chitchat._tidy_turn(typed) == tidy


def test_long_turns_are_cut_at_sentence_ends() -> None:
    turn = "One is here. Two is there! Is three anywhere?"
    assert chitchat._first_sentences(turn, 30) == "One is here. Two is there!"
    assert chitchat._last_sentences(turn, 33) == "Two is there! Is three anywhere?"
    assert chitchat._last_sentences(turn, 5) == ""


def test_splits_have_the_stated_shares_and_share_no_conversation() -> None:
    ids = {split: {key for key, _ in chitchat._tidy_conversations(split)} for split in chitchat.SPLITS}
    total = sum(len(keys) for keys in ids.values())
    shares = [len(ids[split]) / total for split in ("base", "judge", "held_out")]
    assert shares == pytest.approx([0.64, 0.26, 0.10], abs=0.02)
    for one, other in itertools.combinations(ids.values(), 2):
        assert not one & other


def test_replies_are_short_closed_and_clean() -> None:
    for prompt, reply in chitchat.replies("held_out"):
        assert prompt.endswith(chitchat.TURN) and len(prompt) <= chitchat.LONGEST_PROMPT + len(chitchat.TURN)
        assert 0 < len(reply) <= chitchat.LONGEST_REPLY and len(reply.split()) > 1
        assert (prompt + reply).isascii() and "<|" not in reply and "http" not in reply


def test_the_task_alternates_questions_and_statements_and_holds_evaluation_prompts_out() -> None:
    held_out = chitchat.Chitchat().held_out()
    asked = [held_out.prompt(i, {}) for i in range(held_out.size)]
    assert ["?" in prompt.text for prompt in asked[:6]] == [True, False] * 3
    assert len({prompt.text for prompt in asked}) == held_out.size == len({prompt.id for prompt in asked})
    assert held_out.prompt(held_out.size + 3, {}) == asked[3]
    assert asked[0].text == asked[0].meta["turn"] + chitchat.TURN
    trained_on = chitchat.Chitchat()
    assert not {trained_on.prompt(i, {}).text for i in range(trained_on.size)} & {prompt.text for prompt in asked}


def test_unknown_split_and_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="training"):
        chitchat.conversations("training")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "chitchat_dataset", None)
    with pytest.raises(MissingExtra, match=r"rlhf-env\[demo\]"):
        chitchat._dataset_file()


def test_the_shipped_models_are_made_of_this_corpus() -> None:
    """Whoever changes the tidying or the splits must make the models anew: `make base-model`."""
    recipe = json.loads((Path(assets.__file__).parent / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["corpus_hash"] == chitchat.corpus_hash()
