"""The prompts that an experiment is written for, read as the task `file` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlhf_env.envs.file_task import File
from rlhf_env.envs.tokenizers import conversation_of, prompt_ids
from rlhf_env.types import GIVEN_TO_FUNCTIONS, Prompt, Tokenizer

_ANSWERS = ("answer", "completion", "response", "reference", "solution", "expected", "target", "output", "label")
_NOT_FOR_REWARDS = (*GIVEN_TO_FUNCTIONS, "tools", "chat_template_kwargs")
_FEW, _LEAST = 200, 4  # prompts: below the first a quarter is held out, below the second none
_LONGEST = 512  # tokens of a prompt that are read unless somebody raises it: longer ones are cut


@dataclass(frozen=True)
class AskedPrompts:
    """All prompts of a file or a data set. Reading them raises DataError with every problem."""

    path: str

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        task = File(self.path)
        return [task.prompt(index, {}) for index in range(task.size)]

    @property
    def are_conversations(self) -> bool:
        return bool(conversation_of(self.prompts[0]))

    @cached_property
    def held_out_fraction(self) -> float:
        """What can be set aside: equal prompts stay together, so of few or equal ones it may be none."""
        wanted = 0.25 if len(self.prompts) < _FEW else 0.1
        return wanted if len(self.prompts) >= _LEAST and 0 < self.held_out(wanted) < len(self.prompts) else 0.0

    def held_out(self, fraction: float) -> int:
        """How many prompts are measured; all of them where none are set aside."""
        return File(self.path, held_out_fraction=fraction).held_out().size

    @cached_property
    def answers(self) -> str | None:
        """The column that a reward may compare with: one that is called so, or any that has texts which differ."""
        columns = [name for name in self.prompts[0].meta if name not in _NOT_FOR_REWARDS]
        texts = [name for name in columns if all(map(str.strip, self._texts(name)))]
        called = [name for word in _ANSWERS for name in texts if word in name.casefold()]
        others = [name for name in texts if not name.casefold().endswith("id") and len({*self._texts(name)}) > 1]
        return next(iter((*called, *others)), None)

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """The length of each prompt, as the model reads it."""
        return [len(prompt_ids(tokenizer, prompt)) for prompt in self.prompts]

    def answer_tokens(self, tokenizer: Tokenizer) -> int:
        """The longest of the answers; 0 where there is no such column."""
        name = self.answers
        return 0 if name is None else max(len(tokenizer.encode(text)) for text in self._texts(name))

    def _texts(self, name: str) -> Iterator[str]:
        for prompt in self.prompts:
            value = prompt.meta.get(name)
            is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            yield str(value) if is_text else ""


@dataclass(frozen=True, kw_only=True)
class FittingLengths:
    """How many tokens prompts and answers have, within what the model reads."""

    new: int
    prompt: int
    too_long: int
    """How many prompts have more than `prompt`, and are cut."""

    @classmethod
    def of(cls, asked: AskedPrompts, tokenizer: Tokenizer, *, usual: int, context: int | None) -> FittingLengths:
        """`usual` is the longest answer where none of the file's is longer."""
        room = 2 * _LONGEST if context is None else context + 1  # the last token is never read
        new = max(1, min(max(usual, asked.answer_tokens(tokenizer) + 1), room // 2))
        tokens = asked.tokens(tokenizer)
        most = min(-(-max(tokens) // 8) * 8, room - new, _LONGEST)
        return cls(new=new, prompt=most, too_long=sum(length > most for length in tokens))


def relative_from(folder: Path, path: str) -> str:
    """How a file in `folder` names a path: relative where it lies below the folder beside it, so that both can move."""
    there, home = Path(path).expanduser(), folder.parent.resolve()
    if not there.exists():  # a data set of the hub
        return path
    there = there.resolve()
    return (Path("..") / there.relative_to(home)).as_posix() if there.is_relative_to(home) else str(there)
