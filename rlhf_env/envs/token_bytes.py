"""The bytes of text that each token of a vocabulary stands for.

A token may be a piece of a character, and decoding it by itself then shows U+FFFD. So the bytes are read off the
vocabulary where the tokenizer's format says how it spells them, and otherwise off the text that a token adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, end_ids
from rlhf_env.types import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece's format spells a single byte
_UNKNOWN = b"\xff"  # stands in no text


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id of the vocabulary; none for end tokens and for other tokens that no text shows.

    A piece of a character, of a tokenizer that does not say which, is the byte 0xff, which is in no text.
    """
    if isinstance(tokenizer, ByteTokenizer):
        found = [bytes([i]) if i < 256 else b"" for i in range(tokenizer.vocab_size)]
    elif isinstance(tokenizer, FileTokenizer):
        found = _of_file(tokenizer)
    else:
        found = _by_decoding(tokenizer, tokenizer.encode, lambda texts: [tokenizer.decode(text) for text in texts])
    for end in end_ids(tokenizer):
        found[end] = b""
    return found


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Tokens that stand in no text, because decoding leaves them out."""
    if not isinstance(tokenizer, FileTokenizer):
        return []
    return [str(tokenizer.own.backend_tokenizer.id_to_token(i)) for i in sorted(tokenizer.hidden_ids)]


def _of_file(tokenizer: FileTokenizer) -> list[bytes]:
    backend = tokenizer.own.backend_tokenizer
    special, kept = tokenizer.hidden_ids, {backend.token_to_id(token) for token in tokenizer.keep_special}
    spelled = [backend.id_to_token(i) for i in range(tokenizer.vocab_size)]  # None in the holes of a vocabulary
    if type(backend.decoder).__name__ == "ByteLevel":
        return [b"" if i in special or token is None else _byte_level(token) for i, token in enumerate(spelled)]

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    found = _by_decoding(tokenizer, encode, backend.decode_batch)
    for i, token in enumerate(spelled):
        if token is None or i in special:
            found[i] = b""
        elif i in kept:
            found[i] = token.encode("utf-8")
        elif found[i] == _UNKNOWN and (byte := _BYTE.fullmatch(token)):
            found[i] = bytes.fromhex(byte[1])
    return found


def _by_decoding(
    tokenizer: Tokenizer,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[list[list[int]]], Sequence[str]],
) -> list[bytes]:
    """What each token adds to a text: some formats leave out the space that begins a text."""
    before: list[int] = []
    for letter in "ax0":
        try:
            before = [*encode(letter)][-1:]
        except Exception:  # an alphabet without this letter: whatever is raised means no
            continue
        break
    (begin,) = decode([before]) if before else ("",)
    texts: Any = decode([[*before, i] for i in range(tokenizer.vocab_size)])
    alone = [i for i, text in enumerate(texts) if not text.startswith(begin)]
    by_itself = dict(zip(alone, decode([[i] for i in alone]), strict=True))
    found = [by_itself.get(i, text[len(begin) :]) for i, text in enumerate(texts)]
    return [_UNKNOWN if "\ufffd" in text else text.encode("utf-8", errors="surrogatepass") for text in found]


def _byte_level(token: str) -> bytes:
    """The bytes that GPT-2's format spells as printable characters; a token with any other character is text."""
    spelling = _spelling()
    if all(character in spelling for character in token):
        return bytes(spelling[character] for character in token)
    return token.encode("utf-8", errors="surrogatepass")


@cache
def _spelling() -> dict[str, int]:
    """GPT-2's bytes_to_unicode, turned around: printable bytes are themselves, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
