"""The contracts of rewards, tasks and agents as checks that any plugin's own tests can run.

    from rlhf_env.testing import check_reward, make_episode

    def test_haiku_keeps_the_contract():
        check_reward(Haiku())                       # its declared range, odd texts, batch mates, ...

    def test_haiku_likes_a_haiku():
        assert Haiku()([make_episode("Write.", POEM)])[0] == 1.0

    def test_my_agent_keeps_the_contract():
        check_agent(lambda setup: MyAgent(setup, MyAgent.Config(lr=0.01)))

Each check raises ContractError (an AssertionError) that says which rule was broken, what was expected, what came, and
for which episode. Only `check_agent` needs torch, and imports it when it is called.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_env.envs.rewards import from_function
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer
from rlhf_env.errors import ConfigError, ContractError
from rlhf_env.types import (
    AnyReward,
    Episode,
    FinishReason,
    Float,
    GroupReward,
    Observation,
    Options,
    Prompt,
    Remembers,
    Task,
    Tokenizer,
    TokenReward,
)

if TYPE_CHECKING:
    from rlhf_env.learning.agent import Agent, Decision, Metrics, Setup
    from rlhf_env.learning.rollout import Rollout

_PROMPTS = ("How are you?", "Tell me more.", "emoji 😀, \u05e9\u05dc\u05d5\u05dd, NUL \x00, lone \ud83d")
_ODD_RESPONSES = (
    "",
    " ",
    "\n\t\r\n",
    "?",
    "Fine, thank you.",
    "GREAT great Great! great",
    "😀👍🏽👩‍👩‍👧 é é ﬁ",
    "\u202eשלום עולם\u202c",
    "a\x00b",
    "nan inf -1e999 None {} %s {0} \\",
    "<|end|> <b>&amp;</b> ```json {",
    "line one\nline two\nline three",
)


def make_episode(
    prompt_text: str = "How are you?",
    response_text: str = "Fine, thank you.",
    tokenizer: Tokenizer | None = None,
    *,
    finish_reason: FinishReason = "stop",
    meta: Mapping[str, Any] | None = None,
    logprobs: float | Sequence[float] | None = -1.0,
) -> Episode:
    """A finished episode as the environment would hand it to a reward; bytes are the tokens unless told otherwise.

    A text that ended by itself (`finish_reason` "stop" or "task") gets the end token. `logprobs` is one number for all
    tokens of the response, or one each (the end token included), or None for a run that does not ask for them.
    """
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    ids = tokenizer.encode(response_text)
    closing = [tokenizer.end_id] if finish_reason in ("stop", "task") else []
    response_ids = np.array([*ids, *closing], dtype=np.int64)
    stated: Float | None = None
    if logprobs is not None:
        stated = np.array(np.broadcast_to(logprobs, response_ids.shape), dtype=np.float64)
    return Episode(
        prompt=Prompt(id=f"made/{prompt_text!a}", text=prompt_text, meta=dict(meta or {})),
        prompt_ids=np.array(tokenizer.encode(prompt_text), dtype=np.int64),
        response=tokenizer.decode(ids),
        response_ids=response_ids,
        finish_reason=finish_reason,
        actions=np.ones(len(response_ids), dtype=np.bool_),
        logprobs=stated,
    )


# ---------------------------------------------------------------- rewards


def check_reward(
    reward: AnyReward | Callable[..., Any],
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    longest: int = 10_000,
    tolerance: float = 1e-12,
) -> None:
    """Attack a reward with generated episodes; raise ContractError at the first rule it breaks.

    The rules, by the `rule` of the error: "raised" (it scores every text), "count" (one float per episode, token or
    member), "finite", "range", "deterministic" (same question, same bits), "pure" (episodes stay as they are),
    "global random state", "batch mates" (neither the number of episodes nor the others among them nor their order
    changes a score by more than `tolerance`), "memory" (scoring teaches nothing; a saved state loads).

    Args:
        reward: a Reward, TokenReward or GroupReward, or a function in TRL's convention.
        low, high: the range each value must keep (of a TokenReward: each token's); the attributes of that name where
            the reward has them. None is no bound.
        meta: columns of the task that the reward reads, the same for every prompt.
        tokenizer: whose ids the episodes carry (a reward with a model inside knows one vocabulary); bytes by default.
        longest: characters of the longest response. Lower it for a reward with a limited context.
    """
    if isinstance(reward, type):
        raise ContractError("raised", f"{reward.__name__} is a class: check an instance, {reward.__name__}(...)")
    scored: Any = from_function(reward) if inspect.isfunction(reward) else reward
    low = getattr(scored, "low", None) if low is None else low
    high = getattr(scored, "high", None) if high is None else high
    episodes = _episodes(np.random.default_rng(seed), meta, tokenizer, longest)
    score = _Asked(scored, low, high)
    before = copy.deepcopy(scored.state_dict()) if isinstance(scored, Remembers) else None

    # A GroupReward sees the answers to one prompt; the others see whatever is in the batch.
    batches = _by_prompt(episodes) if isinstance(scored, GroupReward) else [episodes]
    for batch in batches:
        together = score(batch)
        again = score(batch)
        for episode, first, second in zip(batch, together, again, strict=True):
            if first.tobytes() != second.tobytes():
                raise _broken("deterministic", "the same score when asked twice", f"{first} and {second}", episode)
        order = np.random.default_rng(seed).permutation(len(batch))
        _same_scores("in another order", batch, together, order, score([batch[i] for i in order]), tolerance)
        if isinstance(scored, GroupReward):
            score(batch[:1])
            score(batch[:2])
            continue
        alone = [score([episode])[0] for episode in batch]
        _same_scores("alone", batch, together, np.arange(len(batch)), alone, tolerance)
        twins = score([batch[0], batch[-1], batch[0]])
        _same_scores("beside other mates", batch, together, np.array([0, len(batch) - 1, 0]), twins, tolerance)

    if isinstance(scored, Remembers):
        _check_memory(scored, before)


class _Asked:
    """The reward, asked under observation: each answer has been checked for count, finiteness, range and side effects.

    An answer is one float64 array per episode: its one score, or of a TokenReward its token scores.
    """

    def __init__(self, reward: Any, low: float | None, high: float | None) -> None:
        self.reward, self.low, self.high = reward, low, high

    def __call__(self, episodes: Sequence[Episode]) -> list[Float]:
        kept = copy.deepcopy(list(episodes))
        handed = list(episodes)
        with _global_randomness_untouched("the reward"):
            answer = self._answer(handed, kept)
        if len(handed) != len(kept):
            raise ContractError("pure", f"the reward changed the list it was handed: {len(kept)} -> {len(handed)}")
        for now, then in zip(handed, kept, strict=True):
            if now != then or now.prompt.meta != then.prompt.meta:
                raise _broken("pure", "episodes that stay as they are", "a changed one", then)
        for episode, values in zip(kept, answer, strict=True):
            bad = values[~np.isfinite(values)]
            if bad.size:
                raise _broken("finite", "finite numbers", str(bad[0]), episode)
            if self.low is not None and (values < self.low).any():
                raise _broken("range", f"at least {self.low}", str(values.min()), episode)
            if self.high is not None and (values > self.high).any():
                raise _broken("range", f"at most {self.high}", str(values.max()), episode)
        return answer

    def _answer(self, handed: list[Episode], kept: Sequence[Episode]) -> list[Float]:
        """The reward's answer to `handed`, counted against `kept`: the reward may have changed what it was handed."""
        if isinstance(self.reward, TokenReward):
            rows = self._ask(lambda: [np.asarray(row) for row in self.reward.token_rewards(handed)], kept)
            if len(rows) != len(kept):
                raise ContractError("count", f"expected {len(kept)} arrays, one per episode, got {len(rows)}")
            return [
                _numbers(row, len(episode.response_ids), "response token", [episode])
                for row, episode in zip(rows, kept, strict=True)
            ]
        call = self.reward.group_rewards if isinstance(self.reward, GroupReward) else self.reward
        values = _numbers(self._ask(lambda: np.asarray(call(handed)), kept), len(kept), "episode", kept)
        return list(values[:, None])

    def _ask(self, call: Callable[[], Any], episodes: Sequence[Episode]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever a plugin raises, the report names the text that made it
            came = f"{type(error).__name__}: {error}"
            raise _broken("raised", "a score for every text", came, *episodes) from error


def _numbers(values: Any, count: int, what: str, episodes: Sequence[Episode]) -> Float:
    if values.dtype.kind not in "fiub" or values.shape != (count,):
        came = f"{values.dtype} of shape {values.shape}"
        raise _broken("count", f"one float per {what}, shape ({count},)", came, *episodes)
    floats: Float = values.astype(np.float64)
    return floats


def _same_scores(
    how: str, batch: Sequence[Episode], together: Sequence[Float], rows: Any, answers: Sequence[Float], tolerance: float
) -> None:
    for row, answer in zip(rows, answers, strict=True):
        if not np.allclose(answer, together[row], rtol=0.0, atol=tolerance):
            expected, came = f"{together[row]}, its score in a batch of {len(batch)}", f"{answer} {how}"
            raise _broken("batch mates", expected, came, batch[row])


def _check_memory(reward: Remembers, before: Mapping[str, Any] | None) -> None:
    state = reward.state_dict()
    if repr(state) != repr(before):
        raise ContractError("memory", f"scoring changed the state from {before} to {state}: learn in observe() only")
    try:
        reward.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise ContractError("memory", f"its own state_dict does not load: {type(error).__name__}: {error}") from error
    if repr(reward.state_dict()) != repr(state):
        raise ContractError("memory", f"state {state} loads as {reward.state_dict()}")


def _episodes(
    stream: np.random.Generator, meta: Mapping[str, Any] | None, tokenizer: Tokenizer | None, longest: int
) -> list[Episode]:
    """Odd, random, identical and very long responses to each of a few prompts, with every way to end."""
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    words = ["the", "a", "moon", "great", "not", "very", "rain", "walks", "slowly", "home", ",", ".", "!", "?"]
    endings: tuple[FinishReason, ...] = ("stop", "length", "task")
    long = " ".join(stream.choice(words, size=longest))
    own_ids = [i for i in range(tokenizer.vocab_size) if i not in (tokenizer.end_id, tokenizer.pad_id)]
    prompts = [text for text in _PROMPTS if _can_say(tokenizer, text)] or [tokenizer.decode(own_ids[:3])]
    made = []
    for prompt in prompts:
        responses = [
            *_ODD_RESPONSES,
            *(" ".join(stream.choice(words, size=int(size))) for size in stream.integers(1, 12, size=4)),
            *(tokenizer.decode(stream.choice(own_ids, size=24).tolist()) for _ in range(3)),
            "Fine, thank you.",
        ]
        if prompt == prompts[0]:
            responses += [long, "a" * longest]
        for i, response in enumerate(filter(lambda text: _can_say(tokenizer, text), responses)):
            made.append(
                make_episode(
                    prompt,
                    response[:longest],
                    tokenizer,
                    finish_reason=endings[i % len(endings)] if response else "stop",
                    meta=meta,
                    logprobs=float(-stream.random()),
                )
            )
    return made


def _can_say(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer takes the text; a small alphabet refuses most, so no reward will ever see them."""
    try:
        tokenizer.encode(text)
    except Exception:  # whatever it raises, it means no
        return False
    return True


def _by_prompt(episodes: Sequence[Episode]) -> list[list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.prompt.id, []).append(episode)
    return list(groups.values())


def _broken(rule: str, expected: str, came: str, *episodes: Episode) -> ContractError:
    shown = "; ".join(
        f"prompt {episode.prompt.text[:60]!a}, response {episode.response[:60]!a}"
        f"{'...' if len(episode.response) > 60 else ''} ({len(episode.response)} characters, {episode.finish_reason})"
        for episode in episodes[:3]
    )
    more = f" and {len(episodes) - 3} more" if len(episodes) > 3 else ""
    return ContractError(rule, f"expected {expected}, got {came}, for {shown}{more}")


@contextmanager
def _global_randomness_untouched(who: str) -> Iterator[None]:
    """Raise when the block drew from (or seeded) a global generator; leave the generators as they were."""
    torch: Any = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # that nobody uses it
    torch_state = torch.get_rng_state() if torch else None
    yield
    drew = [
        name
        for name, same in (
            ("random", random.getstate() == python),
            ("numpy.random", not _difference(np.random.get_state(legacy=False), numpy)),  # noqa: NPY002
            ("torch", torch is None or bool((torch.get_rng_state() == torch_state).all())),
        )
        if not same
    ]
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    if torch is not None:
        torch.set_rng_state(torch_state)
    if drew:
        raise ContractError(
            "global random state", f"{who} used the global generator of {' and '.join(drew)}: keep one of its own"
        )


# ---------------------------------------------------------------- tasks

_LOOKED_AT = 200  # prompts of a task that are compared; unbounded and large tasks are sampled


def check_task(task: Task, tokenizer: Tokenizer | None = None) -> None:
    """Hold a task to its protocol; raise ContractError at the first rule it breaks.

    The rules: "size", "prompt" (a Prompt with an id and a text), "pure" (a function of index and options alone),
    "ids" (two prompts never share an id, an id never has two texts), "encodes" (at least one token, ids in the
    vocabulary), "held_out" (evaluation shares no id with training, unless it is the same task), "score" (finite on
    empty and odd responses), "reply", "action_mask", "option_names", "global random state".
    """
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    size = task.size
    if size is not None and (not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1):
        raise ContractError("size", f"expected the number of prompts (at least 1) or None, got {size!r}")
    names = getattr(task, "option_names", ())
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ContractError("option_names", f"expected a tuple of strings, got {names!r}")
    with _global_randomness_untouched("the task"):
        prompts = _prompts_of(task)
        _check_ids(prompts)
        for prompt in prompts[:20]:
            _check_encoding(prompt, tokenizer)
            for response in _ODD_RESPONSES:
                _check_answers(task, prompt, response, tokenizer)
        split = getattr(task, "held_out", None)
        if split is None:
            return
        evaluation = split()
        if evaluation is task:
            return
        held = _prompts_of(evaluation)
    _check_ids(held)
    shared = {prompt.id for prompt in prompts} & {prompt.id for prompt in held}
    if shared:
        raise ContractError("held_out", f"training and evaluation share the prompts {sorted(shared)[:5]}")


def _prompts_of(task: Task) -> list[Prompt]:
    """The first prompts of a task, each asked for twice, forwards and backwards."""
    indices = range(_LOOKED_AT if task.size is None else min(int(task.size), _LOOKED_AT))
    options: dict[str, Any] = {}
    forwards = [task.prompt(index, options) for index in indices]
    backwards = [task.prompt(index, options) for index in reversed(indices)]
    if options:
        raise ContractError("pure", f"prompt() changed the options it was handed: {options}")
    for index, first, second in zip(indices, forwards, reversed(backwards), strict=True):
        if not isinstance(first, Prompt) or not isinstance(first.id, str) or not isinstance(first.text, str):
            raise ContractError("prompt", f"prompt({index}) must be a Prompt with id and text, got {first!r}")
        if not first.id:
            raise ContractError("prompt", f"prompt({index}) has an empty id")
        if first != second:
            raise ContractError("pure", f"prompt({index}) was {first!r} and then {second!r}")
    if task.size is not None and len({prompt.id for prompt in forwards}) < len(forwards):
        seen: dict[str, int] = {}
        for index, prompt in zip(indices, forwards, strict=True):
            if prompt.id in seen:
                raise ContractError("ids", f"prompts {seen[prompt.id]} and {index} share the id {prompt.id!r}")
            seen[prompt.id] = index
    return forwards


def _check_ids(prompts: Sequence[Prompt]) -> None:
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.id, prompt.text) != prompt.text:
            raise ContractError("ids", f"{prompt.id!r} names two texts: {texts[prompt.id]!r} and {prompt.text!r}")


def _check_encoding(prompt: Prompt, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(prompt.text)
    if not ids or not all(0 <= i < tokenizer.vocab_size for i in ids):
        raise ContractError(
            "encodes",
            f"prompt {prompt.id!r} ({prompt.text[:60]!a}) must give token ids in 0..{tokenizer.vocab_size - 1}",
        )


def _check_answers(task: Any, prompt: Prompt, response: str, tokenizer: Tokenizer) -> None:
    """What the task says to one finished response: score, reply, mask."""
    if not _can_say(tokenizer, response):
        return
    made = make_episode(prompt.text, response, tokenizer)
    episode = Episode(prompt, made.prompt_ids, made.response, made.response_ids, "stop", made.actions, made.logprobs)
    if hasattr(task, "score"):
        first, second = (_said("score", task.score, episode) for _ in range(2))
        if not isinstance(first, (int, float, np.number)) or not np.isfinite(first):
            raise _broken("score", "a finite float", repr(first), episode)
        if first != second:
            raise _broken("score", "the same score when asked twice", f"{first} and {second}", episode)
    if hasattr(task, "reply"):
        answer = _said("reply", task.reply, episode)
        if answer is not None and not isinstance(answer, str):
            raise _broken("reply", "a string, or None at the end of the conversation", repr(answer), episode)
    if hasattr(task, "action_mask"):
        mask = np.asarray(_said("action_mask", lambda made: task.action_mask(prompt, made.response_ids[:-1]), episode))
        if mask.dtype != np.bool_ or mask.shape != (tokenizer.vocab_size,) or not mask.any():
            expected = f"bool[{tokenizer.vocab_size}] that allows a token"
            raise _broken("action_mask", expected, f"{mask.dtype} of shape {mask.shape}", episode)


def _said(rule: str, call: Callable[[Episode], Any], episode: Episode) -> Any:
    try:
        return call(episode)
    except Exception as error:
        raise _broken(rule, "an answer to every text", f"{type(error).__name__}: {error}", episode) from error


# ---------------------------------------------------------------- agents

# The tokens of one action, and what a report calls that view of the environment.
_VIEWS = {6: "whole responses (action_length 6)", 2: "segments (action_length 2)", 1: "tokens (action_length 1)"}
_LONGEST, _WANTED, _ROWS = 6, 4, 32
_METHODS = ("begin", "act", "update", "state_dict", "load_state_dict")
_EXACT = 1e-10  # log-probabilities in float64: right paths differ by 4e-15, wrong ones by 3e-2 and more


def check_agent(
    make_agent: str | Mapping[str, Any] | Callable[[Setup], Agent],
    *,
    updates: int = 15,
    margin: float = 0.5,
    seed: int = 0,
) -> list[str]:
    """Put an agent through a toy world in float64; raise ContractError at the first rule it breaks.

    The world: write the letter `a` four times (1 is the most that is earned, other letters cost), 32 texts side by
    side; the policy is a small GPT-2 with dropout, and a part `kl` keeps it near its reference. The agent meets it as
    whole responses, as segments and token by token; a view that it refuses with ConfigError is left out.

    The rules, by the `rule` of the error: "interface" (its five methods, a bool `trains`, a frozen keyword-only
    dataclass `Config`), "raised", "options" (`begin` gives reset options), "decision" (`act` gives tokens and
    log-probabilities in the shape of the action), "gradient" (they are numbers, no part of a graph),
    "log-probabilities" (they are those of `setup.policy` to 1e-10, after an update too; asked of agents that train,
    unless they say `policy_writes = False`), "arguments" (observation, rollout and loaded state stay as they are),
    "reference" (it stays as it is; so does the policy if the agent does not train), "metrics" (finite floats by name),
    "determinism" (one seed, the same bits), "state" (through a checkpoint into a fresh agent, it goes on in the same
    bits; `act` changes no state taken before), "global random state", "learns".

    Args:
        make_agent: a plugin's name; a table of name and settings, as under [agent] in a file (an agent with a setting
            `lr` that the table leaves out gets 0.01: a toy wants more than a language model); or a function that
            builds the agent from a `Setup`.
        updates, margin: after so many updates, in the first view that the agent takes, the mean task reward is to be
            so much above the reference's. Agents with `trains = False` are not asked to learn.

    Returns what was left out, each with its reason. Raises ConfigError where the agent refuses every view.
    """
    build = _builder(make_agent)
    taken: list[int] = []
    refused: list[ConfigError] = []
    left_out: list[str] = []
    for length, view in _VIEWS.items():
        try:
            life = _Life(build, length, seed)
        except ConfigError as refusal:
            refused.append(refusal)
            left_out.append(f"{view}: the agent refuses it: {refusal}")
            continue
        taken.append(length)
        life.check_interface()
        _check_conduct(life, _Life(build, length, seed), _Life(build, length, seed), seed)
    if not taken:
        raise refused[0]
    life = _Life(build, taken[0], seed)
    if life.agent.trains:
        _check_learning(life, updates, margin, seed)
    else:
        left_out.append("learns: the agent says that it does not train")
    return left_out


def _builder(make_agent: str | Mapping[str, Any] | Callable[[Setup], Agent]) -> Callable[[Setup], Agent]:
    from rlhf_env.learning.experiment import make_agent as by_name

    if isinstance(make_agent, type):
        name = make_agent.__name__
        remedy = f"check its plugin's name, or lambda setup: {name}(setup, {name}.Config())"
        raise ContractError("interface", f"{name} is a class: {remedy}")
    if callable(make_agent):
        return make_agent
    given = {"name": make_agent} if isinstance(make_agent, str) else dict(make_agent)

    def build(setup: Setup) -> Agent:
        try:
            return by_name({"lr": 0.01, **given}, setup)
        except ConfigError:  # it has no such setting, or something else is wrong: then this says so
            return by_name(given, setup)

    return build


@dataclasses.dataclass(frozen=True)
class _ToyTask:
    """Write the letter `a` as often as the prompt's metadata say: the option `level`, else 4 times.

    Reward: the share of them that was written, at most 1, less the share of other letters.
    """

    option_names = ("level",)
    texts = ("a:", "b:", "ab:", "ba:")

    @property
    def size(self) -> int:
        return len(self.texts)

    def prompt(self, index: int, options: Options, /) -> Prompt:
        wanted, text = int(options.get("level", _WANTED)), self.texts[index % self.size]
        return Prompt(id=f"toy/{text}{wanted}", text=text, meta={"wanted": wanted})

    def score(self, episode: Episode, /) -> float:
        hits, length = episode.response.count("a"), len(episode.response)
        return min(hits / int(episode.prompt.meta["wanted"]), 1.0) - (length - hits) / max(length, 1)


def _toy_world(action_length: int, seed: int) -> tuple[TextVectorEnv, Setup]:
    import torch

    from rlhf_env.learning.agent import Setup
    from rlhf_env.learning.engine import Engine
    from rlhf_env.learning.spending import Spending
    from rlhf_env.policies.tiny import tiny_language_model

    tokenizer = AlphabetTokenizer("ab:")
    policy = tiny_language_model(
        "gpt2",  # learned absolute positions and dropout everywhere: what goes wrong shows
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        hidden_size=16,
        layers=1,
        heads=2,
        context=16,
        dropout=0.1,
        init_std=0.2,
        dtype=torch.float64,
        seed=seed,
    )
    reference = policy.frozen_copy()
    reference.reseed(seed + 1)
    env = TextVectorEnv(
        _ROWS,
        task=_ToyTask(),
        reward={"task": 1.0, "kl": 0.02},
        tokenizer=tokenizer,
        max_new_tokens=_LONGEST,
        max_prompt_tokens=4,
        action_length=action_length,
        autoreset_mode="Disabled",
        provided={"reference": reference},
    )
    spending = Spending()
    setup = Setup(
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        reward=env.reward,
        batch_size=_ROWS,
        action_length=action_length,
        max_new_tokens=_LONGEST,
        seed=seed,
        engine=Engine(spending),
        spending=spending,
        task=env.task,
    )
    return env, setup


class _Life:
    """An agent in its own toy world. It stands before the agent where `collect` wants one, and looks at what passes.

    Raises ConfigError when the agent refuses the world.
    """

    def __init__(self, build: Callable[[Setup], Agent], action_length: int, seed: int) -> None:
        self.env, self.setup = _toy_world(action_length, seed)
        self._initial = copy.deepcopy(self.setup.reference.state_dict())  # the policy's too, at the beginning
        try:
            with _global_randomness_untouched("the constructor"):
                self.agent: Any = build(self.setup)
        except (ConfigError, ContractError):
            raise
        except Exception as error:
            raise ContractError("raised", f"the constructor raised {type(error).__name__}: {error}") from error

    def check_interface(self) -> None:
        agent, kind = self.agent, type(self.agent)
        missing = [name for name in _METHODS if not callable(getattr(agent, name, None))]
        if missing:
            raise ContractError("interface", f"{kind.__name__} has no method {', '.join(missing)}")
        if not isinstance(getattr(agent, "trains", None), bool):
            raise ContractError("interface", f"{kind.__name__}.trains says whether it learns: True or False")
        config: Any = getattr(kind, "Config", None)
        if not dataclasses.is_dataclass(config) or not isinstance(config, type):
            raise ContractError("interface", f"{kind.__name__}.Config must be a dataclass: its fields are the settings")
        frozen = config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        if not frozen or not all(field.kw_only for field in dataclasses.fields(config)):
            raise ContractError("interface", f"{kind.__name__}.Config must be @dataclass(frozen=True, kw_only=True)")

    def write(self, seed: int, options: Mapping[str, Any] | None = None) -> Rollout:
        """One rollout, under the options that the agent asks for unless told otherwise."""
        from rlhf_env.errors import RlhfEnvError
        from rlhf_env.learning.loop import collect_with

        asked = self.ask("begin", self.agent.begin) if options is None else options
        if not isinstance(asked, dict) or not all(isinstance(name, str) for name in asked):
            raise ContractError("options", f"begin() must give a dict of reset options by name, got {asked!r}")
        writer: Any = self
        try:
            return collect_with(self.env, writer, asked, seed=seed)
        except ContractError:
            raise
        except ConfigError as error:
            raise ContractError("options", f"begin() gives {asked}, which the environment refuses: {error}") from error
        except RlhfEnvError as error:
            raise ContractError("decision", f"the environment refuses what act() decided: {error}") from error

    def update(self, rollout: Rollout) -> Metrics:
        rollout = self.lesson(rollout)
        handed = copy.deepcopy(rollout)
        metrics = self.ask("update", self.agent.update, handed)
        changed = _difference(handed, rollout)
        if changed:
            raise ContractError("arguments", f"update() changed the rollout it was handed: {changed}")
        if not isinstance(metrics, dict):
            raise ContractError("metrics", f"update() must give a dict of floats by name, got {metrics!r}")
        for name, value in metrics.items():
            if not isinstance(name, str) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ContractError("metrics", f"update() must give finite floats by name, got {name!r}: {value!r}")
        frozen = {"reference": self.setup.reference} | ({} if self.agent.trains else {"policy": self.setup.policy})
        for name, writer in frozen.items():
            changed = _difference(writer.state_dict(), self._initial)
            if changed:
                why = "" if name == "reference" else " although `trains` is False"
                raise ContractError("reference", f"update() changed the {name}{why}: {changed}")
        return metrics

    def lesson(self, rollout: Rollout) -> Rollout:
        """What the agent learns from: its rollout, or right answers to imitate."""
        from rlhf_env.learning.rollout import demonstrations

        if not getattr(self.agent, "imitates", False):
            return rollout
        tokenizer = self.setup.tokenizer
        right = [make_episode(text, "a" * _WANTED, tokenizer) for text in _ToyTask.texts]
        return demonstrations(right * (_ROWS // len(right)), pad_id=tokenizer.pad_id)

    def act(self, observation: Observation, /) -> Decision:
        """Called by `collect`."""
        texts = ("input_ids", "attention_mask", "writing")
        handed: Any = {**observation, **{name: observation[name].copy() for name in texts}}  # type: ignore[literal-required]
        decision: Decision = self.ask("act", self.agent.act, handed)
        changed = _difference(handed, observation)
        if changed:
            raise ContractError("arguments", f"act() changed the observation it was handed: {changed}")
        self._check_decision(decision, observation["writing"])
        return decision

    def _check_decision(self, decision: Any, writing: Any) -> None:
        from rlhf_env.learning.agent import Decision

        if not isinstance(decision, Decision):
            raise ContractError("decision", f"act() must give a Decision, got {decision!r}")
        length, vocabulary = self.setup.action_length, self.setup.tokenizer.vocab_size
        shape = (_ROWS,) if length == 1 else (_ROWS, length)
        tokens, stated = decision.tokens, {"logprobs": decision.logprobs, **decision.extras}
        for name, values in {"tokens": tokens, **stated}.items():
            if getattr(values, "requires_grad", False):
                raise ContractError("gradient", f"act() gives {name} with a gradient: detach them, and give an array")
            dtype = "int64" if name == "tokens" else "float64"
            if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype != dtype:
                came = f"{getattr(values, 'dtype', type(values))} of shape {np.shape(values)}"
                raise ContractError("decision", f"act() must give {name} as {dtype} of shape {shape}, got {came}")
        if tokens.min() < 0 or tokens.max() > vocabulary:
            raise ContractError(
                "decision", f"tokens are 0..{vocabulary}, got {tokens.min()}..{tokens.max()} ({vocabulary} is none)"
            )
        written = writing.reshape(-1, *[1] * (len(shape) - 1)) & (tokens < vocabulary)
        for name, values in stated.items():
            if not np.isfinite(values[written]).all():
                raise ContractError("decision", f"act() gives {name} that are not finite")
        if (decision.logprobs[written] > _EXACT).any():
            raise ContractError("decision", f"a log-probability is at most 0, got {decision.logprobs[written].max()}")

    def ask(self, what: str, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with _global_randomness_untouched(f"{what}()"):
                return method(*arguments)
        except ContractError:
            raise
        except Exception as error:  # whatever a plugin raises, the report says where
            raise ContractError("raised", f"{what}() raised {type(error).__name__}: {error}") from error


def _check_conduct(life: _Life, twin: _Life, heir: _Life, seed: int) -> None:
    """Side by side with a twin, and then with an heir: another agent that took over the state."""
    import torch

    for turn in (seed, seed + 1):
        state = life.ask("state_dict", life.agent.state_dict)
        kept = copy.deepcopy(state)
        rollout = life.write(turn)
        if changed := _difference(state, kept):
            raise ContractError("state", f"act() changed a state that was taken before it: {changed}; hand out copies")
        if getattr(life.agent, "policy_writes", life.agent.trains):
            _check_logprobs(life, rollout)
        _same_bits("determinism", "the same seed", rollout, twin.write(turn))
        if turn == seed:
            _same_bits("determinism", "the same seed", life.update(rollout), twin.update(rollout))
            _same_bits("determinism", "the same seed", life.agent.state_dict(), twin.agent.state_dict())

    if heir.agent.trains:
        with torch.no_grad():
            for parameter in heir.setup.policy.parameters():
                parameter.add_(1.0)  # so that a weight which the state left out shows
    state = _through_a_checkpoint(life.ask("state_dict", life.agent.state_dict))
    kept = copy.deepcopy(state)
    heir.ask("load_state_dict", heir.agent.load_state_dict, state)
    after = "a fresh agent with the loaded state"
    rollout = life.write(seed + 2)
    _same_bits("state", after, rollout, heir.write(seed + 2))
    _same_bits("state", after, life.update(rollout), heir.update(rollout))
    _same_bits("state", after, life.agent.state_dict(), heir.agent.state_dict())
    _same_bits("state", after, life.write(seed + 3), heir.write(seed + 3))
    if changed := _difference(state, kept):
        raise ContractError("arguments", f"the state handed to load_state_dict() changed: {changed}; take copies of it")


def _check_logprobs(life: _Life, rollout: Rollout) -> None:
    recomputed = life.setup.policy.response_logprobs(rollout.episodes)
    for row, episode in enumerate(rollout.episodes):
        stated = rollout.logprobs[row][rollout.actions[row]].numpy()
        off = np.abs(stated - recomputed[row][episode.actions]).max(initial=0.0)
        if off > _EXACT:
            raise _broken(
                "log-probabilities", "the policy's own log-probabilities", f"some that are {off:.2g} off", episode
            )


def _check_learning(life: _Life, updates: int, margin: float, seed: int) -> None:
    from rlhf_env.learning.experiment import make_agent

    def mean_score(one: _Life) -> float:
        """Of the task as it is: no levels, no groups, and without the KL part."""
        return float(np.mean([one.write(seed + i, {}).returns(without=("kl",)).mean() for i in range(4)]))

    reference = mean_score(_Life(lambda setup: make_agent("reference", setup), life.setup.action_length, seed))
    for turn in range(updates):
        life.ask("update", life.agent.update, life.lesson(life.write(seed + turn)))
    reached = mean_score(life)
    if not reached >= reference + margin:
        raise ContractError(
            "learns",
            f"expected the mean task reward to be at least {margin:g} above the reference's after {updates} updates, "
            f"got {reached:.3f} and the reference's {reference:.3f}",
        )


def _through_a_checkpoint(state: Any) -> dict[str, Any]:
    from rlhf_env.learning import checkpoints

    if not isinstance(state, dict):
        raise ContractError("state", f"state_dict() must give a dict, got {state!r}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            return checkpoints.load(checkpoints.save(Path(folder), 0, state, {}))[0]
        except TypeError as error:
            raise ContractError("state", f"state_dict() does not fit into a checkpoint: {error}") from error


def _same_bits(rule: str, why: str, one: Any, other: Any) -> None:
    if found := _difference(one, other):
        raise ContractError(rule, f"{why} gives something else: {found}")


def _difference(one: Any, other: Any, place: str = "") -> str:
    """Where two nested structures of tensors, arrays and plain values first differ in a bit; "" if they do not."""
    if one is other:
        return ""
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return f"{place or 'its keys'}: {sorted(map(str, one))} and {sorted(map(str, other))}"
        found = (_difference(one[key], other[key], f"{place}/{key}") for key in one)
        return next(filter(None, found), "")
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)} entries"
        found = (_difference(a, b, f"{place}/{i}") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next(filter(None, found), "")
    if hasattr(one, "detach"):
        one, other = one.detach().cpu().numpy(), other.detach().cpu().numpy()
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return "" if same else f"{place}: {one} and {other}"
    return "" if repr(one) == repr(other) else f"{place}: {one!r} and {other!r}"
