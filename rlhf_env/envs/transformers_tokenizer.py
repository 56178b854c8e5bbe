"""Tokenizers and chat templates as the transformers library itself loads and renders them.

This is the one file of `envs` that imports transformers, and only when a tokenizer of its format is asked for. What it
gives is the library's own object: which class reads the files, which special tokens go before a text, how a chat
template is found and rendered are the library's decisions, and nothing of them is made again here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_env.errors import DataError

HFTokenizer = Any  # a tokenizer of transformers

# Classes that read tokenizer.json as it is, and the families for which AutoTokenizer takes them at their word (others
# have a list of corrections). Loading these directly saves AutoTokenizer, which imports torch.
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_TRUSTED = (None, "llama", "gpt2")


def own_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer that transformers loads from a local folder. Raises DataError, in one line, if it does not."""
    with quiet_transformers():
        try:
            loader, as_text = _loader(folder), _tokens_as_text(folder)
            tokenizer = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **as_text)
            _ = tokenizer.backend_tokenizer  # the Rust library's; some old classes are Python alone
            return tokenizer
        except Exception as error:  # the library, and the Rust library below it, raise exceptions of many kinds
            file = folder / "tokenizer.json"
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{file if file.is_file() else folder} is not a tokenizer file: {said}") from error


def render_chat(
    tokenizer: HFTokenizer,
    messages: Sequence[Mapping[str, object]],
    options: Mapping[str, Any] | None = None,
    *,
    asks: bool = True,
) -> str:
    """A conversation as text in the tokenizer's chat template, up to where the answer begins; or, where it does not
    ask (`asks` False), to the end of its last message. `options` are the template's: `tools`, and names of its own.

    Templates and the library refuse a conversation with exceptions of many kinds.
    """
    given = dict(options or {})
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks, **given))


def json_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's types and docstring as chat templates take a tool. The library refuses by exceptions of its own."""
    from transformers.utils import get_json_schema

    return dict(get_json_schema(function))


def _loader(folder: Path) -> HFTokenizer:
    """The class whose `from_pretrained` loads what AutoTokenizer would load."""
    named = _table(folder / "tokenizer_config.json")
    model_type = _table(folder / "config.json").get("model_type")
    read_as = named.get("tokenizer_class")
    alone = read_as is None and model_type is None  # nothing says what it is: AutoTokenizer would refuse it
    if "auto_map" not in named and (alone or (read_as in _AS_IT_IS and model_type in _TRUSTED)):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _tokens_as_text(folder: Path) -> dict[str, str]:
    """Tokens that older files write as {"content": "<s>", ...}, which newer versions of the library refuse."""
    named = _table(folder / "tokenizer_config.json")
    tables = {role: it for role, it in named.items() if role.endswith("_token") and isinstance(it, dict)}
    return {role: str(it["content"]) for role, it in tables.items() if "content" in it and "__type" not in it}


def _table(file: Path) -> Mapping[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the library says what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers; errors are still exceptions."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
