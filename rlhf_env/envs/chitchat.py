"""Real conversations between students: texts to learn from, and prompts to answer.

The source is `chitchat-dataset` (MIT): 7,168 conversations of the Chit-Chat Challenge, typed in a browser in 2018.
Spelling and case are tidied, so that a small model spends its capacity on what people say and not on how they type.

Text format: `<|turn|>` ends a turn and `<|end|>` ends a text.

    conversation   Hey, how are you?<|turn|>Good. You?<|turn|>Great!<|end|>
    prompt         Hey, how are you?<|turn|>
    reply          Good. You?<|end|>

A prompt is the last turn only: a model of a few million parameters makes no use of the turns before, short prompts are
quick to answer, and a reader can judge a reply by looking at its prompt alone.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from rlhf_env import assets
from rlhf_env.envs.splits import unit_interval
from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.settings import settings
from rlhf_env.types import JsonObject, Prompt, ResetOptions

Split = Literal["base", "judge", "held_out"]

TURN = "<|turn|>"
END = "<|end|>"
PAD = "<|pad|>"

# The same format for `apply_chat_template`: how the models trained on it are asked what is no prompt of this file.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ raise_exception('this small model reads no system message: leave it out') }}"
    "{% endif %}"
    "{{ message['content'] | trim }}"
    "{% if loop.last and message['role'] == 'assistant' and not add_generation_prompt %}<|end|>"
    "{% else %}<|turn|>{% endif %}"
    "{% endfor %}"
)

# A conversation's id is hashed to [0, 1); a split reaches from the number before its own up to its own.
SPLITS: dict[Split, float] = {"base": 0.64, "judge": 0.90, "held_out": 1.0}

# In characters. With a byte-level BPE of 2,048 pieces: 14 tokens on average, at most 32 for 999 of 1,000 texts.
LONGEST_PROMPT = 72
LONGEST_REPLY = 72

COMMON = 15  # a common word occurs in at least this many conversations

_LONGHAND = {
    "u": "you", "ur": "your", "r": "are", "idk": "I don't know", "i": "I", "im": "I'm", "i'm": "I'm", "ive": "I've",
    "i've": "I've", "i'd": "I'd", "i'll": "I'll", "dont": "don't", "cant": "can't", "didnt": "didn't",
    "doesnt": "doesn't", "isnt": "isn't", "wasnt": "wasn't", "havent": "haven't", "wouldnt": "wouldn't",
    "couldnt": "couldn't", "arent": "aren't", "thats": "that's", "whats": "what's", "hows": "how's", "youre": "you're",
    "theyre": "they're", "theres": "there's", "wanna": "want to", "gonna": "going to", "hbu": "how about you",
}  # fmt: skip
_SPELLINGS = [
    (re.compile(r"\b[bha]?a?(ha){2,}\w*|\b(ah){2,}\w*", re.IGNORECASE), "haha"),
    (re.compile(r"\bl+o+l[lo]*\b", re.IGNORECASE), "lol"),
    (re.compile(r"([a-z])\1{2,}", re.IGNORECASE), r"\1\1"),
    (re.compile(r"!!+"), "!"),
    (re.compile(r"\.\.+ ?"), "... "),
    (re.compile(r"!*\?[?!]*"), "?"),
    (re.compile(r" +(?=[.,!?])"), ""),
]
_SHORTHAND = re.compile(rf"(?<![\w'-])({'|'.join(_LONGHAND)})(?![\w'-])", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?]+[.!?]+\)?")
_ASKS_FIRST = re.compile(
    r"(what|why|who|where|when|how|which|do|does|did|are|is|can|could|would|have)('s|'re|'d)? "
    r"(you|your|it|that|are|is|do|does|did|about|kind|was|were|the|would|many|long|much|should|have|there|they|he|she|we)\b",
    re.IGNORECASE,
)
_UNWANTED = re.compile(
    r"https?:|www\.|\.com\b|[\[\]{}<>\\|_~^#@]|\d{4,}|\w{15}|(?-i:[A-Z]{5}|[a-z][A-Z])"  # not prose
    r"|\b(\w+)(\W+\1\b){2}"  # and and and
    # Topics on which nobody should read what a model this small strings together.
    r"|\b(sex\w*|porn|slut|whore|dick|ass|shit|rape\w*|suicid\w*|hitler|nazi\w*|kill\w*|murder\w*|naked|pussy|cum"
    r"|shut up|stupid|idiot|ugly|dumb|hate you|loser|weed|drunk)\b",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"^\W*(hi|hey|hello|hola|sup|yo|howdy)\b(\W+(there|you|hi|hey|hello|everyone|guys))*\W*$", re.IGNORECASE
)


def conversations(split: Split) -> list[list[str]]:
    """The conversations of one split, each a list of tidied turns by two people in alternation."""
    if split not in SPLITS:
        raise ConfigError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    return [turns for _, turns in _tidy_conversations(split)]


def replies(split: Split) -> list[tuple[str, str]]:
    """Pairs (prompt text, reply text) fit for a small model to imitate: short, in common words, clean, not greetings.

    Common words matter most: from names and misspellings a small model learns to put rare pieces of words together. The
    prompt ends with `TURN`; the reply has no end token (whoever tokenizes it appends one).
    """
    return [
        (turn + TURN, reply)
        for turn, reply in dict.fromkeys(_exchanges(conversations(split)))
        if len(reply.split()) > 1 and not _GREETING.match(reply) and _in_plain_words(reply)
    ]


def prompts(split: Split) -> list[str]:
    """Distinct turns to answer, questions and statements in alternation.

    Half of them are questions, twice the natural share. With fewer questions, a policy could earn the reward for
    turn-taking (answer a question, ask about a statement) by asking a question in every reply.
    """
    turns = _distinct_turns(split)
    if split == "held_out":  # "What do you like to do?" is asked in many conversations
        turns -= _distinct_turns("base")
    # Sorted by a hash, which mixes the conversations.
    mixed = sorted(turns, key=unit_interval)
    questions = [turn for turn in mixed if "?" in turn]
    statements = [turn for turn in mixed if "?" not in turn]
    return [turn for pair in zip(questions, statements, strict=False) for turn in pair]


def text_of(turns: Sequence[str]) -> str:
    """A whole conversation as a language model reads it."""
    return TURN.join(turns) + END


@cache
def corpus_hash() -> str:
    """SHA-256 of every text that a model learns from, with its split. It changes with the data and the tidying here."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(json.dumps([split, _tidy_conversations(split), replies(split)]).encode())
    return digest.hexdigest()


@settings(kw_only=False)
class Chitchat:
    """Answer somebody's last turn. No held-out prompt is a training prompt, or comes from a training conversation."""

    split: Split = "base"
    """Which of the conversations."""

    @property
    def size(self) -> int:
        return len(_task_prompts(self.split))

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        """The turn at `index` modulo `size`, a question if that is even; `meta["turn"]` is its text without marker."""
        turns = _task_prompts(self.split)
        turn = turns[index % len(turns)]
        return Prompt(
            id=f"chitchat/{self.split}/{index % len(turns)}", text=turn + TURN, meta={"turn": turn}, rendered=True
        )

    def held_out(self) -> Chitchat:
        return Chitchat("held_out")


@cache
def _task_prompts(split: Split) -> tuple[str, ...]:
    """`prompts(split)`, kept on disk: tidying takes seconds, and every worker process asks."""
    file = assets.cache_folder() / f"chitchat-{split}-{_fingerprint()}.json"
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        texts = prompts(split)
    with suppress(OSError):  # if the cache cannot be written, the next process tidies again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(texts), encoding="utf-8")
        partial.replace(file)
    return tuple(texts)


@cache
def _fingerprint() -> str:
    """A hash of the data set and of this file: the cache of prompts is valid for these."""
    digest = hashlib.sha256(_dataset_file().read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


@cache
def _tidy_conversations(split: Split) -> list[tuple[str, list[str]]]:
    """(id, turns) of every conversation of the split in which somebody answered."""
    tidy = [
        (key, [text for turn in talk["messages"] if (text := _tidy_turn([message["text"] for message in turn]))])
        for key, talk in _raw().items()
        if _split_of(key) == split
    ]
    return [(key, turns) for key, turns in tidy if len(turns) > 1]


@cache
def _raw() -> JsonObject:
    """The data set as published: conversations by id."""
    data: dict[str, object] = json.loads(_dataset_file().read_text(encoding="utf-8"))
    return dict(sorted(data.items()))


def _dataset_file() -> Path:
    try:
        package = importlib.import_module("chitchat_dataset")
    except ImportError as missing:
        raise MissingExtra("chitchat-dataset (the conversations)", "demo") from missing
    return Path(str(package.__file__)).with_name("dataset.json")


def _split_of(conversation_id: str) -> Split:
    position = unit_interval(conversation_id)
    return next(split for split, upper in SPLITS.items() if position < upper)


def _distinct_turns(split: Split) -> set[str]:
    return {turn for turn, _ in _exchanges(conversations(split)) if len(turn.split()) > 2 and _in_plain_words(turn)}


def _in_plain_words(text: str) -> bool:
    return _common_words().issuperset(_words(text))


@cache
def _common_words() -> frozenset[str]:
    """The words in at least `COMMON` of the training conversations: 3,765 words, which make up 94 % of the text."""
    used_in = Counter(word for turns in conversations("base") for word in set(_words(" ".join(turns))))
    return frozenset(word for word, count in used_in.items() if count >= COMMON)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _exchanges(talks: Sequence[Sequence[str]]) -> Iterator[tuple[str, str]]:
    """(turn, reply), both cut at sentence ends to the length limits, without texts that a demo should not print."""
    for turns in talks:
        for before, after in itertools.pairwise(turns):
            turn, reply = _last_sentences(before, LONGEST_PROMPT), _first_sentences(after, LONGEST_REPLY)
            if turn and reply and not _UNWANTED.search(turn) and not _UNWANTED.search(reply):
                yield turn, reply


def _last_sentences(turn: str, limit: int) -> str:
    kept = ""
    for sentence in reversed(_SENTENCE.findall(turn)):
        if len((sentence + kept).strip()) > limit:
            break
        kept = sentence + kept
    return kept.strip()


def _first_sentences(turn: str, limit: int) -> str:
    kept = ""
    for sentence in _SENTENCE.findall(turn):
        if len((kept + sentence).strip()) > limit:
            break
        kept += sentence
    return kept.strip()


def _tidy_turn(messages: Sequence[str]) -> str:
    """One turn as one paragraph of sentences; messages sent one after another become sentences of their own."""
    return " ".join(sentence for message in messages if (sentence := _tidy_message(message)))


def _tidy_message(message: str) -> str:
    """`"omg  thats so cool!!! hahahaha"` -> `"Omg that's so cool! Haha."`"""
    text = " ".join(message.encode("ascii", "ignore").decode().replace("[?]", "").replace("<|", "").split())
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    text = _SHORTHAND.sub(lambda m: _LONGHAND[m[0].lower()], text).strip()
    if not re.search(r"\w", text):
        return ""
    return _capitalised(_closed(text))


def _closed(text: str) -> str:
    """With a final mark: a question mark if the last sentence plainly asks, else a full stop."""
    if re.search(r"[.!?][)\"']?$|[:;=]-?\S$", text):  # ... or an emoticon
        return text
    last = re.split(r"[.!?]\s", text)[-1]
    return text.rstrip(" ,;:-") + ("?" if _ASKS_FIRST.match(last) else ".")


def _capitalised(text: str) -> str:
    if text.isupper() and len(text) > 4:
        text = text.lower()
    return re.sub(r"(^\W*|[.!?]\s+)([a-z])", lambda m: m[1] + m[2].upper(), text)
