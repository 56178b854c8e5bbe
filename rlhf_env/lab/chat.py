"""A conversation with a model, in the model's own chat template, an answer at a time.

    chat = open_chat("runs/ppo", rewards=True)
    answer = chat.ask("Hello!", say=lambda piece: print(piece, end="", flush=True))
    chat.rewards_of(answer)

The model reads the ids that the environment would give it, and writes token by token from a random stream of its own:
the same seed and the same questions give the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from rlhf_env.device_names import AUTO
from rlhf_env.envs.rewards import NoReward, RewardMix
from rlhf_env.envs.stop_strings import StopStrings
from rlhf_env.envs.tasks import prompt_at
from rlhf_env.envs.tokenizers import (
    conversation_of,
    end_ids,
    has_template,
    keeping_special,
    load_tokenizer,
    plain_conversation,
    prompt_ids,
)
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.evaluation.runs import load_run
from rlhf_env.learning.agent import traits
from rlhf_env.learning.devices import find_device, placed
from rlhf_env.learning.models import load_tokenizer_of, with_vocabulary_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import TrainedModel, model_folder
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.low_precision import HasWriter
from rlhf_env.policies.policy import HasContext, Policy, Sampling
from rlhf_env.runs_on_disk import experiment_table_of, run_in, tokenizer_of
from rlhf_env.types import (
    Episode,
    GroupReward,
    Int,
    JsonObject,
    Observation,
    Prompt,
    Reward,
    ScoresItself,
    Tokenizer,
    TokenReward,
)

_PROMPTS_LOOKED_AT = 1000  # of the task: whether a question is one of its prompts, with what it knows of it
_OURS = "chat"  # the id of a question that is no prompt of the task
_LONGEST = 256  # tokens of an answer, where nothing says how long they are


@dataclass(frozen=True)
class ChatAnswer:
    """What a model answered."""

    episode: Episode
    left_out: int
    """How many of the oldest turns were left out of what the model read, because they no longer fitted its context."""

    @property
    def text(self) -> str:
        return self.episode.response


@dataclass(frozen=True)
class PartOfReward:
    """What one part of the reward says of an answer."""

    name: str
    weight: float
    value: float | None
    """Before its weight; None where it says nothing."""
    why_not: str = ""


class Chat:
    """A policy, asked by a person. `turns` are the questions so far, each with its answer.

    A model with a chat template reads the whole conversation, as far as its context allows; one without reads each
    question by itself (`remembers` is False).
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        system: str = "",
        seed: int = 0,
        stop: Sequence[str] = (),
        workplace: Workplace | None = None,
    ) -> None:
        self._stops = StopStrings(stop, tokenizer) if len(stop) else None
        self.policy, self.tokenizer, self.system = policy, tokenizer, system
        self.max_new_tokens = max_new_tokens
        self.turns: list[tuple[str, str]] = []
        self._workplace = workplace
        if system and not self.remembers:
            raise ConfigError("the model has no chat template, so nothing says how it is told a system message")
        self._writers = [policy, *([] if workplace is None else [workplace.setup.reference])]
        for writer in self._writers:
            writer.reseed(seed)

    @property
    def remembers(self) -> bool:
        return has_template(self.tokenizer)

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def ask(self, question: str, say: Callable[[str], None]) -> ChatAnswer:
        """Ask, with the turns before; `say` is called with each piece of the answer as soon as it is written.

        Raises ConfigError for a question that cannot be asked (too long, symbols that the tokenizer does not know);
        the conversation is then as it was before.
        """
        prompt, ids, left_out = self._prompt(question)
        answer = ChatAnswer(self._write(self.policy, prompt, ids, say), left_out)
        self.turns.append((question, answer.text))
        return answer

    def beside(self, answer: ChatAnswer, say: Callable[[str], None]) -> ChatAnswer:
        """What the reference answers to the same: the model that the run began with. Raises ConfigError without one."""
        if self._workplace is None:
            raise ConfigError("there is no reference to compare with: name a run, and not a model")
        asked = answer.episode
        return replace(answer, episode=self._write(self._writers[1], asked.prompt, asked.prompt_ids.tolist(), say))

    def rewards_of(self, answer: ChatAnswer) -> list[PartOfReward]:
        """Each part of the run's reward, asked by itself: one that cannot say anything keeps no other from it."""
        if self._workplace is None:
            raise ConfigError("there is no reward to show: name a run, and not a model")
        mix, task, asked = self._workplace.env.reward, self._workplace.env.task, answer.episode.prompt
        said = []
        for name, part in mix.parts.items():
            if isinstance(part, NoReward):  # of an agent that imitates, which none was asked for
                continue
            if name == "task" and isinstance(task, ScoresItself) and prompt_at(task, 0, {}).meta and asked.id == _OURS:
                why_not = "the question is none of the task's, which come with what their answers are scored by"
                said.append(PartOfReward(name, mix.weights[name], None, why_not))
            else:
                said.append(_said(name, part, mix.weights[name], answer.episode))
        return said

    def _prompt(self, question: str) -> tuple[Prompt, list[int], int]:
        """The prompt, its ids, and how many turns were left out of it."""
        if not self.remembers:
            prompt = self._known(question)
            ids = prompt_ids(self.tokenizer, prompt)
            self._require_room(ids, 0)
            return prompt, ids, 0
        for left_out in range(len(self.turns) + 1):
            turns = self.turns[left_out:]
            prompt, ids = self._conversation(turns, question)
            if self._fits(ids):
                break
        else:
            self._require_room(ids, len(self.turns))
        return prompt, ids, left_out

    def _conversation(self, turns: Sequence[tuple[str, str]], question: str) -> tuple[Prompt, list[int]]:
        messages: list[JsonObject] = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": question})
        stored = Prompt(_OURS, plain_conversation(messages), {"messages": messages})
        ids = prompt_ids(self.tokenizer, stored)
        if len(messages) == 1:  # as the run's task would have asked it
            return self._known(question), ids
        return replace(stored, messages=messages), ids

    def _known(self, question: str) -> Prompt:
        """The prompt of the run's task that asks the same, with what the task knows of it; else the question alone."""
        task = None if self._workplace is None else self._workplace.env.task
        asked: list[JsonObject] = [{"role": "user", "content": question}]
        if task is not None:
            for index in range(min(task.size or 0, _PROMPTS_LOOKED_AT)):
                prompt = prompt_at(task, index, {})
                if prompt.text == question or [*conversation_of(prompt)] == asked:
                    return prompt
            if conversation_of(prompt_at(task, 0, {})):  # whoever scores reads messages, each in its own template
                return Prompt(_OURS, plain_conversation(asked), messages=tuple(asked))
        return Prompt(_OURS, question)

    def _room(self, ids: Sequence[int]) -> int:
        """How many tokens the answer may have."""
        context = self.policy.context if isinstance(self.policy, HasContext) else None
        left = self.max_new_tokens if context is None else context + 1 - len(ids)  # the last token is never read
        return min(self.max_new_tokens, left)

    def _fits(self, ids: Sequence[int]) -> bool:
        return self._room(ids) >= self.max_new_tokens

    def _require_room(self, ids: Sequence[int], left_out: int) -> None:
        if not ids:
            raise DataError("there is nothing in this question that the model reads")
        if not self._fits(ids):
            alone = " by itself" if left_out else ""
            context = self.policy.context if isinstance(self.policy, HasContext) else None
            raise DataError(
                f"the question has {len(ids)} tokens{alone}, which with {self.max_new_tokens} of an answer exceed the "
                f"model's context of {context}: shorten it, or --max-new-tokens"
            )

    def _write(self, policy: Policy, prompt: Prompt, ids: Sequence[int], say: Callable[[str], None]) -> Episode:
        """Token by token; what is said is text that no later token changes."""
        limit = self._room(ids)
        texts = np.full((1, len(ids) + limit), self.tokenizer.pad_id, np.int64)
        mask = np.zeros(texts.shape, np.int8)
        texts[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        observation: Observation = {"input_ids": texts, "attention_mask": mask}
        response: list[int] = []
        logprobs: list[float] = []
        said, stopped, by_string = "", False, False
        states: Int = np.zeros(1, np.int64)
        while len(response) < limit and not stopped and not by_string:
            if self._stops is not None:
                observation |= {"stops": self._stops, "stop_states": states}
            written = policy.write(observation, 1)
            token = int(written.tokens[0, 0])
            place = len(ids) + len(response)
            texts[0, place], mask[0, place] = token, 1
            response.append(token)
            logprobs.append(float(written.logprobs[0, 0]))
            stopped = token in end_ids(self.tokenizer)
            if self._stops is not None:
                states = self._stops.after(states, written.tokens[:, 0])
                by_string = bool(self._stops.completed(states)[0])
            # A letter of several tokens is U+FFFD until the last of them is there.
            whole = self._decoded(response, stopped, by_string).rstrip("\N{REPLACEMENT CHARACTER}")
            if self._stops is not None and not stopped and not by_string:
                whole = self._stops.settled(whole)
            if len(whole) > len(said) and whole.startswith(said):
                say(whole[len(said) :])
                said = whole
        text = self._decoded(response, stopped, by_string)
        if text.startswith(said):
            say(text[len(said) :])
        else:  # the tokenizer takes back what it said: all of it once more
            say(f"\n{text}")
        return Episode(
            prompt=prompt,
            prompt_ids=np.array(ids, np.int64),
            response=text,
            response_ids=np.array(response, np.int64),
            finish_reason="stop_string" if by_string else "stop" if stopped else "length",
            actions=np.ones(len(response), np.bool_),
            logprobs=np.array(logprobs),
        )

    def _decoded(self, response: Sequence[int], stopped: bool, by_string: bool) -> str:
        text = self.tokenizer.decode(response[: len(response) - stopped])
        return self._stops.cut(text) if self._stops is not None and by_string else text


def _said(name: str, part: object, weight: float, episode: Episode) -> PartOfReward:
    if isinstance(part, GroupReward) and not isinstance(part, (Reward, TokenReward)):
        return PartOfReward(name, weight, None, "it compares several answers to one prompt")
    try:
        (score,) = RewardMix({name: (weight, part)}).score([episode])  # type: ignore[dict-item]
    except Exception as error:  # rewards are anybody's; a task's own may need columns that a question has not
        lines = str(error).strip().splitlines()
        return PartOfReward(name, weight, None, lines[0] if lines else type(error).__name__)
    if name in score.raw:
        return PartOfReward(name, weight, float(score.raw[name]))
    return PartOfReward(name, weight, None, score.failed.get(name, "it has nothing to say"))


def open_chat(
    name: str,
    *,
    checkpoint: Literal["best", "last"] = "best",
    rewards: bool = False,
    temperature: float | None = None,
    greedy: bool = False,
    max_new_tokens: int | None = None,
    system: str = "",
    seed: int = 0,
    trust_code: bool = False,
    stop: Sequence[str] | None = None,
    device: str = AUTO,
) -> Chat:
    """A chat with a model: a run's (at that checkpoint), that of a folder, a shipped one, one of the hub.

    Args:
        rewards: build what the run trained with, its reward and its reference, for `rewards_of` and `beside`.
        temperature, greedy: instead of the distribution that the run sampled from (of a model: temperature 1).
        trust_code: that of `load_run`, for `rewards`.
        max_new_tokens: the longest answer (of a run: as in its training; of a model: 256, or half its context).
        stop: strings that end an answer (of a run: as in its training).
        device: where the model computes, as in [policy].

    Raises ConfigError for what is no model, and for a run whose agent trained none.
    """
    if name in ("tiny", "table"):
        raise ConfigError(f"model {name!r} is made anew for each run: name a run that trained it")
    run = run_in(Path(name).expanduser())
    if run is None and rewards:
        raise ConfigError(f"{name} is no run: there is no reward and no reference to show")
    if run is not None and (rewards or experiment_table_of(run)["policy"].get("model") == "table"):
        return _of_run(run, checkpoint, temperature, greedy, max_new_tokens, system, seed, stop, trust_code, device)
    place = find_device(device)
    folder, usual, longest = model_folder(name, checkpoint), Sampling(), None
    strings: Sequence[str] = stop or ()
    if run is not None:
        trained = TrainedModel.of(run, checkpoint)
        usual, longest = trained.settings.sampling, trained.experiment.get("environment", {}).get("max_new_tokens", 24)
        strings = trained.experiment.get("environment", {}).get("stop", ()) if stop is None else stop
        own = tokenizer_of(run)
        tokenizer = load_tokenizer(own if own.startswith(("bytes", "alphabet:")) else folder)
    else:
        tokenizer = load_tokenizer_of(PolicySettings(model=folder))
    policy = LanguageModel.from_pretrained(
        folder,
        end_id=end_ids(tokenizer),
        pad_id=tokenizer.pad_id,
        sampling=_sampling(usual, temperature, greedy),
    )
    tokenizer = keeping_special(with_vocabulary_of(tokenizer, policy, name), _kept_in_training(run))
    longest = max_new_tokens or longest or min(_LONGEST, (policy.context or 2 * _LONGEST) // 2)
    return Chat(placed(policy, place), tokenizer, max_new_tokens=longest, system=system, seed=seed, stop=strings)


def _kept_in_training(run: Path | None) -> Sequence[str]:
    """The special tokens that texts of the run show."""
    return () if run is None else experiment_table_of(run).get("environment", {}).get("keep_special", ())


def _of_run(
    run: Path,
    checkpoint: Literal["best", "last"],
    temperature: float | None,
    greedy: bool,
    max_new_tokens: int | None,
    system: str,
    seed: int,
    stop: Sequence[str] | None,
    trust_code: bool,
    device: str,
) -> Chat:
    workplace = load_run(run, checkpoint, trust_code=trust_code, device=device).workplace
    setup = workplace.setup
    if not traits(workplace.agent).policy_writes:
        agent = workplace.experiment.agent.get("name")
        raise DataError(f"run {run}: the texts of its agent {agent!r} are not those of one trained model: name a model")
    for writer in (setup.policy, setup.reference):
        writer.sampling = _sampling(writer.sampling, temperature, greedy)
        if isinstance(writer, HasWriter):
            writer.writer_dtype = writer.writer = None  # the model itself answers
    longest = max_new_tokens or setup.max_new_tokens
    return Chat(
        setup.policy,
        setup.tokenizer,
        max_new_tokens=longest,
        system=system,
        seed=seed,
        stop=workplace.env.stop if stop is None else stop,
        workplace=workplace,
    )


def _sampling(usual: Sampling, temperature: float | None, greedy: bool) -> Sampling:
    drawn = usual if temperature is None else replace(usual, temperature=temperature)
    return replace(drawn, top_k=1, top_p=1.0) if greedy else drawn
