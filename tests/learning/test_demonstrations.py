"""Answers of conversations: which tokens are learned, that they are what the model is asked; how steps are filled."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.file_task import File
from rlhf_env.envs.tasks import Prompts, load_task
from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer, FileTokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.agent import Demonstrated
from rlhf_env.learning.demonstrations import (
    GivenAnswers,
    answer_ids,
    demonstration_source,
    demonstrations_of,
    joined,
    note_on_template,
    with_every_token,
)
from rlhf_env.learning.sources import PackedSource
from rlhf_env.types import Episode

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

EVERY = Demonstrated(turns="every")
BYTES = ByteTokenizer()
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "third"},
]


def templates_of_trl() -> list[Path]:
    found = importlib.util.find_spec("trl")
    return [] if found is None else sorted((Path(str(found.origin)).parent / "chat_templates").glob("*_training.jinja"))


def conversation(tmp_path: Path, template: Any = None, messages: Sequence[Any] = CHAT) -> tuple[File, FileTokenizer]:
    folder = save_chat_tokenizer(tmp_path / "model", **({} if template is None else {"template": template}))
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": list(messages)}) + "\n")
    return File(str(tmp_path / "chat.jsonl"), chat_template=str(folder)), FileTokenizer(folder)


def spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """[start, end) of every run of True."""
    edges = np.flatnonzero(np.diff([0, *map(int, mask), 0]))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def marked(episode: Episode) -> list[bool]:
    return [False] * len(episode.prompt_ids) + episode.actions.tolist()


def test_every_turn_is_asked_as_the_model_would_be(tmp_path: Path) -> None:
    """Each turn's prompt is the template's for the messages before it, and the answer ends with the end token."""
    task, tokenizer = conversation(tmp_path)
    answers = demonstrations_of(task, tokenizer, wanted=EVERY)
    for episode, place in zip(answers.episodes, (2, 4, 6), strict=True):
        asked = tokenizer.own.apply_chat_template(CHAT[:place], tokenize=True, add_generation_prompt=True)
        assert episode.prompt_ids.tolist() == list(asked["input_ids"])
        assert episode.response_ids.tolist() == [*tokenizer.encode(CHAT[place]["content"]), tokenizer.end_id]
    (last,) = demonstrations_of(task, tokenizer).episodes
    assert last == answers.episodes[-1]


def test_turns_that_begin_with_the_turns_before_are_one_text(tmp_path: Path) -> None:
    task, tokenizer = conversation(tmp_path)
    answers = demonstrations_of(task, tokenizer, wanted=EVERY)
    (text,) = joined(answers)
    whole = list(tokenizer.own.apply_chat_template(CHAT, tokenize=True)["input_ids"])
    assert text.ids.tolist() == whole[: len(text.ids)] and whole[len(text.ids) :] == tokenizer.encode("\n")
    learned = text.ids[marked(text)].tolist()
    assert learned == [token for episode in answers.episodes for token in episode.response_ids.tolist()]
    assert text.turns == ("first", "second", "third")


@pytest.mark.skipif(not templates_of_trl(), reason="TRL, whose templates these are, is not installed")
@pytest.mark.parametrize("template", templates_of_trl(), ids=lambda path: path.stem)
def test_marks_against_the_generation_tags_of_trl(template: Path, tmp_path: Path) -> None:
    """Of the tokens that transformers marks by `{% generation %}`, ours are those that the model writes: not those that
    the generation prompt holds already, nor the newline after the end token."""
    source = template.read_text(encoding="utf-8")
    try:
        task, tokenizer = conversation(tmp_path, source, CHAT[1:])
    except DataError:
        pytest.skip("the template refuses these conversations")
    texts = joined(demonstrations_of(task, tokenizer, wanted=EVERY))
    if "<|im_end|>" not in source:
        pytest.skip("its answers end with a token that this tokenizer does not have")
    own = tokenizer.own
    answered = own.apply_chat_template(CHAT[1:3], tokenize=False)
    if not answered.startswith(own.apply_chat_template(CHAT[1:2], tokenize=False, add_generation_prompt=True)):
        assert len(texts) == 3, "asked in one way (<think>) and written in another: nothing can be put together"
        return
    (text,) = texts
    theirs = tokenizer.own.apply_chat_template(
        CHAT[1:], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = list(theirs["input_ids"]), [bool(value) for value in theirs["assistant_masks"]]
    assert text.ids.tolist() == ids[: len(text.ids)]
    ours, of_trl = spans(marked(text)), spans(mask)
    assert len(ours) == len(of_trl) == 3
    for number, ((start, end), (trl_start, trl_end)) in enumerate(zip(ours, of_trl, strict=True)):
        asked = tokenizer.own.apply_chat_template(CHAT[1 : 2 + 2 * number], tokenize=True, add_generation_prompt=True)
        assert trl_start <= start == len(asked["input_ids"]), "it begins where the generation prompt ends"
        assert ids[end - 1] == tokenizer.end_id and tokenizer.encode("\n") in ([], ids[end:trl_end])


REWRITES = (  # as a thinking model's does: only the last answer keeps its thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_where_a_template_rewrites_earlier_turns_each_is_a_text_of_its_own(tmp_path: Path) -> None:
    thinking = [{**m, "content": f"<think>hm</think>{m['content']}"} if m["role"] == "assistant" else m for m in CHAT]
    task, tokenizer = conversation(tmp_path, REWRITES, thinking)
    answers = demonstrations_of(task, tokenizer, wanted=EVERY)
    texts = joined(answers)
    assert [tokenizer.decode(text.response_ids.tolist()) for text in texts] == [
        f"<think>hm</think>{word}" for word in ("first", "second", "third")
    ]
    assert "hm" not in tokenizer.decode(texts[-1].prompt_ids.tolist())


def test_an_answer_is_what_the_template_writes_for_it(tmp_path: Path) -> None:
    trims = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    task, tokenizer = conversation(tmp_path, trims, [CHAT[1], {"role": "assistant", "content": "  fine \n"}])
    assert answer_ids(task.prompt(0, {}), "  fine \n", tokenizer) == [*tokenizer.encode("fine"), tokenizer.end_id]


@pytest.mark.parametrize(
    ("asks", "said"), [("<|im_start|>assistant\n", ""), ("<|im_start|>assistant\n<think>\n", "assistant\\n<think>\\n")]
)
def test_a_template_that_asks_in_another_way_than_it_writes_is_said(tmp_path: Path, asks: str, said: str) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}" + asks + "{% endif %}"
    )
    task, tokenizer = conversation(tmp_path, template)
    answers = demonstrations_of(task, tokenizer, wanted=EVERY)
    note = note_on_template(answers, tokenizer)
    assert said in note and bool(said) == bool(note)
    assert answers.episodes[0].response_ids.tolist() == [*tokenizer.encode("first"), tokenizer.end_id]


def test_greetings_answer_nothing_and_an_open_question_is_no_answer(tmp_path: Path) -> None:
    hello = {"role": "assistant", "content": "welcome"}
    task, tokenizer = conversation(tmp_path, messages=[hello, *CHAT[1:6]])
    assert [it.response for it in demonstrations_of(task, tokenizer, wanted=EVERY).episodes] == ["first", "second"]
    with pytest.raises(DataError, match="no completion to learn"):
        demonstrations_of(task, tokenizer)


def test_another_models_template_is_refused(tmp_path: Path) -> None:
    task, _ = conversation(tmp_path)
    other = FileTokenizer(save_chat_tokenizer(tmp_path / "other", REWRITES.replace("im_start", "x")))
    with pytest.raises(DataError, match=r"chat.jsonl:1: its text is not what the model's own chat template makes"):
        demonstrations_of(task, other, wanted=EVERY)


@pytest.mark.parametrize(
    "name", ["count", "echo", "addition", "guess", "chitchat", "mixture", "reasoning_gym", "validation"]
)
def test_tasks_without_answers_are_refused_in_one_line(name: str) -> None:
    table: dict[str, Any] = {"name": name}
    table |= {"mixture": {"tasks": ["count"]}, "validation": {"task": "count"}}.get(name, {})
    table |= {"dataset": "leg_counting"} if name == "reasoning_gym" else {}
    with pytest.raises(DataError, match="sft needs given answers") as refused:
        demonstrations_of(load_task(table), BYTES)
    assert len(refused.value.problems) == 1


# ---------------------------------------------------------------- too long


def answers_of(tmp_path: Path, rows: Sequence[tuple[str, str]], **settings: Any) -> GivenAnswers:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return demonstrations_of(File(str(file)), BYTES, **settings)


ROWS = [("p" * 4, "yes"), ("p" * 30, "no"), ("pp", "y" * 40)]


def test_texts_that_are_too_long_are_named_left_out_or_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"33 tokens, the model reads 19: shorten it, leave it out, or set") as refused:
        answers_of(tmp_path, ROWS, context=19)
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == ["rows.jsonl:2", "rows.jsonl:3"]
    kept = answers_of(tmp_path, ROWS, context=19, over_long="leave out")
    assert ([it.response for it in kept.episodes], kept.count.left_out, kept.count.of) == (["yes"], 2, 3)
    cut = answers_of(tmp_path, ROWS, context=19, over_long="cut left")
    assert [len(it.ids) for it in cut.episodes] == [8, 20, 20] and cut.count.cut == 2
    assert cut.episodes[1].response_ids.tolist()[-1] == BYTES.end_id, "the prompt was cut"
    assert (cut.episodes[2].prompt.text, cut.episodes[2].finish_reason) == ("pp", "length")
    with pytest.raises(DataError, match="leaves no answer: each of the 2"):
        answers_of(tmp_path, ROWS[1:], context=19, over_long="leave out")


def test_a_turn_that_no_longer_fits_begins_a_text_of_its_own(tmp_path: Path) -> None:
    task, tokenizer = conversation(tmp_path)
    whole = demonstrations_of(task, tokenizer, wanted=EVERY)
    context = len(whole.episodes[-1].ids) - 10
    cut = demonstrations_of(task, tokenizer, wanted=EVERY, context=context, over_long="cut left")
    first, last = joined(cut, context=context)
    assert first.turns == ("first", "second") and last.response == "third"
    assert [m["content"] for m in last.prompt.messages] == ["be kind", "two?", "second", "three?"]


# ---------------------------------------------------------------- filling steps


def test_everything_but_the_first_token() -> None:
    (text,) = demonstrations_of(_One(), BYTES).episodes
    everything = with_every_token(text)
    assert everything.ids.tolist() == text.ids.tolist()
    assert marked(everything) == [False] + [True] * (len(text.ids) - 1)


class _One(Prompts):
    """A single prompt with a completion."""

    def __init__(self) -> None:
        super().__init__(["ask"])

    def prompt(self, index: int, options: Any, /) -> Any:
        from dataclasses import replace

        return replace(super().prompt(index, options), meta={"completion": "said"})


LENGTHS = [3, 9, 4, 4, 2, 8, 1, 5, 12, 6]


def test_a_step_takes_texts_until_the_next_does_not_fit() -> None:
    batches: list[list[int]] = []
    source = PackedSource(LENGTHS, 10, lambda places: batches.append(list(places)), seed=3)  # type: ignore[arg-type, return-value]
    for _ in range(source.updates_of(3)):
        source.next(None)  # type: ignore[arg-type]
    order = [place for batch in batches for place in batch]
    assert min(Counter(order[:30]).values()) == 3, "each text once an epoch, in the order it was drawn"
    assert len(order) - len(batches[-1]) < 30 <= len(order)
    for batch, following in itertools.pairwise(batches):
        size = sum(LENGTHS[place] for place in batch)
        assert size <= 10 or len(batch) == 1
        assert size + LENGTHS[following[0]] > 10 or following[0] in batch
    assert [8] in batches, "a text that is longer than a step is one by itself"


def test_it_goes_on_where_it_was() -> None:
    def taken(source: PackedSource, steps: int) -> list[list[int]]:
        return [source.next(None) for _ in range(steps)]  # type: ignore[arg-type, misc]

    def fresh() -> PackedSource:
        return PackedSource(LENGTHS, 10, list, seed=3)  # type: ignore[arg-type]

    whole, resumed = fresh(), fresh()
    before = taken(whole, 4)
    resumed.load_state_dict(whole.state_dict())
    assert before == taken(fresh(), 4) and taken(whole, 9) == taken(resumed, 9)


def test_the_source_packs_and_marks_as_it_is_told(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, [(letter * 3, "yes") for letter in "abcdef"])
    plain = demonstration_source(answers, BYTES, rows=2, seed=0).next(None)  # type: ignore[arg-type]
    packed = demonstration_source(answers, BYTES, rows=2, seed=0, wanted=Demonstrated(pack_tokens=30))
    full = demonstration_source(answers, BYTES, rows=2, seed=0, wanted=Demonstrated(loss_on="all"))
    assert len(plain) == 2 and len(packed.next(None)) == 30 // 7  # type: ignore[arg-type]
    everything = full.next(None)  # type: ignore[arg-type]
    assert everything.actions.sum(1).tolist() == [6, 6] and plain.actions.sum(1).tolist() == [4, 4]
    with pytest.raises(ConfigError, match="no data to train on"):
        PackedSource([], 10, list, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ["false", '"False"'])
def test_completions_that_a_label_calls_bad_are_not_imitated(label: str, tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    rows = [f'{{"prompt": "a:", "completion": "b", "label": {it}}}' for it in ("true", label)]
    file.write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"label is false, and sft imitates every completion.*kto"):
        demonstrations_of(File(str(file)), AlphabetTokenizer("ab:"))
    file.write_text("\n".join(rows[:1]))
    assert len(demonstrations_of(File(str(file)), AlphabetTokenizer("ab:")).episodes) == 1
