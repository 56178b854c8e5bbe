"""The pretraining mix (PPO-ptx, Ouyang et al. 2022, arXiv 2203.02155, eq. 2), for every agent that trains.

Each gradient step of an optimizer with `ptx_coefficient` also raises the likelihood of given texts. The objective is
then the environment's plus that coefficient times the mean log-likelihood of a token of those texts. The tokens count
as `gradient_tokens` like all others; the texts come in shuffled epochs, whose place is a part of every checkpoint.
"""

from __future__ import annotations

import numpy as np

from rlhf_env.envs.tasks import load_task, prompt_at
from rlhf_env.envs.tokenizers import as_asked, prompt_ids
from rlhf_env.errors import ConfigError, DataError, under
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.demonstrations import demonstration
from rlhf_env.learning.engine import Optimization, Optimizer
from rlhf_env.learning.losses.steps import add_likelihood
from rlhf_env.learning.rollout import demonstrations
from rlhf_env.learning.sources import Shuffled
from rlhf_env.policies.policy import HasContext
from rlhf_env.types import Episode, Prompt, Task, Tokenizer

_SHOWN = 20  # problems in one report
# The random stream of their order is called what it was when only ppo had a mix: its older runs resume exactly.
_ORDER = "ppo pretraining texts"


def mixing(setup: Setup) -> Setup:
    """The same setup; optimizers that its engine makes from here on read the texts of `ptx_data` for its policy."""
    setup.engine.mix = lambda optimization: PretrainingMix(setup, optimization)
    return setup


class PretrainingMix:
    """The texts of `ptx_data`, `ptx_rows` a gradient step. They are read without dropout, as the agent left the policy.

    Raises ConfigError and DataError for texts that cannot be learned.
    """

    def __init__(self, setup: Setup, optimization: Optimization) -> None:
        self._setup = setup
        self._rows = optimization.ptx_rows
        self._coefficient = optimization.ptx_coefficient
        context = setup.policy.context if isinstance(setup.policy, HasContext) else None
        longest = None if context is None else context + 1  # the last token is predicted and not read
        with under("ptx_data"):
            self._texts = texts_to_predict(load_task(optimization.ptx_data), setup.tokenizer, longest)
        self._order = Shuffled(len(self._texts), int(setup.stream(_ORDER).integers(2**31)))

    @property
    def texts_read(self) -> int:
        return self._order.place

    @texts_read.setter
    def texts_read(self, place: int) -> None:
        self._order.place = place

    def add_gradient(self, optimizer: Optimizer) -> float:
        policy = self._setup.policy
        texts = [self._texts[index] for index in self._order.take(self._rows)]
        batch = self._setup.engine.local(demonstrations(texts, pad_id=policy.pad_id))
        return add_likelihood(policy, optimizer, batch, self._coefficient)


def texts_to_predict(task: Task, tokenizer: Tokenizer, longest: int | None = None) -> list[Episode]:
    """The prompts of a task as texts to make likelier.

    Where a prompt's `meta` has a "completion", that is predicted, as `sft` would learn it; otherwise every token but
    the first. Raises ConfigError for a task without an end, DataError for texts with nothing to predict, of more than
    `longest` tokens, or labelled as undesirable.
    """
    if task.size is None:
        raise ConfigError(f"{type(task).__name__} makes prompts for ever: ptx_data needs a task with a list of texts")
    episodes: list[Episode] = []
    problems: list[str] = []
    for prompt in (prompt_at(task, index, {}) for index in range(task.size)):
        if prompt.meta.get("label") in (False, "false", "False"):
            problems.append(f"ptx_data, {prompt.id}: its label is false, and the mix makes every text likelier")
            continue
        try:
            text = _text(as_asked(prompt, tokenizer), tokenizer)
        except DataError as error:
            problems += [f"ptx_data, {problem}" for problem in error.problems]
            continue
        length = len(text.ids)
        if not len(text.prompt_ids) or not len(text.response_ids):
            problems.append(
                f"ptx_data, {prompt.id}: a text of {length} tokens has none to predict from those before it"
            )
        elif longest is not None and length > longest:
            problems.append(f"ptx_data, {prompt.id}: {length} tokens, the model takes {longest}: cut it in pieces")
        else:
            episodes.append(text)
    if problems:
        more = len(problems) - _SHOWN
        raise DataError(*problems[:_SHOWN], *([f"... and {more} more texts"] if more > 0 else []))
    return episodes


def _text(prompt: Prompt, tokenizer: Tokenizer) -> Episode:
    if "completion" in prompt.meta:
        return demonstration(prompt, str(prompt.meta["completion"]), tokenizer)
    ids = np.array(prompt_ids(tokenizer, prompt), dtype=np.int64)
    return Episode(
        prompt=prompt,
        prompt_ids=ids[:1],
        response="",
        response_ids=ids[1:],
        finish_reason="stop",
        actions=np.ones(max(len(ids) - 1, 0), dtype=np.bool_),
    )
