"""Whether prompts fit: the environment, and the model's context with an answer. Asked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_env.envs.tasks import prompt_at
from rlhf_env.envs.tokenizers import prompt_ids, prompt_ids_within
from rlhf_env.envs.tool_calls import require_calls
from rlhf_env.errors import DataError
from rlhf_env.types import Prompt, Task, Tokenizer

MOST = 10_000
"""So many prompts of a task are looked at; 8 of one without end."""


def require_prompts_fit(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    context: int | None,
    first: int | None = None,
    remedy: str = "",
) -> None:
    """Raise DataError with every prompt that is too long, each with the `remedy`.

    `context` is the model's, None where it has no limit or is not known; of each task, the `first` so many are asked.
    """
    problems: dict[str, None] = {}
    for task in tasks:
        most = MOST if first is None else min(first, MOST)
        for index in range(min(8, most) if task.size is None else min(task.size, most)):
            prompt = prompt_at(task, index, {})
            try:
                require_calls(tokenizer, prompt)
                asked = len(prompt_ids_within(tokenizer, prompt, max_prompt_tokens))
            except DataError as error:
                helps = remedy if _is_read(tokenizer, prompt) else ""
                problems |= dict.fromkeys(f"{problem}{helps}" for problem in error.problems)
                continue
            if context is not None and asked + max_new_tokens > context + 1:  # the last token is never read
                said = f"prompt {prompt.id[:60]!r} has {asked} tokens, which with {max_new_tokens} new ones"
                said += f" (max_new_tokens) exceed the model's context of {context}: shorten the prompt or the answers"
                problems[f"{said} ({prompt.text[:60]!r}){remedy}"] = None
    if problems:
        raise DataError(*problems)


def _is_read(tokenizer: Tokenizer, prompt: Prompt) -> bool:
    """Whether the tokenizer, and the model's chat template, take the prompt, however long it is."""
    try:
        prompt_ids(tokenizer, prompt)
    except DataError:
        return False
    return True
