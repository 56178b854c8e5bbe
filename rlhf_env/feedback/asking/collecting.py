"""Where responses come from: written by a policy at several temperatures, by people, or out of a file; and what to ask.

for episode, author in sample_responses(policy, tokenizer, prompts, (0.7, 1.0), name="sft", max_new_tokens=32): ...
store.add_items(items_of(store.responses(), "comparison", np.random.default_rng(0), overlap=3))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.envs.endings import finished_episodes
from rlhf_env.envs.stop_strings import StopStrings
from rlhf_env.envs.tokenizers import prompt_ids
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.asking.annotators import Annotator, Judges, Ranks, Rates, answers_to_each
from rlhf_env.feedback.asking.pairs import Authored
from rlhf_env.feedback.interchange.files import located_rows
from rlhf_env.feedback.interchange.gathering import UnknownFields, gathered
from rlhf_env.feedback.interchange.provenance import prompt_from, response_from
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import kind_named
from rlhf_env.feedback.store.items import Item, criteria_names_problems
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.own_code import naming_who_raised
from rlhf_env.policies.policy import Policy
from rlhf_env.types import Episode, JsonView, Observation, Prompt, ResetOptions, Stops, Tokenizer


def sample_responses(
    policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    *,
    name: str,
    max_new_tokens: int,
    each: int = 1,
    batch_size: int = 64,
    stop: Sequence[str] = (),
) -> Iterator[Authored]:
    """`each` responses to every prompt at every temperature, with the policy (called `name`) and temperature as author.

    They come temperature by temperature, prompts in order. What the policy's `sampling` has beside the temperature
    stays; its random stream goes on from where it is, and `batch_size` decides which draw falls to which prompt. `stop`
    are strings that end a text, as in the environment.
    """
    if each < 1 or batch_size < 1 or max_new_tokens < 1 or not temperatures:
        raise ConfigError("sample_responses: each, batch_size, max_new_tokens and temperatures must be at least 1")
    asked = [prompt for prompt in prompts for _ in range(each)]
    stops = StopStrings(stop, tokenizer) if len(stop) else None
    for temperature in temperatures:
        author = Author("policy", name, float(temperature))
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            for episode in _written(policy, tokenizer, batch, temperature, max_new_tokens, stops):
                yield episode, author


def _written(
    policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    temperature: float,
    max_new_tokens: int,
    stops: Stops | None,
) -> Iterator[Episode]:
    ids = [np.array(prompt_ids(tokenizer, prompt), dtype=np.int64) for prompt in prompts]
    padded = np.full((len(ids), max(map(len, ids))), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros(padded.shape, dtype=np.int8)
    for row, text in enumerate(ids):
        padded[row, : len(text)], mask[row, : len(text)] = text, 1
    observation: Observation = {"input_ids": padded, "attention_mask": mask}
    if stops is not None:
        observation |= {"stops": stops, "stop_states": np.zeros(len(ids), dtype=np.int64)}
    usual = policy.sampling
    policy.sampling = replace(usual, temperature=temperature)
    try:
        written = policy.write(observation, max_new_tokens)
    finally:
        policy.sampling = usual
    yield from finished_episodes(prompts, ids, written.tokens, tokenizer, nothing=policy.vocab_size, stops=stops)


@dataclass(frozen=True)
class StoredPrompts:
    """The prompts of a store as a task, with the columns that they were asked with: what a reward of them can read."""

    prompts: Sequence[Prompt]

    @classmethod
    def of(cls, store: PreferenceStore) -> StoredPrompts:
        return cls([prompt for prompt, _ in store.responses()])

    @property
    def size(self) -> int:
        return len(self.prompts)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return self.prompts[index % self.size]


_COLUMNS = ("prompt", "response", "author")


def read_responses(path: str | Path, author: Author | None = None) -> list[tuple[Prompt, Response]]:
    """Responses that people wrote or that exist already, from a table or JSON: columns prompt and response.

    `author` (default: the file) wrote those of a line that has no column `author` with a person's name. Equal prompts
    get equal ids. Raises DataError with each problem as "file:line: field: what", up to 20.
    """
    default = author or Author("dataset", Path(path).name)
    rows = located_rows(path, _COLUMNS)
    return gathered(path, rows, lambda row: _response_of(row, default), "and a response")


def _response_of(row: JsonView, author: Author) -> tuple[Prompt, Response]:
    missing = [f"{field}: missing" for field in ("prompt", "response") if field not in row]
    if len(missing) == 2:
        has = ", ".join(map(repr, row)) or "nothing"
        raise UnknownFields(list(row), _COLUMNS, f"prompt, response: missing, it has {has}")
    if not missing and not isinstance(row["prompt"], str):
        missing = ["prompt: expected text"]
    if missing:
        raise DataError(*missing)
    by = ["human", row["author"], None] if row.get("author") else [author.kind, author.name, author.temperature]
    return prompt_from(row["prompt"], {}), response_from(row["response"], {"author": by}, author.name)


def items_of(
    responses: Iterable[tuple[Prompt, Response]],
    kind: str,
    rng: np.random.Generator,
    *,
    per_prompt: int | None = 1,
    size: int = 4,
    **settings: Any,
) -> list[Item]:
    """What to have judged: items of one kind, from responses in any order; prompts in the order seen.

    Of each prompt's different responses, `per_prompt` items are drawn without replacement (None: all there are). A kind
    of a fixed number of responses, such as a comparison of two, gets combinations of that many. A kind of any number,
    such as a ranking, gets the responses in a random order, cut into items of `size` (a rest of one is left out).
    `settings` are those of Item: criterion, criteria, overlap, seed.
    """
    if per_prompt is not None and per_prompt < 1:
        raise ConfigError(f"per_prompt: {per_prompt!r} is not a number of at least 1, or None for all")
    if size < 2:
        raise ConfigError(f"size: {size!r} responses are no ranking")
    findings.refuse(*criteria_names_problems(kind, settings.get("criteria", ())))  # where there is nothing to ask, too
    count = kind_named(kind).count
    items: list[Item] = []
    for prompt, group in by_prompt(responses):
        order = [group[i] for i in rng.permutation(len(group))]
        possible: list[tuple[Response, ...]]
        if count is None:
            parts = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
            possible = [part for part in parts if len(part) > 1]
        elif count == 1:
            possible = [(response,) for response in order]
        else:
            sets = list(combinations(group, count))
            possible = [sets[i] for i in rng.permutation(len(sets))]
        items += (
            Item(kind=kind, prompt=prompt, responses=shown, **settings)
            for shown in possible[: len(possible) if per_prompt is None else per_prompt]
        )
    return items


def judge_items(store: PreferenceStore, annotator: Annotator, rng: np.random.Generator) -> int:
    """Have an annotator judge every item of the store that is open to him; returns the votes given.

    Raises ConfigError for a kind he does not judge (see Ranks, Rates, Judges), DataError for responses without token
    ids, which rewards cannot read.
    """
    votes = 0
    while (assignment := store.next_item(annotator.name, origin="simulated")) is not None:
        item = assignment.item
        episodes = [response.episode(item.prompt) for response in item.responses]
        answer = _answer(annotator, item, episodes, rng)
        key = f"{rng.integers(2**63):x}{rng.integers(2**63):x}"
        store.submit(assignment.id, annotator.name, answer, key=key, ticket=assignment.ticket)
        votes += 1
    return votes


def _answer(annotator: Annotator, item: Item, episodes: Sequence[Episode], rng: np.random.Generator) -> object:
    match kind_named(item.kind).simulation:
        case "compare":
            return answers_to_each(annotator, "compare", [(episodes[0], episodes[1])], rng)[0]
        case "rank" if isinstance(annotator, Ranks):
            return answers_to_each(annotator, "rank", [episodes], rng)[0]
        case "rate" if isinstance(annotator, Rates):
            return answers_to_each(annotator, "rate", episodes, rng)[0]
        case "judge" if isinstance(annotator, Judges):
            with naming_who_raised(f"the annotator {annotator.name!r}: judge()"):
                return annotator.judge(item.kind, episodes, rng)
    raise ConfigError(f"annotator {annotator.name!r} does not judge items of kind {item.kind!r}")


def by_prompt(responses: Iterable[tuple[Prompt, Response]]) -> list[tuple[Prompt, list[Response]]]:
    """The responses to each prompt, without those that say what an earlier one said."""
    groups: dict[tuple[str, str], tuple[Prompt, list[Response]]] = {}
    for prompt, response in responses:
        _, group = groups.setdefault((prompt.id, prompt.text), (prompt, []))
        if not any(response.says_the_same_as(other) for other in group):
            group.append(response)
    return list(groups.values())
