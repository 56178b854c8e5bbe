"""Makes text of others (models, annotators, files) safe to show.

A language model can write an escape sequence that clears the terminal, or a character that reverses the reading
direction of everything after it. `for_page` makes such characters visible, so that whoever reads a report sees them;
`for_terminal` removes them, so that a terminal line stays a line. Neither escapes HTML: the templates do. Finally,
`without_secrets` removes what must not be kept in a log or a record.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

# Control, format (bidi, zero width), surrogate, private use, line and paragraph separator.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})

# CSI sequences (colours, cursor), OSC strings (titles, links), and the short escapes, as ECMA-48 builds them.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
)

# Every pattern is a fixed mark followed by characters of one class, so that matching takes linear time.
_SECRETS = (
    (re.compile(r"(?<=://)[^\s/@?#'\"]{1,500}@"), "***@"),  # user and password of an URL
    (re.compile(r"(?<=[?&])([\w.-]{1,100})=[^\s&#'\"]+"), r"\1=***"),  # the values in its query
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_***"),  # tokens of the Hugging Face hub
    (re.compile(r"\b(bearer|basic) +[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
)
_SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY")


def without_secrets(text: str) -> str:
    """`text` with *** for credentials: in URLs, after "Bearer", and the values of environment variables for secrets."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in _SECRET_NAMES):
            text = text.replace(value, "***")
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def for_page(text: str) -> str:
    """`text` with each invisible character written out, like `⟨U+202E⟩`; line breaks and tabs stay."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if _is_invisible(c) and c not in "\n\t" else c for c in text)


def near(path: Path) -> Path:
    """A path as one would write it from here: relative, if it leads into the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def type_in_words(value: object) -> str:
    """What somebody gave, by its type: it may be large, or its own words may fail. "None", "a str", "an int"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def for_terminal(text: str) -> str:
    """`text` on one line, without escape sequences and invisible characters."""
    return "".join(c for c in " ".join(_ESCAPE_SEQUENCE.sub("", text).split()) if not _is_invisible(c))


def for_stream(text: str) -> str:
    """A piece of a text, of which more will follow, without invisible characters but for line breaks and tabs.

    Without its first character, an escape sequence is a few odd letters.
    """
    return "".join(c for c in text if not _is_invisible(c) or c in "\n\t")


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE
