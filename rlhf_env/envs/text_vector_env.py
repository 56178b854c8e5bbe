"""Text generation as a vector environment: B texts written side by side. The machine behind every view.

One class in one file, because it is one life cycle: reset options, writing, a text's end, its reward, the next text, in
three autoreset modes. What could be told apart has files of its own: where tokens lie (`text_buffer`), what an action
is (`actions`), which prompt is next (`prompt_order`), what a text may begin with (`prefixes`), where a string ends a
text (`stop_strings`), what a text says without its ending (`endings`), what an info holds (`infos`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlhf_env.envs.actions import ActionReader, Actions
from rlhf_env.envs.chat_replies import reply_ids
from rlhf_env.envs.endings import turns_of, without_stop_string
from rlhf_env.envs.infos import Info, VectorInfo, collated
from rlhf_env.envs.picture import TextPicture, picture_of
from rlhf_env.envs.prefixes import Prefixes
from rlhf_env.envs.prompt_order import PromptOrder, Seeds, is_index, require_seeds
from rlhf_env.envs.reward_tables import RewardSpec, load_rewards
from rlhf_env.envs.scoring import Scoring
from rlhf_env.envs.stop_strings import StopStrings
from rlhf_env.envs.tasks import TaskSpec, load_task, option_names, prompt_at
from rlhf_env.envs.text_buffer import TextBuffer
from rlhf_env.envs.tokenizers import end_ids, load_tokenizer, prompt_ids_within
from rlhf_env.envs.tool_calls import require_calls
from rlhf_env.errors import ConfigError, DataError, EnvironmentMisuse, did_you_mean
from rlhf_env.types import (
    Bool,
    Episode,
    FinishReason,
    Float,
    Int,
    JsonView,
    MasksActions,
    Observation,
    Prompt,
    Replies,
    ResetOptions,
    Score,
    Tokenizer,
)

OPTIONS: Mapping[str, str] = {  # of `reset`, beside those of the task, and what they mean
    "group_size": "G: neighbouring rows that get the same prompt. It must divide the rows. Default: 1.",
    "indices": "One index of the task per group of rows: which prompts. Without it they come in shuffled epochs.",
    "prefix": '{"column": NAME, "shares": one per group}: texts begin with that share of the answer in that column.',
    "reset_mask": "bool[B]: only these rows begin anew, the others go on. Of the vector form.",
}
_NO_SCORE = Score(raw={}, weights={})  # of a text that was cut from outside


class TextVectorEnv(VectorEnv[Observation, Actions, npt.NDArray[np.generic]]):
    """B texts written side by side; `action_length` tokens of each per step.

    Observation: `{"input_ids": int64[B, L], "attention_mask": int8[B, L]}`, padded on the right, with
    L = max_prompt_tokens + max_new_tokens. Action: token ids int64[B] at `action_length` 1, else
    int64[B, action_length] in which the value V (the vocabulary's size) means "nothing here"; what follows an end
    token is ignored. If a reward part needs to know how likely the agent found its action, the action is
    `{"tokens": ..., "probs": float64 of the same shape}`.

    Rewards are paid when a text ends; then `info` holds `text_episode` (an Episode), `score` (its Score: this object is
    what agents, the evaluator and reports get), `finish_reason`, `prompt_length` and `response_length`. The same score
    as tables that Gymnasium can collate are `reward_parts` (unweighted; `sum(weight * part) == reward`),
    `reward_weights` and `token_rewards` (per part, float64[max_new_tokens], unweighted, zero past the end). A text that
    a reward part failed on and is to skip (see `rewards.Failures`) is `truncated`, its score empty; `reward_failures`
    says what the part did. One about which no part has anything to say is `truncated` as well. `envs.infos` lists the
    keys.

    Where a part looks at groups, the rows of a group are paid together; where one looks at the whole batch, as a
    function in TRL's convention does, all rows are (in autoreset mode DISABLED; in the others, their group).

    If the task has an `action_mask`, `info["action_mask"]` and `action_masks()` say which tokens are allowed next,
    bool[B, V], and a forbidden one is refused like one outside the vocabulary; of an action of several tokens, each is
    held to the mask of its own place. (What draws actions without reading masks cannot play such a task.)

    Reset options: `group_size` G gives G neighbouring rows the same prompt; `indices` (one task index per group)
    chooses the prompts; `prefix` begins texts with a part of a demonstrated answer (`envs.prefixes`); `reset_mask` as
    in Gymnasium; others must be among the task's `option_names`. Options stay in force until a reset that gives options
    or a seed.

    Args:
        num_envs: texts side by side (B).
        task: what is asked: a name ("echo"), a table of plain data, `{"name": "echo", "length": 2}`, or an object.
        reward: what texts are worth: a name, a table of parts with their weights, or objects; without one, what the
            task itself scores.
        tokenizer: "bytes", "alphabet:abc", the folder of a model, or an object.
        max_new_tokens: the longest response; a text that reaches it has ended, by "length".
        max_prompt_tokens: the longest prompt; a longer one is refused by name.
        action_length: tokens per step; None is a whole response per step.
        autoreset_mode: what the vector form does with rows that have ended, as in Gymnasium: "NextStep", "SameStep" or
            "Disabled" (they rest until `reset`).
        max_episode_steps: cut an unfinished text after so many steps: `truncated`, without a score.
        stop: strings that end a text with the token in which it first holds one of them (`finish_reason`
            "stop_string"). Only what the agent has said in its present turn is looked at, not the prompt. The
            response's ids hold the whole string; its text ends before it.
        render_mode: "ansi" returns the texts, "rgb_array" pictures of them, "human" prints them.
        provided: what rewards named by string may be lent (`reference`).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # Gymnasium's own annotation
        "render_modes": ["ansi", "human", "rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskSpec = "count",
        reward: RewardSpec = None,
        tokenizer: str | Tokenizer = "bytes",
        max_new_tokens: int = 16,
        max_prompt_tokens: int = 32,
        action_length: int | None = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        stop: Sequence[str] = (),
        render_mode: str | None = None,
        provided: Mapping[str, object] | None = None,
    ) -> None:
        _require_positive(num_envs=num_envs, max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens)
        action_length = max_new_tokens if action_length is None else action_length
        _require_positive(action_length=action_length)
        if max_episode_steps is not None:
            _require_positive(max_episode_steps=max_episode_steps)
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ConfigError(f"autoreset_mode {autoreset_mode!r} is not one of {modes}")
        if action_length > max_new_tokens:
            raise ConfigError(f"action_length {action_length} is more than max_new_tokens {max_new_tokens}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode {render_mode!r} is not one of {self.metadata['render_modes']}")
        self.num_envs = num_envs
        self.task = load_task(task)
        self.tokenizer = load_tokenizer(tokenizer)
        self._end_ids = frozenset(end_ids(self.tokenizer))
        self.stop = tuple(stop)
        self.stops = StopStrings(stop, self.tokenizer) if len(stop) else None
        self.reward = load_rewards(reward, self.task, {"tokenizer": self.tokenizer, **(provided or {})})
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.action_length = action_length
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self._needs_logprobs = self.reward.needs_logprobs
        # Where rows start together, all of them wait for a part that looks at the whole batch; otherwise, their group.
        self._waits_for_batch = self.reward.scores_batches and self.autoreset_mode is AutoresetMode.DISABLED
        self._waits_for_group = self.reward.scores_groups or (self.reward.scores_batches and not self._waits_for_batch)
        # Asked once: isinstance of a protocol takes longer than a step.
        self._reply = self.task.reply if isinstance(self.task, Replies) else None
        self._action_mask = self.task.action_mask if isinstance(self.task, MasksActions) else None

        vocabulary, context = self.tokenizer.vocab_size, max_prompt_tokens + max_new_tokens
        self.single_observation_space = gym.spaces.Dict(
            input_ids=gym.spaces.Box(0, vocabulary - 1, (context,), np.int64),
            attention_mask=gym.spaces.Box(0, 1, (context,), np.int8),
        )
        self._reader = ActionReader(num_envs, action_length, vocabulary, needs_logprobs=self._needs_logprobs)
        self.single_action_space = self._reader.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._texts = TextBuffer(
            num_envs,
            context,
            vocab_size=vocabulary,
            end_ids=end_ids(self.tokenizer),
            pad_id=self.tokenizer.pad_id,
            stops=self.stops,
        )
        self._steps: Int = np.zeros(num_envs, dtype=np.int64)
        self._writing: Bool = np.zeros(num_envs, dtype=np.bool_)
        self._unpaid: set[int] = set()  # rows whose text has ended, but whose reward has not been paid yet
        self._done: Bool = np.zeros(num_envs, dtype=np.bool_)  # rows whose episode is over
        self._terminated: Bool = np.zeros(num_envs, dtype=np.bool_)
        self._truncated: Bool = np.zeros(num_envs, dtype=np.bool_)
        self._prompts: list[Prompt] = []
        self._reasons: list[FinishReason] = ["stop"] * num_envs
        self._order = PromptOrder(num_envs)
        self._options: ResetOptions = {}
        self._group_size = 1
        self._prefixes: Prefixes | None = None
        self._unobserved: dict[int, tuple[Episode, Score]] = {}
        self._scoring: Scoring | None = None  # within `scoring_meanwhile`
        self._handed_in: list[tuple[int, Episode]] = []  # to it, by row
        self._messages: dict[int, tuple[JsonView, ...]] = {}  # of rows whose task has answered in messages
        self._allowed: dict[int, Bool] = {}  # the task's mask for the next token of each row that writes
        self._latest: list[Info] = [{} for _ in range(num_envs)]

    # ---------------------------------------------------------------- Gymnasium's interface

    def reset(self, *, seed: Seeds = None, options: ResetOptions | None = None) -> tuple[Observation, VectorInfo]:  # type: ignore[override]  # dicts, of which mypy knows the keys
        """Start new texts in all rows (or in those of `options["reset_mask"]`).

        Raises ConfigError for an option that is not one, DataError for a prompt that does not fit.
        """
        self._require_open()
        rows = self._take_options(seed, options)
        infos = collated(self._start(rows), self.num_envs)  # before looking: the observation is of the new texts
        return self.observation(), infos

    def step(  # type: ignore[override]  # as above
        self, actions: Actions
    ) -> tuple[Observation, Float, Bool, Bool, VectorInfo]:
        """Write the next tokens of each row. Rows that have ended ignore their action.

        Raises EnvironmentMisuse before `reset`, and for an action that is not in the action space.
        """
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            resting = self._done.nonzero()[0]
            rewards, terminated, truncated, row_infos = self.advance(actions)
            row_infos |= self._start(resting)
            return self.observation(), rewards, terminated, truncated, collated(row_infos, self.num_envs)
        rewards, terminated, truncated, row_infos = self.advance(actions)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            terminated, truncated = self._terminated.copy(), self._truncated.copy()
            return self.observation(), rewards, terminated, truncated, collated(row_infos, self.num_envs)
        ended: list[int] = self._done.nonzero()[0].tolist()
        last = self.observation()
        finals = {row: {"final_obs": row_of(last, row), "final_info": row_infos[row]} for row in ended}
        row_infos |= self._start(np.array(ended, dtype=np.int64))
        infos = collated(finals, self.num_envs) | collated(row_infos, self.num_envs)
        return self.observation(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | tuple[TextPicture, ...] | None:
        """The texts so far: returned for "ansi", as pictures for "rgb_array", printed for "human"."""
        texts = tuple(self.describe(row) for row in range(self.num_envs))
        if self.render_mode == "ansi":
            return texts
        if self.render_mode == "rgb_array":
            return tuple(map(picture_of, texts))
        if self.render_mode == "human":
            print("\n".join(texts), flush=True)
        return None

    # ---------------------------------------------------------------- what the single view and the loop use as well

    def observation(self) -> Observation:
        """A fresh copy of the texts: `input_ids` int64[B, L], `attention_mask` int8[B, L]."""
        return {"input_ids": self._texts.ids.copy(), "attention_mask": self._texts.on_text.copy()}

    @property
    def group_size(self) -> int:
        """Neighbouring rows that share a prompt, as the last reset asked."""
        return self._group_size

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What each row is asked, the task's columns included; empty before the first reset."""
        return tuple(self._prompts)

    @property
    def writing(self) -> Bool:
        """bool[B]: rows whose text is not finished."""
        return self._writing.copy()

    @property
    def stop_states(self) -> Int:
        """int64[B]: how far each text is in the `stops`, for writers that end where the environment does."""
        return self._texts.stop_states.copy()

    @contextmanager
    def scoring_meanwhile(self) -> Iterator[None]:
        """A context in which texts are scored while others are written, where a part waits outside this process.

        Such a part is asked as soon as a text has ended, and the rewards of all rows are paid in the step in which the
        last of them ends: the same rewards as without. For autoreset mode DISABLED; every row is reset before. Where no
        part waits outside, nothing is otherwise. Leaving it before that step drops what is not paid.
        """
        if not self.reward.waits_outside:
            yield
            return
        with self.reward.scoring() as self._scoring:
            try:
                yield
            finally:
                self._scoring, self._handed_in = None, []

    def settle(self, rows: Int | None = None) -> None:
        """Show the ended texts (of `rows`) to the rewards that remember, as the next reset would."""
        settled = range(self.num_envs) if rows is None else map(int, rows)
        ended = [self._unobserved.pop(row) for row in settled if row in self._unobserved]
        if ended:
            self.reward.observe([episode for episode, _ in ended], [score for _, score in ended])

    def has_ended(self, row: int) -> bool:
        """Whether the row's episode is over and paid."""
        return bool(self._done[row])

    def latest_info(self, row: int) -> Info:
        """The info of the row's last reset or end."""
        return self._latest[row].copy()

    def advance(self, actions: Actions) -> tuple[Float, Bool, Bool, dict[int, Info]]:
        """The step without autoreset: rewards, terminated and truncated of this step, and the infos of ended rows."""
        if self.closed or not self._prompts:
            self._require_started()
        tokens, logprobs = self._reader.read(actions, self._writing)
        if self._action_mask is not None:
            self._require_allowed(tokens)
        writing = self._writing.nonzero()[0]
        stated = None if logprobs is None else logprobs[writing]
        for row, reason in self._texts.append(writing, tokens[writing], stated):
            self._end_turn(row, reason)
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[int, Info] = {}
        late = np.zeros(self.num_envs, dtype=np.bool_)
        if self.max_episode_steps is not None:
            self._steps += ~self._done
            late = (self._steps >= self.max_episode_steps) & ~self._done
        due = self._rows_due(self._writing & ~late) if self._unpaid else ()
        if self.max_episode_steps is not None:
            for row in late.nonzero()[0].tolist():
                if row not in due:
                    infos[row] = self._cut(row)
            truncated |= late  # an end in the last step is both, as in Gymnasium's TimeLimit
        for row, episode, score in self._scored(due) if due or self._handed_in else ():
            infos[row] = self._pay(row, episode, score, rewards)
            (terminated if score.raw else truncated)[row] = True
        if infos:
            for row, info in infos.items():
                self._latest[row] = info
            self._done |= terminated | truncated
            self._terminated |= terminated
            self._truncated |= truncated
        if self._action_mask is not None:
            for row in self._writing.nonzero()[0].tolist():
                self._allowed[row] = self._mask_after(self._prompts[row], self._texts.response(row))
                infos[row] = {"action_mask": self._allowed[row].copy()}
        return rewards, terminated, truncated, infos

    def cut(self, row: int) -> Info:
        """End the row's text from outside, as `max_episode_steps` does, with the info that it then has."""
        info = self._latest[row] = self._cut(row)
        self._done[row] = self._truncated[row] = True
        return info.copy()

    def action_masks(self) -> Bool:
        """bool[B, V]: tokens the task allows next; all where it has no `action_mask`, and in rows that have ended."""
        self._require_started()
        masks = np.ones((self.num_envs, self.tokenizer.vocab_size), dtype=np.bool_)
        for row, allowed in self._allowed.items():
            masks[row] = allowed
        return masks

    def describe(self, row: int) -> str:
        """One text as a person reads it: prompt, response so far, reward parts once it has ended."""
        if not self._prompts:
            return "(not started: call reset)"
        text = f"{self._prompts[row].text} -> {self.tokenizer.decode(self._texts.response(row).tolist())}"
        score = self._latest[row].get("score")
        if score is None or not score.raw:
            return text
        ledger = " ".join(f"{score.weights[name]:+g}*{name}({raw:.3f})" for name, raw in score.raw.items())
        return f"{text}  [{self._latest[row]['finish_reason']}]  reward {score.total:.3f} = {ledger}"

    # ---------------------------------------------------------------- starting texts

    def _take_options(self, seed: Seeds, options: ResetOptions | None) -> Int:
        """Read `reset`'s arguments; the rows to start."""
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"reset options are a table of names and values, got {options!r}")
        require_seeds(seed, self.num_envs)
        given = dict(options) if options else None  # an empty table is what Gymnasium's vectors leave of a mask alone
        rows = np.arange(self.num_envs)
        if given is not None and "reset_mask" in given:
            mask = np.asarray(given.pop("reset_mask"))
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise EnvironmentMisuse(f"reset_mask must be bool[{self.num_envs}] with a True in it, got {mask!r}")
            if not self._prompts and not mask.all():
                raise EnvironmentMisuse("the first reset starts all rows: leave reset_mask out")
            rows = np.flatnonzero(mask)
            given = given or None  # a mask alone changes no option
        if given is None and seed is not None and len(rows) == self.num_envs:
            given = {}  # a seed begins anew: what came before must not matter
        if given is not None:
            self._set_options(given, len(rows) < self.num_envs)
        if self._waits_for_group and len(np.unique(rows // self._group_size)) * self._group_size != len(rows):
            raise EnvironmentMisuse(
                f"reset_mask splits a group of {self._group_size} rows that are scored together: reset all of them"
            )
        if seed is not None or not self._order.seeded:
            self._order.seed(seed, rows)
        return rows

    def _set_options(self, options: ResetOptions, some_rows_go_on: bool) -> None:
        known = (*OPTIONS, *option_names(self.task))
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ConfigError(*(f"reset option {key!r} is unknown{did_you_mean(str(key), known)}" for key in unknown))
        group_size = options.get("group_size", 1)
        if not isinstance(group_size, (int, np.integer)) or group_size < 1 or self.num_envs % group_size:
            raise ConfigError(f"group_size {group_size!r} does not divide the {self.num_envs} rows of the environment")
        if "indices" in options:
            indices, groups = np.asarray(options["indices"], dtype=object), self.num_envs // group_size
            if indices.ndim != 1 or not all(is_index(index) for index in indices):
                raise ConfigError(
                    f"indices are whole numbers of at least 0, one for each group, got {options['indices']!r}"
                )
            if len(indices) != groups:
                raise ConfigError(f"indices names {len(indices)} prompts, the environment has {groups} groups")
        if some_rows_go_on and group_size != self._group_size:
            raise EnvironmentMisuse("group_size can change only when all rows are reset")
        prefixes = None
        if "prefix" in options:
            if self._reply is not None:
                raise ConfigError("prefix: the texts of a conversation begin with the agent's first turn")
            prefixes = Prefixes.read(options["prefix"], self.num_envs // int(group_size))
        self._prefixes = prefixes
        self._options = copy.deepcopy(dict(options))
        self._group_size = int(group_size)

    def _start(self, rows: Int) -> dict[int, Info]:
        """New prompts for `rows`; their infos."""
        if not rows.size:
            return {}
        # First what may fail (a prompt that is too long), then what changes: a refused reset leaves the texts alone.
        index_of_row = {int(row): self._prompt_index(int(row)) for row in rows}
        asked: dict[int, tuple[Prompt, Int]] = {}
        for index in dict.fromkeys(index_of_row.values()):  # a group shares its prompt: read and encode it once
            prompt = prompt_at(self.task, index % (self.task.size or index + 1), self._options)  # it may be asked again
            asked[index] = prompt, self.prompt_ids(prompt)
        begun: dict[tuple[int, int], tuple[list[int], Bool | None]] = {}  # by prompt and group
        for row, index in index_of_row.items():
            if (key := (index, row // self._group_size)) not in begun:
                begun[key] = self._beginning(asked[index][0], row // self._group_size)
        self.settle(rows)
        if not self._prompts:
            self._prompts = [Prompt(id="", text="")] * self.num_envs
        infos: dict[int, Info] = {}
        self._texts.start(rows, [asked[index][1] for index in index_of_row.values()], self.max_new_tokens)
        for row, index in index_of_row.items():
            prompt, (prefix, allowed) = asked[index][0], begun[index, row // self._group_size]
            if prefix:
                self._texts.insert(row, prefix)
            self._prompts[row] = prompt
            self._messages.pop(row, None)
            infos[row] = self._latest[row] = {"prompt": prompt.text, "prompt_id": prompt.id}
            if allowed is not None:
                self._allowed[row] = allowed
                infos[row]["action_mask"] = allowed.copy()
        self._order.advance(rows)
        self._steps[rows] = 0
        self._writing[rows] = True
        self._unpaid.difference_update(index_of_row)
        for flags in (self._done, self._terminated, self._truncated):
            flags[rows] = False
        return infos

    def _prompt_index(self, row: int) -> int:
        """Which prompt of the task comes next in `row`: as `indices` says, else as the row's stream says."""
        if "indices" in self._options:
            return int(self._options["indices"][row // self._group_size])
        return self._order.next_index(row, row - row % self._group_size, self.task.size)

    def _beginning(self, prompt: Prompt, group: int) -> tuple[list[int], Bool | None]:
        """What the texts of a group begin with, and what the task allows after it."""
        prefix: list[int] = []
        if self._prefixes is not None:
            prefix = self._prefixes.tokens(prompt, group, self.tokenizer, self.max_new_tokens)
        if self._action_mask is None:
            return prefix, None
        return prefix, self._mask_after(prompt, np.array(prefix, dtype=np.int64))

    def prompt_ids(self, prompt: Prompt) -> Int:
        """int64[P]. Raises DataError for a prompt without a token, one that is too long, and for tools that the model
        cannot call."""
        require_calls(self.tokenizer, prompt)
        return np.array(prompt_ids_within(self.tokenizer, prompt, self.max_prompt_tokens), dtype=np.int64)

    # ---------------------------------------------------------------- writing

    def _require_allowed(self, tokens: Int) -> None:
        """Hold the tokens that will be written to the task's mask, each at its own place."""
        for row in self._writing.nonzero()[0].tolist():
            response, allowed, room = self._texts.response(row), self._allowed[row], self._texts.room(row)
            written = [token for token in np.atleast_1d(tokens[row]).tolist() if token < self.tokenizer.vocab_size]
            stop_state = self._texts.stop_states[[row]]
            for place, token in enumerate(written[:room]):
                if place:
                    allowed = self._mask_after(self._prompts[row], response)
                if not allowed[token]:
                    raise EnvironmentMisuse(
                        f"token id {token} in row {row} is forbidden: the task's action_mask allows {allowed.sum()} of "
                        f"{len(allowed)} there. Choose among info['action_mask'] (or action_masks())"
                    )
                if token in self._end_ids:
                    break
                if self.stops is not None:
                    stop_state = self.stops.after(stop_state, np.array([token]))
                    if self.stops.completed(stop_state).any():
                        break
                response = np.append(response, token)

    def _end_turn(self, row: int, reason: FinishReason) -> None:
        """The agent's turn is over: the episode ends, or the task answers and the conversation goes on."""
        if reason != "length" and self._reply is not None:
            episode = self._episode(row, reason)
            answer = self._reply(episode)
            if answer is None:
                reason = "task"
            else:
                ids, said = self._answered(row, episode, answer)
                if self._texts.insert(row, ids):
                    if said:
                        self._messages[row] = said
                    return
                reason = "length"  # no room is left for the answer and a token after it
        self._rest(row)
        self._unpaid.add(row)
        self._reasons[row] = reason

    def _answered(
        self, row: int, episode: Episode, answer: str | Sequence[JsonView]
    ) -> tuple[list[int], tuple[JsonView, ...]]:
        """What is written of the task's answer and, where it is in messages, all that was said. Raises DataError."""
        if isinstance(answer, str):
            return self.tokenizer.encode(answer), ()
        *before, own = self._said_so_far(row, episode.turns)
        if answer and answer[0].get("role") == "assistant":  # the turn as the task has understood it
            own, answer = answer[0], answer[1:]
        last = int(episode.response_ids[-1])
        closed_by = last if last in self._end_ids else None
        ids = reply_ids(self.tokenizer, self._prompts[row], [*before, own], answer, closed_by)
        return ids, (*before, own, *answer)

    def _said_so_far(self, row: int, turns: Sequence[str]) -> tuple[JsonView, ...]:
        """The messages since the prompt, the agent's present turn the last of them."""
        return (*self._messages.get(row, ()), {"role": "assistant", "content": turns[-1] if turns else ""})

    def _cut(self, row: int) -> Info:
        """Nothing more is written in the row, and what is there has no score; its info."""
        self._rest(row)
        self._unpaid.discard(row)
        return {"text_episode": self._episode(row, "truncated"), "score": _NO_SCORE, "finish_reason": "truncated"}

    def _rest(self, row: int) -> None:
        """Nothing more is written in the row."""
        self._writing[row] = False
        self._allowed.pop(row, None)

    def _rows_due(self, writing: Bool) -> list[int]:
        """The rows whose reward is due now: finished ones, and where a part looks at groups, whole groups.

        Where a part looks at the whole batch, none as long as some are `writing`; `scoring_meanwhile` sees to that.
        """
        if self._waits_for_batch and self._scoring is None and writing.any():
            return []
        rows = sorted(self._unpaid)
        if self._waits_for_group:
            size = self._group_size
            rows = [row for row in rows if self._unpaid.issuperset(range(row - row % size, row - row % size + size))]
        return rows

    def _scored(self, due: Sequence[int]) -> list[tuple[int, Episode, Score]]:
        """The rows that are paid now; those that are scored meanwhile, when nobody writes any more."""
        ended = [(row, self._episode(row, self._reasons[row])) for row in due]
        episodes = [episode for _, episode in ended]
        group_size = self._group_size if self._waits_for_group else 1
        if self._scoring is None:
            scores = self.reward.score(episodes, group_size, rows=self.num_envs)
            return [(row, episode, score) for (row, episode), score in zip(ended, scores, strict=True)]
        if ended:
            self._scoring.begin(episodes, group_size, rows=self.num_envs, places=due)
            self._handed_in += ended
            self._unpaid.difference_update(due)
            self._done[due] = True
        if self._writing.any():
            return []
        ended, self._handed_in = self._handed_in, []
        return [(row, episode, score) for (row, episode), score in zip(ended, self._scoring.finish(), strict=True)]

    def _pay(self, row: int, episode: Episode, score: Score, rewards: Float) -> Info:
        """Put the reward where it belongs; the info of a finished row."""
        self._unpaid.discard(row)
        failed: Info = {"reward_failures": dict(score.failed)} if score.failed else {}
        if not score.raw:
            return {"text_episode": episode, "score": score, "finish_reason": episode.finish_reason, **failed}
        rewards[row] = score.total
        self._unobserved[row] = episode, score
        token_rewards = {name: np.zeros(self.max_new_tokens) for name in score.tokens}
        for name, values in score.tokens.items():
            token_rewards[name][: len(values)] = values
        return {
            "text_episode": episode,
            "score": score,
            "finish_reason": episode.finish_reason,
            "prompt_length": len(episode.prompt_ids),
            "response_length": len(episode.response_ids),
            "reward_parts": dict(score.raw),
            "reward_weights": dict(score.weights),
            "token_rewards": token_rewards,
            **failed,
        }

    def _episode(self, row: int, reason: FinishReason) -> Episode:
        texts = self._texts
        start, end = int(texts.prompt_length[row]), texts.length(row)
        ids, actions = texts.ids[row, :end].copy(), texts.actions[row, start:end].copy()
        said = ids[start:].tolist()
        if said and said[-1] in self._end_ids and actions[-1]:
            said.pop()
        response = self.tokenizer.decode(said)
        if self.stops is not None and self.stops.completed(texts.stop_states[[row]])[0]:
            last_turn = self.tokenizer.decode(ids[texts.turn_start[row] :].tolist())
            response = without_stop_string(response, last_turn, self.stops)
        turns = () if self._reply is None else turns_of(ids[start:][actions], self.tokenizer, self.stops)
        return Episode(
            prompt=self._prompts[row],
            prompt_ids=ids[:start],
            response=response,
            response_ids=ids[start:],
            finish_reason=reason,
            actions=actions,
            logprobs=texts.logprobs[row, start:end].copy() if self._needs_logprobs else None,
            turns=turns,
            messages=self._said_so_far(row, turns) if row in self._messages else (),
        )

    # ---------------------------------------------------------------- small things

    def _mask_after(self, prompt: Prompt, response_ids: Int) -> Bool:
        """bool[V]: what the task allows next. Raises DataError for what is no mask, and for one that allows nothing."""
        assert self._action_mask is not None  # whoever asks has looked
        mask = np.array(self._action_mask(prompt, response_ids))
        if mask.dtype != np.bool_ or mask.shape != (self.tokenizer.vocab_size,) or not mask.any():
            raise DataError(
                f"the action_mask of the task {type(self.task).__name__} for prompt {prompt.id!r} after "
                f"{len(response_ids)} tokens must be bool[{self.tokenizer.vocab_size}] with a True in it, got {mask!r}"
            )
        return mask

    def _require_open(self) -> None:
        if self.closed:
            raise EnvironmentMisuse("the environment is closed: make a new one")

    def _require_started(self) -> None:
        self._require_open()
        if not self._prompts:
            raise EnvironmentMisuse("step before reset: call reset() first")


def _require_positive(**settings: object) -> None:
    for name, value in settings.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def row_of(observation: Observation, row: int) -> Observation:
    """What one row of the observation shows."""
    return {"input_ids": observation["input_ids"][row], "attention_mask": observation["attention_mask"][row]}
