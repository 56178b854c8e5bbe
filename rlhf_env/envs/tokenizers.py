"""Tokenizers: text to token ids and back, without torch.

A prompt is encoded once, when it enters the environment. A response stays what the agent wrote, token ids: encoding its
decoded text again could give other ids. It is decoded once, when the episode ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_env import assets
from rlhf_env.envs.transformers_tokenizer import own_tokenizer, render_chat
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.runs_on_disk import run_in, tokenizer_of
from rlhf_env.types import HasEndId, HasEndIds, JsonObject, JsonView, Prompt, Tokenizer

# In tokenizer_config.json: "user" says that the model was only ever asked in its chat template, so that a prompt
# without special tokens is the message of a user.
PLAIN_PROMPTS = "plain_prompts"
REFUSED = "the model's chat template refuses it"
# What a row may not tell its chat template, because whoever asks says it.
_OURS = frozenset(
    {"tools", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "conversation"}
)


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
    """A folder with a `tokenizer.json` (the fast-tokenizer format), read as transformers reads it.

    `encode` gives the text's own ids; `encode_prompt` adds what the tokenizer itself puts before a text. `end` and
    `pad` name those tokens; by default they are what `tokenizer_config.json` / `special_tokens_map.json` name, and
    where these name no end token, the first one of the model's files. Instruct models often have several end tokens:
    `end_ids` are the tokenizer's, then those in `generation_config.json` and `config.json` beside it; an `end` that is
    named is the only one.

    Decoded texts are without special tokens, but for those that `keep_special` names (`<think>`).
    """

    def __init__(
        self, folder: str | Path, *, end: str | None = None, pad: str | None = None, keep_special: Sequence[str] = ()
    ) -> None:
        self.folder = str(folder)
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise DataError(_no_file(Path(folder)))
        named = _special_tokens(Path(folder))
        self.own = own_tokenizer(Path(folder))
        self._tokenizer = self.own.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # One more than the largest id: added tokens may leave holes, so their number can be too small.
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        others = () if end else named_end_ids(Path(folder))
        own_end = end or named.get("eos_token") or self.own.eos_token
        if own_end is None and others:  # some models alone say what ends a text
            own_end = self._tokenizer.id_to_token(others[0])
        self.end_id = self._special("end", own_end, folder)
        self.pad_id = self._special("pad", pad or named.get("pad_token") or own_end, folder)
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, *others)))
        self.keep_special = tuple(keep_special)
        special = {i: it.content for i, it in self._tokenizer.get_added_tokens_decoder().items() if it.special}
        self.hidden_ids = frozenset(i for i, token in special.items() if token not in self.keep_special)
        """Tokens that no text shows."""
        if problem := self._kept_problem():
            raise DataError(problem)
        # Which tokens say that a prompt was rendered already, where the others are messages.
        self._markers: tuple[str, ...] | None = None
        if self.own.init_kwargs.get(PLAIN_PROMPTS) == "user":
            self._markers = tuple(special.values())

    @property
    def asks_plain_prompts_as_user(self) -> bool:
        """Whether a prompt that is a plain text is read in the chat template too, as the message of a user."""
        return self._markers is not None

    def _kept_problem(self) -> str:
        ends = [self._tokenizer.id_to_token(i) for i in (*self.end_ids, self.pad_id)]
        for token in self.keep_special:
            if self._tokenizer.token_to_id(token) is None:
                return f"keep_special: {token!r} is no token of the tokenizer in {self.folder}"
            if token in ends:
                return f"keep_special: {token!r} ends a text, and stands in none"
        return ""

    def _special(self, role: str, token: str | None, folder: str | Path) -> int:
        found = self._tokenizer.token_to_id(str(token)) if token is not None else None
        if found is None:
            key = "eos_token" if role == "end" else "pad_token"
            raise DataError(
                f"the tokenizer in {folder} has no {role} token ({token!r}): name one of its tokens in its "
                f'tokenizer_config.json, "{key}": "<...>"'
            )
        return int(found)

    def encode(self, text: str, /) -> list[int]:
        return list(self._encoding(_utf8(text), special=False).ids)

    def encode_prompt(self, prompt: Prompt, /) -> list[int]:
        """The ids that the tokenizer itself gives the text, but for end tokens after it: an answer follows.

        A begin token that stands in the text already is not written twice. A text that a chat template rendered is
        encoded as it is. A conversation, whose text is the plain layout of its messages, is read in the model's own
        template. Raises DataError where that refuses it.
        """
        prompt = as_asked(prompt, self)
        text = _utf8(prompt.text)
        if prompt.rendered:
            return self.encode(text)
        if self._markers is not None and not any(marker in text for marker in self._markers):
            return self.encode(render_chat(self.own, [{"role": "user", "content": text}]))
        encoding = self._encoding(text, special=True)
        own, added = self.encode(text), list(encoding.special_tokens_mask)
        if not own:  # whatever there is was added
            return [token for token in encoding.ids if token not in self.end_ids]
        begin = list(encoding.ids[: added.index(0)])
        return own if own[: len(begin)] == begin else [*begin, *own]

    def _encoding(self, text: str, *, special: bool) -> Any:
        """Raises DataError for a text that the tokenizer refuses, as one without a token for what it does not know."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:  # the Rust library raises bare exceptions
            raise DataError(f"the tokenizer in {self.folder} cannot read {text[:60]!r}: {error}") from error

    def decode(self, ids: Sequence[int], /) -> str:
        if not self.keep_special:
            return str(self.own.decode([int(i) for i in ids], skip_special_tokens=True))
        shown = [int(i) for i in ids if int(i) not in self.hidden_ids]
        return str(self.own.decode(shown, skip_special_tokens=False))

    def tokens(self) -> dict[int, str]:
        """Every token by its id, as the file writes it."""
        return {number: token for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    def keeping(self, tokens: Sequence[str]) -> FileTokenizer:
        """The same tokenizer, with these special tokens in decoded texts. Raises DataError for what is none."""
        return _reopen(self.folder, *self._end_and_pad(), self.vocab_size, self.end_ids, tuple(tokens))

    def belonging_to(self, vocab_size: int, end_ids: Sequence[int]) -> FileTokenizer:
        """The same tokenizer for a model with a larger vocabulary (many are rounded up) and further end tokens."""
        ends = tuple(dict.fromkeys((*self.end_ids, *end_ids)))
        return _reopen(self.folder, *self._end_and_pad(), vocab_size, ends, self.keep_special)

    def _end_and_pad(self) -> tuple[str | None, str | None]:
        return self._tokenizer.id_to_token(self.end_id), self._tokenizer.id_to_token(self.pad_id)

    # Environments are pickled to worker processes, which read the file again.
    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.folder, *self._end_and_pad(), self.vocab_size, self.end_ids, self.keep_special)


def _reopen(
    folder: str,
    end: str | None,
    pad: str | None,
    vocab_size: int,
    end_ids: tuple[int, ...],
    keep_special: tuple[str, ...],
) -> FileTokenizer:
    tokenizer = FileTokenizer(folder, end=end, pad=pad, keep_special=keep_special)
    tokenizer.vocab_size, tokenizer.end_ids = vocab_size, end_ids
    return tokenizer


def _no_file(folder: Path) -> str:
    """What is wrong with a folder without a tokenizer.json, and what to do."""
    older = [it.name for it in sorted(folder.glob("*")) if it.name in _OLDER]
    if older:
        return (
            f"{folder} has no tokenizer.json, only the older form of one ({', '.join(older)}): AutoTokenizer.from_"
            "pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes it"
        )
    return f"{folder} has no tokenizer.json: name a folder that holds a saved fast tokenizer"


_OLDER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def _utf8(text: str) -> str:
    """The Rust side takes UTF-8 only: a lone surrogate becomes a question mark instead of an exception."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _special_tokens(folder: Path) -> dict[str, str]:
    """`{"eos_token": ..., "pad_token": ...}` as the files of transformers state them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _json_table(folder / name)
        for role in ("eos_token", "pad_token"):
            token = content.get(role)
            if isinstance(token, dict):  # older files hold {"content": "<s>", ...}
                token = token.get("content")
            if isinstance(token, str):
                found[role] = token
    return found


def named_end_ids(folder: Path) -> tuple[int, ...]:
    """Every end token that a model's `generation_config.json` and `config.json` name, in that order.

    Raises DataError where what stands there is no id.
    """
    found: dict[int, None] = {}
    for name in ("generation_config.json", "config.json"):
        content = _json_table(folder / name)
        inner = content.get("text_config")  # of a model that also reads pictures
        for table in (content, inner if isinstance(inner, dict) else {}):
            named = table.get("eos_token_id")
            for token in named if isinstance(named, list) else [] if named is None else [named]:
                if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                    raise DataError(
                        f"{folder / name}: eos_token_id must be a token id, or a list of them, got {named!r}"
                    )
                found[token] = None
    return tuple(found)


def _json_table(file: Path) -> JsonObject:
    """The table in a JSON file, empty where there is no such file. Raises DataError."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} does not hold a JSON table: {error}") from error


def plain_conversation(messages: Sequence[JsonView]) -> str:
    """A conversation as text, in the template "plain"."""
    return "".join(f"{m['role'].capitalize()}: {said_in(m)}\n" for m in messages) + "Assistant:"


def said_in(message: JsonView) -> str:
    """What a message says: its content, that of its parts, and the functions that it calls as JSON, a line each."""
    content = message.get("content")
    said = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False, sort_keys=True)  # one text for one call
        for call in message.get("tool_calls") or ()
    ]
    return "\n".join([said] * bool(said or not calls) + calls)


# Who speaks in ShareGPT's turns, {"from": "human", "value": "..."}, as the role of a message.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def as_message(turn: Any) -> Any:
    """A turn as ShareGPT has it as a message with role and content; anything else as it is."""
    if isinstance(turn, Mapping) and "role" not in turn and {"from", "value"} <= turn.keys():
        return {"role": SPEAKERS.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
    return turn


def message_problem(message: Any) -> str:
    """What is wrong with a message of a conversation; "" if nothing is."""
    if not isinstance(message, Mapping):
        return f": expected an object with role and content, got {_kind(message)}"
    calls, content = message.get("tool_calls"), message.get("content")
    if not isinstance(message.get("role"), str):
        return f", 'role': expected a text, got {_kind(message.get('role'))}"
    if calls is not None and not (isinstance(calls, (list, tuple)) and all(isinstance(it, Mapping) for it in calls)):
        return f", 'tool_calls': expected a list of objects, got {_kind(calls)}"
    if isinstance(content, str) or (content is None and calls):
        return ""
    if not isinstance(content, (list, tuple)):
        return f", 'content': expected a text, got {_kind(content)}"
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            return f", 'content': a part of the type {kind!r}: only text is read, no pictures and no sounds"
    return ""


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def template_options(columns: JsonView) -> JsonObject:
    """What the columns of a conversation's row tell its chat template, as in TRL: `tools`, the functions that may be
    called (JSON schemas, or the JSON text of them), and `chat_template_kwargs`. Raises DataError."""
    tools, options = columns.get("tools"), columns.get("chat_template_kwargs")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"tools: not JSON: {error}") from error
    if tools and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(f"tools: expected a list of JSON schemas, one for each function, got {_kind(tools)}")
    if options and (not isinstance(options, Mapping) or not _OURS.isdisjoint(options)):
        raise DataError(f"chat_template_kwargs: expected a table without {', '.join(sorted(_OURS))}")
    return {**({"tools": list(tools)} if tools else {}), **(options or {})}


def conversation_of(prompt: Prompt) -> Sequence[JsonView]:
    """The messages that a prompt was written down from in the plain layout, for each model to read in its own template;
    empty for any other prompt. Of a stored prompt they are its `meta["messages"]`."""
    if prompt.rendered or prompt.as_text:
        return ()
    messages = prompt.messages or prompt.meta.get("messages")
    spoken = isinstance(messages, (list, tuple)) and not any(message_problem(message) for message in messages)
    return messages if spoken and messages and plain_conversation(messages) == prompt.text else ()


def as_asked(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    """The prompt as the model reads it: a conversation as the text that the model's own chat template makes of it.

    Any other prompt is itself; so is a conversation, in its plain layout, where the model has no template. Raises
    DataError for a conversation that the template refuses.
    """
    if not has_template(tokenizer) or not (messages := conversation_of(prompt)):
        return prompt
    assert isinstance(tokenizer, FileTokenizer)
    try:
        text = render_chat(tokenizer.own, messages, template_options(prompt.meta))
    except Exception as error:  # templates refuse conversations with exceptions of their own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{prompt.id}: {REFUSED}: {said}: change its messages, or leave it out") from error
    return replace(prompt, text=text, messages=tuple(messages), rendered=True)


def has_template(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, FileTokenizer) and bool(tokenizer.own.chat_template)


def keeping_special(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with these special tokens in the texts that it decodes. Raises DataError for what is none."""
    if not tokens:
        return tokenizer
    if not isinstance(tokenizer, FileTokenizer):
        raise DataError(f"keep_special: this tokenizer has no special tokens: {', '.join(map(repr, tokens))}")
    return tokenizer.keeping(tokens)


def end_ids(known_to: HasEndId) -> tuple[int, ...]:
    """The ids that end a response for a tokenizer or a policy, its `end_id` first."""
    return tuple(known_to.end_ids) if isinstance(known_to, HasEndIds) else (known_to.end_id,)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids of a prompt as a model reads it before it answers: whoever encodes one does it here."""
    # Not isinstance of the protocol, twice: it takes longer than to encode a short prompt.
    encode_prompt: Callable[[Prompt], list[int]] | None = getattr(tokenizer, "encode_prompt", None)
    if encode_prompt is not None and has_template(tokenizer):
        return encode_prompt(prompt)
    if conversation_of(prompt) and template_options(prompt.meta).get("tools"):
        raise DataError(f"{prompt.id}: it has tools, and without a chat template nothing tells a model of them")
    return tokenizer.encode(prompt.text) if encode_prompt is None else encode_prompt(prompt)


def prompt_ids_within(tokenizer: Tokenizer, prompt: Prompt, most: int) -> list[int]:
    """The same. Raises DataError for a prompt without a token, and for one of more than `most`."""
    ids = prompt_ids(tokenizer, prompt)
    if not ids:
        raise DataError(f"prompt {prompt.id!r} has no token: the first response token needs one before it")
    if len(ids) > most:
        raise DataError(
            f"prompt {prompt.id[:60]!r} has {len(ids)} tokens, the environment takes {most}: "
            f"raise max_prompt_tokens or shorten it ({prompt.text[:60]!r})"
        )
    return ids


def load_tokenizer(spec: str | Path | Tokenizer, *, revision: str | None = None) -> Tokenizer:
    """`"bytes"`, `"alphabet:0123"`, a folder with a tokenizer.json, a run, a shipped model, a hub name; or a tokenizer.

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
    if (run := run_in(Path(text).expanduser())) is not None:
        return load_tokenizer(tokenizer_of(run), revision=revision)
    return FileTokenizer(tokenizer_folder(text, revision))


class NotOnHub(DataError):
    """A name that is no folder, and that the hub did not give."""


def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """The local folder with a tokenizer's files, for a folder, a run, a shipped model or a hub name (fetched, or
    cached)."""
    folder = Path(assets.resolve(name)).expanduser()
    if (run := run_in(folder)) is not None:
        return tokenizer_folder(tokenizer_of(run), revision)
    return folder if folder.is_dir() else _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    """The local folder of a hub model's tokenizer files (fetched, or from the cache)."""
    from huggingface_hub import snapshot_download

    wanted = [
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "additional_chat_templates/*",
    ]
    wanted += ["vocab*", "merges.txt", "config.json", "generation_config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise NotOnHub(
            f"tokenizer {name!r} is not 'bytes', 'alphabet:...' or a folder, and the hub did not give it "
            f"({type(error).__name__}): check the name, or the network"
        ) from error
