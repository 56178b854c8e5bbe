"""What stands in a conversation between one answer of the model and the next, in the model's own chat template.

The model has written its turn, token by token, and these stay as they are. What others say after it is rendered by the
template: what follows the end of the model's turn in the whole conversation. So the ids of the whole are those of the
tokenizer's own rendering, where the model wrote its turn as the template writes one. (Some templates rewrite earlier
turns, as Qwen 3's takes thoughts out of them: what the model wrote stays all the same.)
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
    and the template's own is added. Raises DataError where the template refuses the conversation, or does not end the
    turn with an end token.
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
    # The model's turn ends with the same end token, counted from the beginning, whatever follows it.
    turns = sum(token in tokenizer.end_ids for token in tokenizer.encode(before))
    ids = tokenizer.encode(whole)
    closings = [place for place, token in enumerate(ids) if token in tokenizer.end_ids]
    if not turns or len(closings) < turns:
        raise DataError("the model's chat template ends an answer with none of the model's end tokens")
    return ids[closings[turns - 1] + (closed_by is not None) :]
