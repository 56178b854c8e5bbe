"""PKU-SafeRLHF (Dai et al. 2023, 2310.12773): two responses compared by how helpful and by how safe they are."""

from __future__ import annotations

from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Comparison, Rating
from rlhf_env.types import JsonView

_BETTER = (("better_response_id", "helpfulness"), ("safer_response_id", "safety"))
_IS_SAFE = "is safe"


def _two_criteria(row: JsonView, reading: Reading) -> list[Judgement]:
    return _read(row, reading, dict(_BETTER))


def _one_criterion(row: JsonView, reading: Reading) -> list[Judgement]:
    return _read(row, reading, {"better_response_id": "overall"})


def _read(row: JsonView, reading: Reading, criteria: dict[str, str]) -> list[Judgement]:
    fields = Fields(row)
    prompt = prompt_of(fields.text("prompt"))
    responses = [
        by_policy(fields.text(f"response_{side}"), fields.words(f"response_{side}_source"), reading) for side in (0, 1)
    ]
    better = {criterion: fields.whole(name, 0, 1) for name, criterion in criteria.items()}
    known = [side for side in (0, 1) if row.get(f"is_response_{side}_safe") is not None]
    safe = {side: fields.flag(f"is_response_{side}_safe") for side in known}
    fields.done()
    who = annotator_of(reading)
    made: list[Judgement] = [
        Comparison(prompt, responses[0], responses[1], ("first", "second")[side], who, criterion=criterion)
        for criterion, side in better.items()
    ]
    made += (
        Rating(prompt, responses[side], HIGHEST if is_safe else LOWEST, who, criterion=_IS_SAFE)
        for side, is_safe in safe.items()
    )
    return made


_RESPONSES = columns_of(
    "loaders",
    prompt="the prompt",
    response_0="the first response",
    response_1="the second response",
    response_0_source="the author of the first",
    response_1_source="the author of the second",
)
_REST = (
    *unread(
        "loaders",
        "prompt_source",
        "response_0_severity_level",
        "response_1_severity_level",
        "response_0_sha256",
        "response_1_sha256",
    ),
    PublishedColumn("response_0_harm_category", "", "loaders", "json"),
    PublishedColumn("response_1_harm_category", "", "loaders", "json"),
)
_LOADERS = {
    "loaders": "open_instruct/safety/process_beavertail.py of allenai/open-instruct, and copies of the card of "
    f"huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF at 571c013; `..._source`, `..._sha256`: {UNCHECKED}",
    "paper": f"Dai et al. 2023, that helpfulness and harmlessness are judged apart: {UNCHECKED}",
}

PKU = Layout(
    name="pku",
    sets="PKU-Alignment/PKU-SafeRLHF, PKU-SafeRLHF-10K and -30K",
    known_by=("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
    columns=(
        *_RESPONSES,
        *columns_of(
            "paper",
            better_response_id=("a comparison by the criterion helpfulness: 0 the first, 1 the second", "number"),
            safer_response_id=("a comparison by the criterion safety", "number"),
        ),
        *columns_of(
            "loaders",
            is_response_0_safe=('a rating of the first by the criterion "is safe": true is 5, false is 1', "flag"),
            is_response_1_safe=("the same of the second", "flag"),
        ),
        *_REST,
    ),
    sources=_LOADERS,
    read=_two_criteria,
)

PKU_SINGLE = Layout(
    name="pku-single",
    sets="PKU-Alignment/PKU-SafeRLHF-single-dimension",
    known_by=("prompt", "response_0", "response_1", "better_response_id"),
    columns=(
        *_RESPONSES,
        *columns_of("loaders", better_response_id=("the better one: 0 the first, 1 the second", "number")),
        *_REST,
    ),
    sources={**_LOADERS, "loaders": f"{_LOADERS['loaders']}. That set itself: {UNCHECKED}"},
    read=_one_criterion,
)
