"""The columns of one row, each asked for by what it must be, with everything that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_env.envs.tokenizers import plain_conversation
from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.interchange.dialogues import Messages, messages_of
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.provenance import prompt_from
from rlhf_env.feedback.judgements import Author, Response, digest
from rlhf_env.types import JsonView, Prompt

_LARGEST = 1e300  # of a number: what is larger is no float, or makes differences that are none


class Fields:
    """The columns of a row, or of an object inside it (`where` names it).

    Each method gives the value, or notes what is wrong and gives something harmless; `done` raises what was noted.
    """

    def __init__(self, row: JsonView, where: str = "", problems: list[str] | None = None) -> None:
        self.row = row
        self.problems: list[str] = [] if problems is None else problems
        self._where = where

    def done(self) -> None:
        if self.problems:
            raise DataError(*self.problems)

    def complain(self, name: str, what: str) -> None:
        self.problems.append(f"{self._where}{name}: {what}")

    def text(self, name: str) -> str:
        """Text, which may be empty."""
        value = self.row.get(name)
        if isinstance(value, str):
            return value
        self.complain(name, f"expected text, got {findings.in_words(value)}" if name in self.row else "missing")
        return ""

    def words(self, name: str, otherwise: str = "") -> str:
        """Text that may also be missing, null or empty."""
        return otherwise if self.row.get(name) in (None, "") else self.text(name)

    def number(self, name: str) -> float:
        value = self.row.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST:
            return float(value)
        self.complain(name, f"expected a number, got {self._got(name)}")
        return 0.0

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`; tables and Parquet also have it as a float without a fraction."""
        value = self.row.get(name)
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else low - 1
        if low <= number <= high and number == int(number):
            return int(number)
        self.complain(name, f"expected a whole number from {low} to {high}, got {self._got(name)}")
        return low

    def flag(self, name: str) -> bool:
        value = self.row.get(name)
        if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
            return bool(value)
        self.complain(name, f"expected true or false, got {self._got(name)}")
        return False

    def inside(self, name: str) -> Fields:
        """The object in a column."""
        value = self.row.get(name)
        if not isinstance(value, Mapping):
            self.complain(name, f"expected an object, got {self._got(name)}")
            value = {}
        return Fields(value, f"{self._where}{name}.", self.problems)

    def list(self, name: str) -> Sequence[object]:
        value = self.row.get(name)
        if isinstance(value, (list, tuple)):
            return value
        self.complain(name, f"expected a list, got {self._got(name)}")
        return ()

    def objects(self, name: str) -> Sequence[Fields]:
        """The objects of a list, or of the columns by which `datasets` keeps a sequence of objects."""
        value = self.row.get(name)
        if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
            if len({len(column) for column in value.values()}) > 1:
                self.complain(name, "its columns are not of one length")
                return ()
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        elif not isinstance(value, list):
            self.complain(name, f"expected a list of objects, got {self._got(name)}")
            return ()
        made = []
        for number, one in enumerate(value, start=1):
            if isinstance(one, Mapping):
                made.append(Fields(one, f"{self._where}{name} {number}: ", self.problems))
            else:
                self.complain(f"{name} {number}", f"expected an object, got {findings.in_words(one)}")
        return made

    def messages(self, name: str) -> Messages:
        try:
            return messages_of(self.row.get(name))
        except DataError as error:
            for problem in error.problems:
                self.complain(name, str(problem))
            return []

    def _got(self, name: str) -> str:
        if name not in self.row:
            return "none"
        value = self.row[name]
        return repr(value)[:60] if isinstance(value, (str, int, float)) else findings.in_words(value)


def prompt_of(said: str | Messages) -> Prompt:
    """The prompt that a text or a conversation is, as the readers of this package make it everywhere."""
    if isinstance(said, str):
        return prompt_from(said, {})
    return prompt_from(plain_conversation(said), {"meta": {"messages": said}})


def asked(text: str) -> Prompt:
    """What a person asked a chat model, as the first turn of a conversation: sets that have later turns, too."""
    return prompt_of([{"role": "user", "content": text}])


def by_policy(text: str, name: str, reading: Reading) -> Response:
    """A response of a model; of a data set that does not name it, of the file."""
    return Response(text, Author("policy", name) if name else Author("dataset", reading.source))


def by_person(text: str, name: str) -> Response:
    return Response(text, Author("human", name))


def unsigned(text: str, reading: Reading) -> Response:
    return Response(text, Author("dataset", reading.source))


def annotator_of(reading: Reading, published: str = "") -> str:
    """Who judged: as the caller says, as the set says, or the file."""
    return reading.annotator or published or reading.source


def unnamed_annotator(reading: Reading, place: int, *texts: str) -> str:
    """One of several people who judged these texts, of whom a set says no more than that they are several.

    The name is good for these texts alone: the first annotator of another row need not be the same person.
    """
    return f"{annotator_of(reading)} {digest(*texts)[:8]}/{place}"
