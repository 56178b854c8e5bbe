"""Tokenizers: text to token ids and back, without torch.

A prompt is encoded once, when it enters the environment. A response stays what the agent wrote, token ids: encoding its
decoded text again could give other ids. It is decoded once, when the episode ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.types import Tokenizer


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, then pad (256), begin (257, which `encode` never adds) and end (258).

    It encodes any string, with lone surrogates and NUL too, and decodes bytes that are not UTF-8 to U+FFFD.
    """

    vocab_size = 259
    pad_id = 256
    end_id = 258

    def encode(self, text: str, /) -> list[int]:
        return list(text.encode("utf-8", errors="surrogatepass"))

    def decode(self, ids: Sequence[int], /) -> str:
        try:
            content = bytes([*ids])
        except ValueError:  # ids that are not bytes
            content = bytes([i for i in ids if 0 <= i < 256])
        return content.decode("utf-8", errors="replace")


class AlphabetTokenizer:
    """One id per listed symbol, then end, then pad, for toy tasks and the enumerable tier."""

    def __init__(self, symbols: str) -> None:
        if not symbols or len(set(symbols)) != len(symbols):
            raise ConfigError(f"an alphabet is one or more different symbols, got {symbols!r}")
        self.symbols = symbols
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self.end_id = len(symbols)
        self.pad_id = len(symbols) + 1
        self.vocab_size = len(symbols) + 2

    def encode(self, text: str, /) -> list[int]:
        unknown = sorted(set(text) - set(self.symbols))
        if unknown:
            raise DataError(f"text {text!r} has symbols outside the alphabet {self.symbols!r}: {''.join(unknown)!r}")
        return [self._ids[symbol] for symbol in text]

    def decode(self, ids: Sequence[int], /) -> str:
        return "".join(self.symbols[i] for i in ids if 0 <= i < len(self.symbols))


class FileTokenizer:
    """A `tokenizer.json` (the fast-tokenizer format of transformers), read by the small `tokenizers` library.

    No special tokens are added: `encode` gives the text's own ids, and `end` and `pad` come from
    `tokenizer_config.json` / `special_tokens_map.json` beside it, or from the arguments.
    """

    def __init__(self, folder: str | Path, *, end: str | None = None, pad: str | None = None) -> None:
        import tokenizers

        self.folder = str(folder)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"{folder} has no tokenizer.json: name a folder that holds a saved fast tokenizer")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{file} is not a tokenizer file: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # One more than the largest id: added tokens may leave holes, so their number can be too small.
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        named = _special_tokens(Path(folder))
        self.end_id = self._special("end", end or named.get("eos_token"), folder)
        pad_token = pad or named.get("pad_token") or end or named.get("eos_token")
        self.pad_id = self._special("pad", pad_token, folder)

    def _special(self, role: str, token: str | None, folder: str | Path) -> int:
        found = self._tokenizer.token_to_id(token) if token is not None else None
        if found is None:
            raise DataError(f"the tokenizer in {folder} has no {role} token ({token!r}): name one with {role}='<...>'")
        return int(found)

    def encode(self, text: str, /) -> list[int]:
        # The Rust side takes UTF-8 only: a lone surrogate becomes U+FFFD instead of an exception.
        clean = text.encode("utf-8", errors="replace").decode("utf-8")
        return list(self._tokenizer.encode(clean, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], /) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def filled_up(self, vocab_size: int) -> FileTokenizer:
        """The same tokenizer with unused ids at the end, for a model whose vocabulary is rounded up."""
        end, pad = self._tokenizer.id_to_token(self.end_id), self._tokenizer.id_to_token(self.pad_id)
        return _reopen(self.folder, end, pad, vocab_size)

    # Environments are pickled to worker processes, which read the file again.
    def __reduce__(self) -> tuple[object, ...]:
        end, pad = self._tokenizer.id_to_token(self.end_id), self._tokenizer.id_to_token(self.pad_id)
        return _reopen, (self.folder, end, pad, self.vocab_size)


def _reopen(folder: str, end: str | None, pad: str | None, vocab_size: int) -> FileTokenizer:
    tokenizer = FileTokenizer(folder, end=end, pad=pad)
    tokenizer.vocab_size = vocab_size
    return tokenizer


def _special_tokens(folder: Path) -> dict[str, str]:
    """`{"eos_token": ..., "pad_token": ...}` as the files of transformers state them."""
    import json

    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            try:
                content = dict(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise DataError(f"{file} does not hold a JSON table: {error}") from error
            for role in ("eos_token", "pad_token"):
                token = content.get(role)
                if isinstance(token, dict):  # older files hold {"content": "<s>", ...}
                    token = token.get("content")
                if isinstance(token, str):
                    found[role] = token
    return found


def load_tokenizer(spec: str | Path | Tokenizer, *, revision: str | None = None) -> Tokenizer:
    """`"bytes"`, `"alphabet:0123"`, a folder with a tokenizer.json, a shipped model, a hub name; or a tokenizer.

    `revision` is that of a hub repository. Raises DataError when nothing of that name can be loaded.
    """
    if not isinstance(spec, (str, Path)):
        missing = [name for name in ("vocab_size", "end_id", "pad_id", "encode", "decode") if not hasattr(spec, name)]
        if missing:
            raise ConfigError(f"{spec!r} is not a tokenizer: it has no {', '.join(missing)}")
        return spec
    text = assets.resolve(str(spec))
    if text == "bytes":
        return ByteTokenizer()
    if text.startswith("alphabet:"):
        return AlphabetTokenizer(text.removeprefix("alphabet:"))
    return FileTokenizer(tokenizer_folder(text, revision))


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The local folder with a tokenizer's files, for a folder, a shipped model or a hub name (fetched, or cached)."""
    folder = Path(assets.resolve(name))
    return folder if folder.is_dir() else _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    """The local folder of a hub model's tokenizer files (fetched, or from the cache)."""
    from huggingface_hub import snapshot_download

    wanted = ["tokenizer*", "special_tokens_map.json", "chat_template.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise DataError(
            f"tokenizer {name!r} is not 'bytes', 'alphabet:...' or a folder, and the hub did not give it "
            f"({type(error).__name__}): check the name, or the network"
        ) from error
