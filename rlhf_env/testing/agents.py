"""`check_agent`. It needs torch, and imports it when it is called."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.errors import ConfigError, ContractError, DataError
from rlhf_env.testing.episodes import make_episode
from rlhf_env.testing.forgotten import differing_attributes, remedy_for_state
from rlhf_env.testing.observing import broken, difference, global_randomness_untouched, raised, wrongly_called
from rlhf_env.testing.remedies import OF_AGENTS, mended
from rlhf_env.types import Episode, Float, JsonObject, JsonView, Observation, Prompt, ResetOptions

if TYPE_CHECKING:
    from rlhf_env.learning.agent import Agent, Decision, Metrics, Setup
    from rlhf_env.learning.rollout import Rollout


# The tokens of one action, and what a report calls that view of the environment.
_VIEWS = {6: "whole responses (action_length 6)", 2: "segments (action_length 2)", 1: "tokens (action_length 1)"}
_LONGEST, _WANTED, _ROWS = 6, 4, 32
_METHODS = ("begin", "act", "update", "state_dict", "load_state_dict")
_EXACT = 1e-10  # log-probabilities in float64: right paths differ by 4e-15, wrong ones by 3e-2 and more


def check_agent(
    make_agent: str | JsonView | Callable[[Setup], Agent],
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
    unless they say `policy_writes = False`, and not of tokens whose extra `OTHERS_WROTE` is 1), "arguments"
    (observation, rollout and loaded state stay as they are), "reference" (it stays as it is; so does the policy if the
    agent does not train), "metrics" (finite floats by name), "determinism" (one seed, the same bits), "state" (through
    a checkpoint into a fresh agent, it goes on in the same bits; `act` changes no state taken before), "global random
    state", "learns".

    Args:
        make_agent: a plugin's name; a table of name and settings, as under [agent] in a file (an agent with a setting
            `lr` that the table leaves out gets 0.01: a toy wants more than a language model); or a function that
            builds the agent from a `Setup`.
        updates, margin: after so many updates, in the first view that the agent takes, the mean task reward is to be
            so much above the reference's. Agents with `trains = False` are not asked to learn.

    Returns what was left out, each with its reason. Raises ConfigError where the agent refuses every view.
    """
    with mended(OF_AGENTS):
        return _check(_builder(make_agent), updates, margin, seed)


def _check(build: Callable[[Setup], Agent], updates: int, margin: float, seed: int) -> list[str]:
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


def _builder(make_agent: str | JsonView | Callable[[Setup], Agent]) -> Callable[[Setup], Agent]:
    from rlhf_env.learning.making_agents import make_agent as by_name

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

    Reward: the share of them that was written, at most 1, less the share of other letters. Each of its prompts is a
    task of its own for the option `weights`, and has a demonstrated answer.
    """

    option_names = ("level", "weights")
    texts = ("a:", "b:", "ab:", "ba:")

    @property
    def tasks(self) -> Mapping[str, str]:
        return {text.removesuffix(":"): text for text in self.texts}

    @property
    def weights(self) -> Float:
        return np.full(self.size, 1.0 / self.size)

    @property
    def size(self) -> int:
        return len(self.texts)

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        wanted, place = int(options.get("level", _WANTED)), index % self.size
        if "weights" in options:
            place = int(np.random.default_rng(index).choice(self.size, p=options["weights"]))
        text = self.texts[place]
        meta = {"wanted": wanted, "task": list(self.tasks)[place], "completion": wanted * "a"}
        return Prompt(id=f"toy/{text}{wanted}", text=text, meta=meta)

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
            with global_randomness_untouched("the constructor"):
                self.agent: Any = build(self.setup)
        except (ConfigError, ContractError):
            raise
        except (Exception, SystemExit) as error:
            raise ContractError(
                "raised", f"the constructor raised {raised(error)}", _form("__init__", error)
            ) from error

    def check_interface(self) -> None:
        from rlhf_env.learning.agent import SaysIfItTrains

        agent, kind = self.agent, type(self.agent)
        missing = [name for name in _METHODS if not callable(getattr(agent, name, None))]
        if missing:
            raise ContractError("interface", f"{kind.__name__} has no method {', '.join(missing)}")
        if not isinstance(agent, SaysIfItTrains) or not isinstance(agent.trains, bool):
            raise ContractError("interface", f"{kind.__name__}.trains says whether it learns: True or False")
        config: Any = getattr(kind, "Config", None)
        if not dataclasses.is_dataclass(config) or not isinstance(config, type):
            raise ContractError("interface", f"{kind.__name__}.Config must be a dataclass: its fields are the settings")
        frozen = config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        if not frozen or not all(field.kw_only for field in dataclasses.fields(config)):
            raise ContractError("interface", f"{kind.__name__}.Config must be frozen and keyword-only (@settings)")

    def write(self, seed: int, options: JsonView | None = None) -> Rollout:
        """One rollout, under the options that the agent asks for unless told otherwise."""
        from rlhf_env.errors import RlhfEnvError
        from rlhf_env.learning.collect import collect_with

        asked = self.ask("begin", self.agent.begin) if options is None else options
        if not isinstance(asked, Mapping) or not all(isinstance(name, str) for name in asked):
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
        changed = difference(handed, rollout)
        if changed:
            raise ContractError("arguments", f"update() changed the rollout it was handed: {changed}")
        if not isinstance(metrics, dict):
            raise ContractError("metrics", f"update() must give a dict of floats by name, got {metrics!r}")
        for name, value in metrics.items():
            if not isinstance(name, str) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ContractError("metrics", f"update() must give finite floats by name, got {name!r}: {value!r}")
        frozen = {"reference": self.setup.reference} | ({} if self.agent.trains else {"policy": self.setup.policy})
        for name, writer in frozen.items():
            changed = difference(writer.state_dict(), self._initial)
            if changed:
                why = "" if name == "reference" else " although `trains` is False"
                raise ContractError("reference", f"update() changed the {name}{why}: {changed}")
        return metrics

    def lesson(self, rollout: Rollout) -> Rollout:
        """What the agent learns from: its rollout, or right answers to imitate."""
        from rlhf_env.learning.agent import traits
        from rlhf_env.learning.rollout import demonstrations

        if not traits(self.agent).imitates:
            return rollout
        tokenizer = self.setup.tokenizer
        right = [make_episode(text, "a" * _WANTED, tokenizer) for text in _ToyTask.texts]
        return demonstrations(right * (_ROWS // len(right)), pad_id=tokenizer.pad_id)

    def act(self, observation: Observation, /) -> Decision:
        """Called by `collect`."""
        texts = ("input_ids", "attention_mask", "writing")
        handed: Any = {**observation, **{name: observation[name].copy() for name in texts}}  # type: ignore[literal-required]
        decision: Decision = self.ask("act", self.agent.act, handed)
        changed = difference(handed, observation)
        if changed:
            raise ContractError("arguments", f"act() changed the observation it was handed: {changed}")
        self._check_decision(decision, observation["writing"])
        return decision

    def _check_decision(self, decision: Any, writing: Any) -> None:
        from rlhf_env.learning.agent import Decision

        if not isinstance(decision, Decision):
            raise ContractError("decision", f"act() must give a Decision, got a {type(decision).__name__}")
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
            with global_randomness_untouched(f"{what}()"):
                return method(*arguments)
        except ContractError:
            raise
        except (Exception, SystemExit) as error:  # whatever a plugin raises, the report says where
            raise ContractError("raised", f"{what}() raised {raised(error)}", _form(what, error)) from error


_FORMS = {
    "__init__": "(self, setup, config)",
    "begin": "(self)",
    "act": "(self, observation)",
    "update": "(self, rollout)",
    "state_dict": "(self)",
    "load_state_dict": "(self, state)",
}


def _form(method: str, error: BaseException) -> str:
    """The remedy where a method takes other arguments than it is given."""
    return f"write it as `{method}{_FORMS[method]}`" if wrongly_called(error) else ""


def _check_conduct(life: _Life, twin: _Life, heir: _Life, seed: int) -> None:
    """Side by side with a twin, and then with an heir: another agent that took over the state."""
    import torch

    from rlhf_env.learning.agent import traits

    for turn in (seed, seed + 1):
        state = life.ask("state_dict", life.agent.state_dict)
        kept = copy.deepcopy(state)
        rollout = life.write(turn)
        if changed := difference(state, kept):
            raise ContractError("state", f"act() changed a state that was taken before it: {changed}; hand out copies")
        if traits(life.agent).policy_writes:
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
    with mended({"state": remedy_for_state(differing_attributes(life.agent, heir.agent))}):
        after = "a fresh agent with the loaded state"
        rollout = life.write(seed + 2)
        _same_bits("state", after, rollout, heir.write(seed + 2))
        _same_bits("state", after, life.update(rollout), heir.update(rollout))
        _same_bits("state", after, life.agent.state_dict(), heir.agent.state_dict())
        _same_bits("state", after, life.write(seed + 3), heir.write(seed + 3))
    if changed := difference(state, kept):
        raise ContractError(
            "arguments",
            f"the state handed to load_state_dict() changed: {changed}",
            "take copies of it (copy.deepcopy): a torch optimizer too goes on in the tensors that it loads",
        )


def _check_logprobs(life: _Life, rollout: Rollout) -> None:
    from rlhf_env.learning.agent import OTHERS_WROTE

    recomputed = life.setup.policy.response_logprobs(rollout.episodes)
    others = rollout.extras.get(OTHERS_WROTE, np.zeros(rollout.tokens.shape))
    for row, episode in enumerate(rollout.episodes):
        stated = rollout.logprobs[row][rollout.actions[row]].numpy()
        own = np.asarray(others[row][rollout.actions[row]]) == 0.0
        off = np.abs(stated - recomputed[row][episode.actions])[own].max(initial=0.0)
        if off > _EXACT:
            raise broken(
                "log-probabilities", "the policy's own log-probabilities", f"some that are {off:.2g} off", episode
            )


def _check_learning(life: _Life, updates: int, margin: float, seed: int) -> None:
    from rlhf_env.learning.making_agents import make_agent

    def mean_score(one: _Life) -> float:
        """Of the task as it is: no levels, no groups, and without the KL part."""
        return float(
            np.mean([one.write(seed + i, {}).returns(without=one.setup.reward.kl_names).mean() for i in range(4)])
        )

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


def _through_a_checkpoint(state: object) -> JsonObject:
    from rlhf_env.learning import checkpoints

    if not isinstance(state, dict):
        raise ContractError("state", f"state_dict() must give a dict, got {state!r}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            return checkpoints.load(checkpoints.save(Path(folder), 0, state, {}))[0]
        except DataError as error:
            raise ContractError("state", f"state_dict() does not fit into a checkpoint: {error}") from error


def _same_bits(rule: str, why: str, one: Any, other: Any) -> None:
    if found := difference(one, other):
        raise ContractError(rule, f"{why} gives something else: {found}")
