"""Another task's questions, with tools: the model may call Python functions before it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from annotated_types import MinLen

from rlhf_env.envs.tasks import TaskSpec, held_out, load_task, option_names, prompt_at, well_formed
from rlhf_env.envs.tokenizers import plain_conversation
from rlhf_env.envs.tool_calls import FORMAT_COLUMN, CallFormat, ToolCall, calls_in
from rlhf_env.envs.tool_functions import Tools
from rlhf_env.errors import ConfigError, DataError, Problem, under
from rlhf_env.settings import AtLeastOne, ChoosesByName, Example, Name, Positive, require
from rlhf_env.types import (
    Episode,
    FollowsTraining,
    HoldsOut,
    JsonObject,
    JsonView,
    MasksActions,
    Prompt,
    Replies,
    ResetOptions,
    ScoresItself,
    TrainerState,
)


class ToolUse:
    """Another task, whose questions may be answered with the help of tools.

    A tool is a Python function with types and a docstring. The model is told of it in its own chat template, calls it
    in the form of its family, and reads what it gives in its template, too: as tokens of the environment, which are not
    learned from. It goes on until a turn has no call in it. A call that cannot be read, an exception, and a function
    that takes too long are answered by an error, which the model reads. Rewards find the calls and their answers in
    `episode.messages`; the task's own score is of the last turn.

    Args:
        task: the other task: a name, a table or a task. A prompt that is a text is asked as the message of a user.
        tools: the functions, "FILE.py:NAME" or "MODULE:NAME" each. They run in a process of their own.
        call_format: how the model writes a call: "hermes" (Qwen, Hermes), "llama", "mistral"; "auto" reads any of
            these. A model whose template writes calls in another form is refused.
        max_calls: so many calls in one conversation, at most; it ends with the turn that asks for more.
        seconds: for one call; then the process is killed, and the model reads an error.
        longest_answer: characters of what a tool gives; the rest is cut off.
    """

    score: Callable[[Episode], float | None]
    well_formed: Callable[[Episode], bool]
    held_out: Callable[[], ToolUse]

    def __init__(
        self,
        task: Annotated[TaskSpec, Example("addition")],
        tools: Annotated[list[Name], MinLen(1), ChoosesByName("tool"), Example(["calculator.py:calculate"])],
        call_format: CallFormat = "auto",
        max_calls: AtLeastOne = 8,
        seconds: Positive = 5.0,
        longest_answer: AtLeastOne = 2_000,
    ) -> None:
        require(
            tools=(tools, Annotated[list[Name], MinLen(1)]),
            call_format=(call_format, CallFormat),
            max_calls=(max_calls, AtLeastOne),
            seconds=(seconds, Positive),
            longest_answer=(longest_answer, AtLeastOne),
        )
        with under("task"):
            self.task = load_task(task)
        for what, kind in (("answers itself", Replies), ("says which tokens may follow", MasksActions)):
            if isinstance(self.task, kind):
                raise ConfigError(Problem(f"task: {type(self.task).__name__} {what}, and has no tools", ("task",)))
        self.call_format: CallFormat = call_format
        self.max_calls, self.longest_answer = max_calls, longest_answer
        self.tools = Tools(tools, seconds)
        self.option_names = option_names(self.task)
        if isinstance(self.task, ScoresItself):
            self.score = self._score
        if isinstance(self.task, HoldsOut):
            self.held_out = self._held_out
        self.well_formed = self._well_formed
        self._failed: list[float] = []

    @property
    def size(self) -> int | None:
        return self.task.size

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        asked = prompt_at(self.task, index, options)
        if asked.rendered or asked.as_text:
            raise DataError(f"{asked.id}: tools are told of in the model's own chat template: leave chat_template out")
        if "tools" in asked.meta:
            raise DataError(f"{asked.id}: it has tools of its own (the column 'tools'): leave them out")
        messages: Sequence[JsonView] = asked.messages or ({"role": "user", "content": asked.text},)
        meta = {**asked.meta, "tools": self.tools.schemas, FORMAT_COLUMN: self.call_format}
        return replace(asked, text=plain_conversation(messages), messages=tuple(messages), meta=meta)

    def reply(self, episode: Episode, /) -> list[JsonObject] | None:
        """The model's turn as it was understood, and what its calls gave."""
        beside, calls = calls_in(episode.turns[-1] if episode.turns else "", self.call_format)
        made = sum(message["role"] == "tool" for message in episode.messages)
        if not calls or made + len(calls) > self.max_calls:
            return None
        tagged = [call.as_message(made + place) for place, call in enumerate(calls)]
        answers = [
            {"role": "tool", "name": call.name, "tool_call_id": tag["id"], "content": self._answer(call)}
            for call, tag in zip(calls, tagged, strict=True)
        ]
        return [{"role": "assistant", "content": beside, "tool_calls": tagged}, *answers]

    def _answer(self, call: ToolCall) -> str:
        said, fine = (f"error: {call.problem}", False) if call.problem else self.tools.call(call.name, call.arguments)
        self._failed.append(float(not fine))
        more = len(said) - self.longest_answer
        return said if more <= 0 else f"{said[: self.longest_answer]}... ({more} more characters)"

    def _score(self, episode: Episode, /) -> float | None:
        assert isinstance(self.task, ScoresItself)
        return self.task.score(self._as_asked(episode))

    def _well_formed(self, episode: Episode, /) -> bool:
        return well_formed(self.task, self._as_asked(episode))

    def _as_asked(self, episode: Episode) -> Episode:
        """As the other task would have it: its own columns, and the last turn as the answer."""
        own = {name: it for name, it in episode.prompt.meta.items() if name not in ("tools", FORMAT_COLUMN)}
        answer = episode.turns[-1] if episode.turns else episode.response
        return replace(episode, prompt=replace(episode.prompt, meta=own), response=answer, turns=(), messages=())

    def _held_out(self) -> ToolUse:
        aside = held_out(self.task)
        if aside is self.task:
            return self
        return ToolUse(
            aside,
            list(self.tools.codes),
            call_format=self.call_format,
            max_calls=self.max_calls,
            seconds=self.tools.limits.timeout,
            longest_answer=self.longest_answer,
        )

    def follow(self, state: TrainerState, /) -> None:
        if isinstance(self.task, FollowsTraining):
            self.task.follow(state)

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """1 for each call since the last time that was answered by an error, 0 for the others."""
        inner = self.task.take_logged() if isinstance(self.task, FollowsTraining) else {}
        failed, self._failed[:] = list(self._failed), []
        return {**inner, **({"tools/failed": failed} if failed else {})}
