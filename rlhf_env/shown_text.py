"""Text that others wrote (models, annotators, files), made fit to be shown.

A language model can write an escape sequence that clears the terminal, or a mark that turns the reading direction of
everything after it. `for_page` makes such characters visible, because whoever reads a report wants to know that they
are there; `for_terminal` takes them out, because a terminal line should stay a line. Escaping HTML is the template's
job, not theirs.
"""

from __future__ import annotations

import re
import unicodedata

# Control, format (bidi, zero width), surrogate, private use, line and paragraph separator.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})

# CSI sequences (colours, cursor), OSC strings (titles, links), and the short escapes, as ECMA-48 builds them.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
)


def for_page(text: str) -> str:
    """`text` with each unseen character written out, as in `⟨U+202E⟩`; line breaks and tabs stay."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if _is_unseen(c) and c not in "\n\t" else c for c in text)


def for_terminal(text: str) -> str:
    """`text` on one line, without escape sequences and unseen characters."""
    return "".join(c for c in " ".join(_ESCAPE_SEQUENCE.sub("", text).split()) if not _is_unseen(c))


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN
