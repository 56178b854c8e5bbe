"""A little world of preferences: a two-layer model on disk, episodes by hand, and a plugin's kind of judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Author, Preference, Response, judgement_problems
from rlhf_env.feedback.kinds import (
    HIGHEST,
    LOWEST,
    ChoiceInput,
    Form,
    JudgementKind,
    Option,
    Rating,
    TextInput,
)
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Episode, Prompt


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with learned absolute positions and dropout configured, and a byte-level tokenizer beside it."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("trunk")
    tiny_language_model("gpt2", dropout=0.1, init_std=0.2, context=64).save_pretrained(folder)
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<end>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def put_before() -> Callable[[PreferenceStore, int, str], None]:
    """`put_before(store, item, "ann")`: lend this item, whichever would be next."""

    def lend(store: PreferenceStore, item: int, annotator: str) -> None:
        with store._writing():
            store._lend(item, annotator, store._annotator(annotator), store._clock() + 600.0)

    return lend


@pytest.fixture(scope="session")
def author() -> Author:
    return Author("policy", "sft", 0.7)


@pytest.fixture(scope="session")
def episode() -> Callable[..., Episode]:
    def build(
        response: Sequence[int], *, prompt: Sequence[int] = (1, 2, 3), name: str = "p", ended: bool = True
    ) -> Episode:
        """An episode whose texts spell its ids."""
        return Episode(
            prompt=Prompt(name, " ".join(map(str, prompt))),
            prompt_ids=np.array(prompt, dtype=np.int64),
            response=" ".join(map(str, response)),
            response_ids=np.array(response, dtype=np.int64),
            finish_reason="stop" if ended else "length",
            actions=np.ones(len(response), dtype=np.bool_),
        )

    return build


@pytest.fixture(scope="session")
def preference(author: Author) -> Callable[..., Preference]:
    def build(chosen: Episode, rejected: Episode, weight: float = 1.0) -> Preference:
        return Preference(
            prompt=chosen.prompt,
            chosen=Response.from_episode(chosen, author),
            rejected=Response.from_episode(rejected, author),
            annotator="ann",
            weight=weight,
            created="2024-05-01T10:00:00+00:00",
        )

    return build


@dataclass(frozen=True)
class Acceptance:
    """Whether one would send this response as it is, and a word on why."""

    prompt: Prompt
    response: Response
    accepted: bool
    annotator: str
    comment: str = ""
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        findings.refuse(
            findings.one_of("accepted", self.accepted, (True, False)),
            findings.text("comment", self.comment, empty_is_fine=True),
            findings.text("criterion", self.criterion),
            *judgement_problems(self),
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.response,)


def _acceptance_as_rating(it: Acceptance) -> list[Rating]:
    score = HIGHEST if it.accepted else LOWEST
    return [Rating(it.prompt, it.response, score, it.annotator, it.criterion, it.weight, it.created, it.seconds)]


def _acceptance_form(guidelines: Mapping[str, str]) -> Form:
    sides = (Option(value=True, label="As it is"), Option(value=False, label="Not like this"))
    return Form(
        question="Would you send this response?",
        inputs=(
            ChoiceInput(name="accepted", label="Send it", options=sides),
            TextInput(name="comment", label="Why?"),
        ),
    )


ACCEPTANCE = JudgementKind(
    name="acceptance",
    plural="acceptances",
    judgement=Acceptance,
    responses=("response",),
    answer=("accepted", "comment"),
    form=_acceptance_form,
    ratings=_acceptance_as_rating,
    tallies={"accepted": (True,), "refused": (False,)},
)


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> JudgementKind:
    """A kind of judgement that a plugin would offer, known for one test."""
    monkeypatch.setattr(plugins.host(), "_entries", dict(plugins.host()._entries))
    plugins.register_judgement("acceptance", ACCEPTANCE)
    return ACCEPTANCE
