"""What stands in a conversation between one answer of the model and the next, in the model's own chat template.

The model has written its turn, token by token, and these stay as they are. What others say after it is rendered by the
template: the difference between the conversation with and without it. So the ids of the whole are those of the
tokenizer's own rendering, where the model wrote its turn as the template writes one.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_env.envs.tokenizers import FileTokenizer, conversation_of, has_template, template_options
from rlhf_env.envs.transformers_tokenizer import render_chat
from rlhf_env.errors import DataError
from rlhf_env.types import JsonView, Prompt, Tokenizer


def reply_ids(
    tokenizer: Tokenizer,
    prompt: Prompt,
    said: Sequence[JsonView],
    answers: Sequence[JsonView],
    closed_by: int | None = None,
) -> list[int]:
    """The ids between the model's turn and its next one.

    `said`: the messages since the prompt, the model's turn the last of them; `answers`: what others say to that.
    `closed_by`: the end token with which the model closed its turn; None where it wrote none (it met a stop string),
    and the template's own is added. Raises DataError where the template refuses the conversation, or rewrites what was
    said before.
    """
    if not has_template(tokenizer):
        raise DataError("a task that answers in messages needs a model with a chat template")
    assert isinstance(tokenizer, FileTokenizer)
    messages = [*(conversation_of(prompt) or prompt.messages), *said]
    options = template_options(prompt.meta)
    try:
        before = render_chat(tokenizer.own, messages, options, asks=False)
        whole = render_chat(tokenizer.own, [*messages, *answers], options)
    except Exception as error:  # templates refuse conversations with exceptions of their own
        said_ = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the model's chat template refuses the conversation: {said_}") from error
    ids = tokenizer.encode(before)
    closing = next((place for place in range(len(ids) - 1, -1, -1) if ids[place] in tokenizer.end_ids), None)
    if closing is None:
        raise DataError("the model's chat template ends an answer with none of the model's end tokens")
    kept = ids[: closing + (closed_by is not None)]
    everything = tokenizer.encode(whole)
    if everything[: len(kept)] != kept:
        raise DataError("the model's chat template rewrites an answer once something follows it")
    return everything[len(kept) :]
