"""A small tokenizer as instruct models have it: byte by byte, with a begin token of its own and a chat template."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def templates_of_trl() -> list[Path]:
    """The templates that TRL ships; none where it is not installed."""
    found = importlib.util.find_spec("trl")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return sorted(path for place in places for path in Path(place).glob("chat_templates/*.jinja"))


def save_chat_tokenizer(folder: Path, template: Any = CHATML, *, begins: bool = True) -> Path:
    """Bytes 0-255, then <s> 256, </s> 257, <pad> 258, <|im_start|> 259, <|im_end|> 260, <|end_of_text|> 261.

    The tokenizer's own end token is <|im_end|>. With `begins` it puts <s> before whatever it encodes.
    """
    letters = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>"])
    if begins:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
