"""Text generation as a vector environment: B texts written side by side. The machine behind every view."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlhf_env.envs.rewards import RewardSpec, Score, load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError, EnvironmentMisuse, did_you_mean
from rlhf_env.types import Bool, Episode, FinishReason, Float, Int, Observation, Prompt, Task, Tokenizer

_PROMPT_ORDER = 1  # the purpose of the one random stream a row has: (seed, purpose, epoch)
_OWN_OPTIONS = ("group_size", "indices", "reset_mask")

Info = dict[str, Any]


class TextVectorEnv(VectorEnv[Any, Any, Any]):
    """B texts written side by side; `action_length` tokens of each per step.

    Observation: `{"input_ids": int64[B, L], "attention_mask": int8[B, L]}`, padded on the right, with
    L = max_prompt_tokens + max_new_tokens. Action: token ids int64[B] at `action_length` 1, else
    int64[B, action_length] in which the value V (the vocabulary's size) means "nothing here"; what follows the end
    token is ignored. If a reward part needs to know how likely the agent found its action, the action is
    `{"tokens": ..., "probs": float64 of the same shape}`.

    Rewards are paid when a text ends; then `info` holds `text_episode` (an Episode), `finish_reason`, `reward_parts`
    (unweighted; `sum(weight * part) == reward`), `reward_weights`, `token_rewards` (per part, float64[max_new_tokens],
    unweighted, zero past the end), `prompt_length` and `response_length`.

    Reset options: `group_size` G gives G neighbouring rows the same prompt; `indices` (one task index per group)
    chooses the prompts; `reset_mask` as in Gymnasium; others must be among the task's `option_names`. Options stay in
    force until a reset that gives options or a seed.

    Args:
        task, reward, tokenizer: objects, names, or tables of plain data (see `load_task`, `load_rewards`,
            `load_tokenizer`).
        action_length: tokens per step; None is a whole response per step.
        max_episode_steps: cut an unfinished text after so many steps: `truncated`, without a score.
        provided: what rewards named by string may be lent (`reference`).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # Gymnasium's own annotation
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str | Mapping[str, Any] | Task = "count",
        reward: RewardSpec = None,
        tokenizer: str | Tokenizer = "bytes",
        max_new_tokens: int = 16,
        max_prompt_tokens: int = 32,
        action_length: int | None = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        provided: Mapping[str, Any] | None = None,
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
        self.reward = load_rewards(reward, self.task, {"tokenizer": self.tokenizer, **(provided or {})})
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.action_length = action_length
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self._needs_logprobs = self.reward.needs_logprobs
        self._waits_for_group = self.reward.scores_groups
        self._reply = getattr(self.task, "reply", None)
        self._action_mask = getattr(self.task, "action_mask", None)

        vocabulary, context = self.tokenizer.vocab_size, max_prompt_tokens + max_new_tokens
        self.single_observation_space = gym.spaces.Dict(
            input_ids=gym.spaces.Box(0, vocabulary - 1, (context,), np.int64),
            attention_mask=gym.spaces.Box(0, 1, (context,), np.int8),
        )
        self.single_action_space = _action_space(vocabulary, action_length, self._needs_logprobs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._ids: Int = np.full((num_envs, context), self.tokenizer.pad_id, dtype=np.int64)
        self._chosen: Bool = np.zeros((num_envs, context), dtype=np.bool_)
        self._logprobs: Float = np.zeros((num_envs, context), dtype=np.float64)
        self._length: Int = np.zeros(num_envs, dtype=np.int64)
        self._prompt_length: Int = np.zeros(num_envs, dtype=np.int64)
        self._limit: Int = np.zeros(num_envs, dtype=np.int64)  # the length at which a text is full
        self._places: Int = np.arange(context)
        self._steps: Int = np.zeros(num_envs, dtype=np.int64)
        self._finished: Bool = np.zeros(num_envs, dtype=np.bool_)  # the text has ended (it may wait for its group)
        self._done: Bool = np.zeros(num_envs, dtype=np.bool_)  # and its reward has been paid
        self._terminated: Bool = np.zeros(num_envs, dtype=np.bool_)
        self._truncated: Bool = np.zeros(num_envs, dtype=np.bool_)
        self._prompts: list[Prompt] = []
        self._reasons: list[FinishReason] = ["stop"] * num_envs
        self._seeds: list[int] = []
        self._episode_count: Int = np.zeros(num_envs, dtype=np.int64)
        self._orders: dict[tuple[int, int], Int] = {}
        self._options: dict[str, Any] = {}
        self._group_size = 1
        self._unobserved: dict[int, Episode] = {}
        self._latest: list[Info] = [{} for _ in range(num_envs)]

    # ---------------------------------------------------------------- Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, Info]:
        """Start new texts in all rows (or in those of `options["reset_mask"]`).

        Raises ConfigError for an option that is not one, DataError for a prompt that does not fit.
        """
        self._require_open()
        rows = self._take_options(seed, options)
        infos = self._collated(self._start(rows))  # before looking: the observation is of the new texts
        return self.observation(), infos

    def step(self, actions: Any) -> tuple[Any, Float, Bool, Bool, Info]:
        """Write the next tokens of each row. Rows that have ended ignore their action.

        Raises EnvironmentMisuse before `reset`, and for an action that is not in the action space.
        """
        was_done = self._done.copy()
        rewards, terminated, truncated, row_infos = self.advance(actions)
        if self.autoreset_mode == AutoresetMode.DISABLED:
            return (
                self.observation(),
                rewards,
                self._terminated.copy(),
                self._truncated.copy(),
                self._collated(row_infos),
            )
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            row_infos |= self._start(was_done.nonzero()[0])
            return self.observation(), rewards, terminated, truncated, self._collated(row_infos)
        ended: list[int] = self._done.nonzero()[0].tolist()
        last: Mapping[str, Any] = self.observation()
        finals = {
            row: {"final_obs": {key: value[row] for key, value in last.items()}, "final_info": row_infos[row]}
            for row in ended
        }
        row_infos |= self._start(np.array(ended, dtype=np.int64))
        infos = self._collated(finals) | self._collated(row_infos)
        return self.observation(), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """The texts so far: returned for "ansi", printed for "human"."""
        texts = tuple(self.describe(row) for row in range(self.num_envs))
        if self.render_mode == "ansi":
            return texts
        if self.render_mode == "human":
            print("\n".join(texts), flush=True)
        return None

    # ---------------------------------------------------------------- what the single view and the loop use as well

    def observation(self) -> Observation:
        """A fresh copy of the texts: `input_ids` int64[B, L], `attention_mask` int8[B, L]."""
        on_text = self._places < self._length[:, None]
        return {"input_ids": self._ids.copy(), "attention_mask": on_text.view(np.int8)}

    @property
    def group_size(self) -> int:
        """Neighbouring rows that share a prompt, as the last reset asked."""
        return self._group_size

    @property
    def writing(self) -> Bool:
        """bool[B]: rows whose text is not finished."""
        return ~(self._finished | self._done)

    def settle(self, rows: Int | None = None) -> None:
        """Show the ended texts (of `rows`) to the rewards that remember, as the next reset would."""
        chosen = range(self.num_envs) if rows is None else map(int, rows)
        ended = [self._unobserved.pop(row) for row in chosen if row in self._unobserved]
        if ended:
            self.reward.observe(ended)

    def has_ended(self, row: int) -> bool:
        """Whether the row's episode is over and paid."""
        return bool(self._done[row])

    def latest_info(self, row: int) -> Info:
        """The info of the row's last reset or end."""
        return dict(self._latest[row])

    def advance(self, actions: Any) -> tuple[Float, Bool, Bool, dict[int, Info]]:
        """The step without autoreset: rewards, terminated and truncated of this step, and the infos of ended rows."""
        tokens, logprobs = self._read(actions)
        stepping = ~self._done
        self._append(tokens, logprobs)
        self._steps += stepping
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[int, Info] = {}
        for done, episode, score in self._rows_to_score():
            infos[done] = self._pay(done, episode, score, rewards)
            terminated[done] = True
        if self.max_episode_steps is not None:
            truncated = stepping & (self._steps >= self.max_episode_steps)
            for row in np.flatnonzero(truncated & ~terminated):
                infos[int(row)] = {"text_episode": self._episode(int(row), "truncated"), "finish_reason": "truncated"}
        if infos:
            self._done |= terminated | truncated
            self._terminated |= terminated
            self._truncated |= truncated
        for ended, info in infos.items():
            self._latest[ended] = info
        if self._action_mask is not None:
            for row in np.flatnonzero(stepping & ~self._done):
                infos[int(row)] = {"action_mask": self._mask_of(int(row))}
        return rewards, terminated, truncated, infos

    def action_masks(self) -> Bool:
        """bool[B, V]: tokens the task allows next (all of them unless the task has an `action_mask`)."""
        self._require_started()
        return np.stack([self._mask_of(row) for row in range(self.num_envs)])

    def describe(self, row: int) -> str:
        """One text as a person reads it: prompt, response so far, reward parts once it has ended."""
        if not self._prompts:
            return "(not started: call reset)"
        start, end = self._prompt_length[row], self._length[row]
        text = f"{self._prompts[row].text} -> {self.tokenizer.decode(self._ids[row, start:end].tolist())}"
        parts = self._latest[row].get("reward_parts")
        if not parts:
            return text
        weights = self._latest[row]["reward_weights"]
        total = sum(weights[name] * raw for name, raw in parts.items())
        ledger = " ".join(f"{weights[name]:+g}*{name}({raw:.3f})" for name, raw in parts.items())
        return f"{text}  [{self._latest[row]['finish_reason']}]  reward {total:.3f} = {ledger}"

    # ---------------------------------------------------------------- starting texts

    def _take_options(self, seed: int | Sequence[int | None] | None, options: Mapping[str, Any] | None) -> Int:
        """Read `reset`'s arguments; the rows to start."""
        given = dict(options) if options is not None else None
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
        if seed is not None or not self._seeds:
            self._set_seeds(seed, rows)
        return rows

    def _set_options(self, options: dict[str, Any], some_rows_go_on: bool) -> None:
        known = (*_OWN_OPTIONS, *getattr(self.task, "option_names", ()))
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ConfigError(*(f"reset option {key!r} is unknown{did_you_mean(key, known)}" for key in unknown))
        group_size = options.get("group_size", 1)
        if not isinstance(group_size, (int, np.integer)) or group_size < 1 or self.num_envs % group_size:
            raise ConfigError(f"group_size {group_size!r} does not divide the {self.num_envs} rows of the environment")
        indices = options.get("indices")
        if indices is not None and len(indices) != self.num_envs // group_size:
            groups = self.num_envs // group_size
            raise ConfigError(f"indices names {len(indices)} prompts, the environment has {groups} groups")
        if some_rows_go_on and group_size != self._group_size:
            raise EnvironmentMisuse("group_size can change only when all rows are reset")
        self._options = copy.deepcopy(options)
        self._group_size = int(group_size)

    def _set_seeds(self, seed: int | Sequence[int | None] | None, rows: Int) -> None:
        if seed is None:
            entropy = int(np.random.SeedSequence().generate_state(1)[0])
            seeds: list[int | None] = [entropy + row for row in range(self.num_envs)]
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise EnvironmentMisuse(f"{len(seeds)} seeds for {self.num_envs} rows")
        if not self._seeds:
            self._seeds = [0] * self.num_envs
        for row in rows:
            chosen = seeds[row]
            self._seeds[row] = int(np.random.SeedSequence().generate_state(1)[0]) if chosen is None else chosen
            self._episode_count[row] = 0

    def _start(self, rows: Int) -> dict[int, Info]:
        """New prompts for `rows`; their infos."""
        if not rows.size:
            return {}
        # First what may fail (a prompt that is too long), then what changes: a refused reset leaves the texts alone.
        chosen = {int(row): self._prompt_index(int(row)) for row in rows}
        encoded: dict[int, tuple[Prompt, list[int]]] = {}
        for index in dict.fromkeys(chosen.values()):  # a group shares its prompt: read and encode it once
            prompt = self.task.prompt(index, self._options)
            encoded[index] = (prompt, self._encode(prompt))
        self.settle(rows)
        if not self._prompts:
            self._prompts = [Prompt(id="", text="")] * self.num_envs
        infos: dict[int, Info] = {}
        for row, index in chosen.items():
            prompt, ids = encoded[index]
            self._prompts[row] = prompt
            self._ids[row] = self.tokenizer.pad_id
            self._ids[row, : len(ids)] = ids
            self._prompt_length[row] = self._length[row] = len(ids)
            infos[row] = self._latest[row] = {"prompt": prompt.text, "prompt_id": prompt.id}
        self._episode_count[rows] += 1
        self._limit[rows] = self._prompt_length[rows] + self.max_new_tokens
        self._chosen[rows] = True  # until the environment writes there
        self._logprobs[rows] = 0.0
        self._steps[rows] = 0
        for flags in (self._finished, self._done, self._terminated, self._truncated):
            flags[rows] = False
        if self._action_mask is not None:
            for row, info in infos.items():
                info["action_mask"] = self._mask_of(row)
        return infos

    def _prompt_index(self, row: int) -> int:
        """Which prompt of the task comes next in `row`: as `indices` says, else by shuffled epochs of the row's stream.

        The stream belongs to the first row of the group, so a group shares its prompts.
        """
        if "indices" in self._options:
            return int(self._options["indices"][row // self._group_size])
        leader = row - row % self._group_size
        seed, count, size = self._seeds[leader], int(self._episode_count[row]), self.task.size
        if size is None:
            return int(np.random.default_rng([seed, _PROMPT_ORDER, count]).integers(2**31))
        if size == 1:
            return 0
        epoch, place = divmod(count, size)
        key = (seed, epoch)
        if key not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known[1] >= epoch - 1}
            self._orders[key] = np.random.default_rng([seed, _PROMPT_ORDER, epoch]).permutation(size)
        return int(self._orders[key][place])

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = self.tokenizer.encode(prompt.text)
        if not ids:
            raise DataError(f"prompt {prompt.id!r} has no token: the first response token needs one before it")
        if len(ids) > self.max_prompt_tokens:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, the environment takes {self.max_prompt_tokens}: "
                f"raise max_prompt_tokens or shorten it ({prompt.text[:60]!r})"
            )
        return ids

    # ---------------------------------------------------------------- writing

    def _read(self, actions: Any) -> tuple[Int, Float | None]:
        """Tokens int64[B, k] and their log-probabilities float64[B, k], checked for the rows that write."""
        self._require_started()
        shape = (self.num_envs,) if self.action_length == 1 else (self.num_envs, self.action_length)
        probs = None
        if self._needs_logprobs:
            if not isinstance(actions, Mapping) or set(actions) != {"tokens", "probs"}:
                raise EnvironmentMisuse(
                    "a reward part needs to know how likely the action was: "
                    "pass {'tokens': ids, 'probs': their probabilities}"
                )
            actions, probs = actions["tokens"], np.asarray(actions["probs"])
            if probs.dtype.kind not in "fiu":
                raise EnvironmentMisuse(f"probs are numbers, got dtype {probs.dtype}")
        tokens = np.asarray(actions)
        if tokens.dtype.kind not in "iu":
            raise EnvironmentMisuse(f"token ids are integers, got an action of dtype {tokens.dtype}")
        if tokens.shape != shape:
            raise EnvironmentMisuse(f"an action has shape {shape}, got {tokens.shape}")
        tokens = tokens.reshape(self.num_envs, self.action_length).astype(np.int64)
        largest = self.tokenizer.vocab_size - (self.action_length == 1)
        wrong = tokens.view(np.uint64) > largest  # negative ids too: as unsigned numbers they are huge
        for row, column in np.argwhere(wrong) if np.count_nonzero(wrong) else ():
            if self.writing[row]:  # what rows at rest say is nobody's business
                raise EnvironmentMisuse(f"token id {tokens[row, column]} in row {row} is outside 0..{largest}")
        if probs is None:
            return tokens, None
        if probs.shape != shape:
            raise EnvironmentMisuse(f"probs have shape {probs.shape}, tokens {shape}")
        probs = probs.reshape(tokens.shape).astype(np.float64)
        counted = self.writing[:, None] & (tokens < self.tokenizer.vocab_size)
        if not ((probs > 0.0) & (probs <= 1.0 + 1e-9))[counted].all():
            raise EnvironmentMisuse("probs must lie in (0, 1]: the probability the policy gave to each token it chose")
        return tokens, np.log(np.where(counted, probs, 1.0))

    def _append(self, tokens: Int, logprobs: Float | None) -> None:
        """Write one action's tokens, up to the end token or the length limit of each row."""
        rows = self.writing.nonzero()[0]
        ended: dict[int, bool] = {}  # rows whose turn is over, and whether the end token said so
        for column in range(self.action_length):
            ids = tokens[rows, column]
            if self.action_length > 1:
                says = ids < self.tokenizer.vocab_size
                writers, ids = rows[says], ids[says]
            else:
                writers = rows
            at = self._length[writers]
            self._ids[writers, at] = ids
            if logprobs is not None:
                self._logprobs[writers, at] = logprobs[writers, column]
            at += 1
            self._length[writers] = at
            stopped = ids == self.tokenizer.end_id
            over = stopped | (at == self._limit[writers])
            if np.count_nonzero(over):  # a tenth of the time of over.any(), and this line runs for every token
                ended |= zip(writers[over].tolist(), stopped[over].tolist(), strict=True)
                rows = np.setdiff1d(rows, writers[over], assume_unique=True)
                if not rows.size:
                    break
        for row in sorted(ended):
            self._end_turn(row, ended[row])

    def _end_turn(self, row: int, stopped: bool) -> None:
        """The agent's turn is over: the episode ends, or the task answers and the conversation goes on."""
        reason: FinishReason = "stop" if stopped else "length"
        if stopped and self._reply is not None:
            answer = self._reply(self._episode(row, "stop"))
            if answer is None:
                reason = "task"
            else:
                ids = self.tokenizer.encode(answer)
                at = int(self._length[row])
                if at + len(ids) < self._prompt_length[row] + self.max_new_tokens:
                    self._ids[row, at : at + len(ids)] = ids
                    self._chosen[row, at : at + len(ids)] = False
                    self._length[row] += len(ids)
                    return
                reason = "length"  # no room is left for the answer and a token after it
        self._finished[row] = True
        self._reasons[row] = reason

    def _rows_to_score(self) -> list[tuple[int, Episode, Score]]:
        """The rows whose reward is due now: finished ones, and where a part scores groups, whole groups."""
        due = self._finished & ~self._done
        if self._waits_for_group:
            due &= np.repeat(due.reshape(-1, self._group_size).all(axis=1), self._group_size)
        rows: list[int] = due.nonzero()[0].tolist()
        if not rows:
            return []
        episodes = [self._episode(row, self._reasons[row]) for row in rows]
        scores = self.reward.score(episodes, self._group_size if self._waits_for_group else 1)
        return list(zip(rows, episodes, scores, strict=True))

    def _pay(self, row: int, episode: Episode, score: Score, rewards: Float) -> Info:
        """Put the reward where it belongs; the info of a finished row."""
        rewards[row] = score.total
        self._unobserved[row] = episode
        token_rewards = {name: np.zeros(self.max_new_tokens) for name in score.tokens}
        for name, values in score.tokens.items():
            token_rewards[name][: len(values)] = values
        return {
            "text_episode": episode,
            "finish_reason": episode.finish_reason,
            "prompt_length": len(episode.prompt_ids),
            "response_length": len(episode.response_ids),
            "reward_parts": dict(score.raw),
            "reward_weights": dict(score.weights),
            "token_rewards": token_rewards,
        }

    def _episode(self, row: int, reason: FinishReason) -> Episode:
        start, end = int(self._prompt_length[row]), int(self._length[row])
        ids = self._ids[row, :end].copy()
        ends_with_end = end > start and self._chosen[row, end - 1] and ids[-1] == self.tokenizer.end_id
        return Episode(
            prompt=self._prompts[row],
            prompt_ids=ids[:start],
            response=self.tokenizer.decode(ids[start : end - 1 if ends_with_end else end].tolist()),
            response_ids=ids[start:],
            finish_reason=reason,
            actions=self._chosen[row, start:end].copy(),
            logprobs=self._logprobs[row, start:end].copy() if self._needs_logprobs else None,
            turns=self._turns(ids[start:], self._chosen[row, start:end]) if self._reply is not None else (),
        )

    def _turns(self, ids: Int, chosen: Bool) -> tuple[str, ...]:
        """What the agent said, turn by turn: end tokens close them, and a text may stop before the last is closed."""
        turns: list[list[int]] = [[]]
        for token in ids[chosen].tolist():
            if token == self.tokenizer.end_id:
                turns.append([])
            else:
                turns[-1].append(token)
        if not turns[-1]:
            turns.pop()
        return tuple(self.tokenizer.decode(turn) for turn in turns)

    # ---------------------------------------------------------------- small things

    def _collated(self, row_infos: Mapping[int, Info]) -> Info:
        """Infos of rows as Gymnasium's vector infos: one array per key, and a mask under `_key`.

        The same as calling Gymnasium's `_add_info` for row after row, a key at a time: half the cost of a text's end.
        """
        infos: Info = {}
        row_infos = dict(sorted(row_infos.items()))
        for key in dict.fromkeys(key for info in row_infos.values() for key in info):
            of_rows = {row: info[key] for row, info in row_infos.items() if key in info}
            rows, first = list(of_rows), next(iter(of_rows.values()))
            if isinstance(first, dict) and key != "final_obs":
                infos[key] = self._collated(of_rows)
            elif isinstance(first, np.ndarray):
                infos[key] = np.zeros((self.num_envs, *first.shape), dtype=first.dtype)
                infos[key][rows] = list(of_rows.values())
            else:
                number = isinstance(first, (int, float, np.number))
                infos[key] = np.zeros(self.num_envs, type(first)) if number else np.full(self.num_envs, None, object)
                for row, value in of_rows.items():
                    infos[key][row] = value
            infos[f"_{key}"] = np.zeros(self.num_envs, dtype=np.bool_)
            infos[f"_{key}"][rows] = True
        return infos

    def _mask_of(self, row: int) -> Bool:
        if self._action_mask is None:
            return np.ones(self.tokenizer.vocab_size, dtype=np.bool_)
        start, end = self._prompt_length[row], self._length[row]
        return np.asarray(self._action_mask(self._prompts[row], self._ids[row, start:end].copy()), dtype=np.bool_)

    def _require_open(self) -> None:
        if self.closed:
            raise EnvironmentMisuse("the environment is closed: make a new one")

    def _require_started(self) -> None:
        self._require_open()
        if not self._prompts:
            raise EnvironmentMisuse("step before reset: call reset() first")


def _action_space(vocabulary: int, length: int, with_probs: bool) -> gym.spaces.Space[Any]:
    tokens: gym.spaces.Space[Any] = (
        gym.spaces.Discrete(vocabulary)
        if length == 1
        else gym.spaces.MultiDiscrete(np.full(length, vocabulary + 1, dtype=np.int64))
    )
    if not with_probs:
        return tokens
    shape = () if length == 1 else (length,)
    return gym.spaces.Dict(tokens=tokens, probs=gym.spaces.Box(0.0, 1.0, shape, np.float64))


def _require_positive(**settings: Any) -> None:
    for name, value in settings.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
