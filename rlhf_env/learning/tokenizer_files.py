"""The files of a tokenizer, as AutoTokenizer of transformers loads them: for a model that is taken elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer, FileTokenizer
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError
from rlhf_env.types import Prompt, Tokenizer

# What a tokenizer must read alike before and after it was saved.
_PROBES = ("Hello, world!", " two  spaces\nand a line", "é 😀 \u4f60\u597d", "<|end|></s><s>", "1234567890", "")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's files, and those of its chat template, into a folder.

    Ids are equal to the tokenizer's: those of a folder's are compared on a few texts. Raises DataError where they are
    not, and for a tokenizer that is none of ours.
    """
    with quiet_transformers():
        if isinstance(tokenizer, FileTokenizer):
            own = tokenizer.own
            if own.eos_token is None:  # the model's files alone name it
                own.eos_token = own.convert_ids_to_tokens(tokenizer.end_id)
            if own.pad_token is None:
                own.pad_token = own.convert_ids_to_tokens(tokenizer.pad_id)
            own.save_pretrained(str(folder))
        elif isinstance(tokenizer, ByteTokenizer):
            _fast_bytes(tokenizer).save_pretrained(str(folder))
        elif isinstance(tokenizer, AlphabetTokenizer):
            _fast_alphabet(tokenizer).save_pretrained(str(folder))
        else:
            raise DataError(f"the tokenizer {tokenizer!r} has no files that transformers reads")
    if isinstance(tokenizer, FileTokenizer):
        _require_equal(tokenizer, FileTokenizer(folder))


def _require_equal(before: FileTokenizer, after: FileTokenizer) -> None:
    for text in _PROBES:
        expected, read = _ids(before, text), _ids(after, text)
        if expected != read:
            raise DataError(
                f"the tokenizer in {before.folder} does not survive being saved by this version of transformers: "
                f"it reads {text!r} as {expected}, and the saved one as {read}"
            )
    if (before.end_id, before.pad_id) != (after.end_id, after.pad_id):
        raise DataError(f"the tokenizer in {before.folder} has other end or pad tokens once it is saved")


def _ids(tokenizer: FileTokenizer, text: str) -> list[list[int]] | None:
    """Of a text, and of it as a prompt; None where the tokenizer has no tokens for it, as that of an alphabet."""
    try:
        return [tokenizer.encode(text), tokenizer.encode_prompt(Prompt("probe", text))]
    except DataError:
        return None


def _fast_bytes(tokenizer: ByteTokenizer) -> Any:
    """Byte-level BPE without merges: each byte is a token of its own, written as GPT-2 writes bytes."""
    from tokenizers import decoders, models, pre_tokenizers

    # GPT-2's letters for bytes (Radford et al. 2019): printable ones stand for themselves, the rest from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return _fast(
        models.BPE(vocab={letter: byte for byte, letter in letters.items()}, merges=[]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
        {"<|pad|>": tokenizer.pad_id, "<|begin|>": 257, "<|end|>": tokenizer.end_id},
    )


def _fast_alphabet(tokenizer: AlphabetTokenizer) -> Any:
    """A word for each symbol; a text with any other is refused."""
    from tokenizers import Regex, decoders, models, pre_tokenizers

    return _fast(
        models.WordLevel(vocab={symbol: i for i, symbol in enumerate(tokenizer.symbols)}),
        pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
        decoders.Fuse(),
        {"<|end|>": tokenizer.end_id, "<|pad|>": tokenizer.pad_id},
    )


def _fast(model: Any, pre_tokenizer: Any, decoder: Any, special: dict[str, int]) -> Any:
    """With these parts of the Rust library; special tokens in a text are its letters, as with ours."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RustTokenizer
    from transformers import PreTrainedTokenizerFast

    made = RustTokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
