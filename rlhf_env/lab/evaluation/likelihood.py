"""How an agent that imitates given answers is measured: by how likely it finds answers that it did not learn from.

The measure is the perplexity of the answers to held-out prompts. Texts are written only where there is a reward, of
training or of [evaluation], to measure them by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_env.envs.tasks import held_out, prompt_at
from rlhf_env.lab.evaluation.asked import PromptsAsked, question_of
from rlhf_env.lab.evaluation.evaluator import Evaluation, Evaluator
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.learning.agent import Demonstrated, MeasuresItself, asking, traits
from rlhf_env.learning.demonstrations import (
    GivenAnswers,
    answered_turns,
    demonstrations_of,
    mean_negative_log_likelihood,
)
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.policy import HasContext
from rlhf_env.types import Episode

MEASURES = (
    Metric(
        name="objective",
        title="Log-likelihood",
        unit="nats per token",
        meaning="mean log-probability of a token of the answers: what sft raises",
        better="higher",
    ),
    Metric(
        name="loss",
        title="Negative log-likelihood",
        unit="nats per token",
        meaning="mean of -log p over the tokens of the answers",
        better="lower",
    ),
    Metric(
        name="perplexity",
        title="Perplexity",
        meaning="exp(loss): as uncertain as if so many tokens were equally likely",
        better="lower",
    ),
    Metric(
        name="preference_accuracy",
        title="Preference accuracy",
        unit="share of pairs",
        meaning="in how many held-out pairs its reward head prefers what was preferred",
        better="higher",
    ),
    Metric(
        name="preference_loss",
        title="Preference loss",
        unit="nats per pair",
        meaning="mean of -log sigmoid(score(chosen) - score(rejected)) over held-out pairs; ln 2 says nothing",
        better="lower",
    ),
    Metric(name="answers", title="GivenAnswers", meaning="answers that were read"),
    Metric(name="answer_tokens", title="Tokens", meaning="tokens of the answers that were read"),
)


@dataclass(frozen=True)
class Likelihood:
    """Measures the policy of a workplace on the answers to held-out prompts, or to all where none are held out; and
    what its agent measures itself.

    `asked` says to which. As many answers are read as `[evaluation] prompts` says, from the first one on.
    """

    workplace: Workplace
    metrics: Sequence[Metric] = MEASURES
    on_texts: Callable[[Rollout], None] | None = None
    """Called with what was written, each time."""

    def __call__(self) -> Evaluation:
        """Objective, loss and perplexity, and what an `Evaluator` measures where the experiment has a reward."""
        loss, tokens = mean_negative_log_likelihood(self.workplace.setup.policy, self.answers)
        asked = self.asked
        numbers = {"objective": -loss, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        numbers |= {"answer_tokens": float(tokens), "answers": float(asked.replies), "prompts": float(asked.prompts)}
        numbers["prompts_in_training"] = float(asked.in_training or 0)
        if isinstance(self.workplace.agent, MeasuresItself):
            with asking(self.workplace.agent, "measure"):
                numbers |= self.workplace.agent.measure()
        too_long = {"prompts_cut": float(asked.cut), "prompts_left_out": float(asked.left_out)}
        numbers |= {name: count for name, count in too_long.items() if count}
        if not self.workplace.rewarded:
            return Evaluation(numbers, ())
        written = Evaluator.of(self.workplace, self.on_texts)()
        return Evaluation({**written.metrics, **numbers}, written.samples)

    @cached_property
    def answers(self) -> list[Episode]:
        """The answers that are read. Raises DataError, as `demonstrations_of`."""
        return list(self._read.episodes[: self.workplace.experiment.evaluation.prompts])

    @cached_property
    def _read(self) -> GivenAnswers:
        setup, task = self.workplace.setup, held_out(self.workplace.env.task)
        context = setup.policy.context if isinstance(setup.policy, HasContext) else None
        over_long = self.workplace.experiment.environment.over_long
        return demonstrations_of(task, setup.tokenizer, context=context, wanted=self._wanted, over_long=over_long)

    @property
    def _wanted(self) -> Demonstrated:
        return traits(self.workplace.agent).demonstrated

    @cached_property
    def asked(self) -> PromptsAsked:
        """Which prompts the answers belong to, and how many of these are learned from too, told by the text."""
        task = self.workplace.env.task
        questions = {question_of(episode.prompt) for episode in self.answers}
        prompts = (prompt_at(task, index, {}) for index in range(task.size or 0))
        tokenizer, wanted = self.workplace.setup.tokenizer, self._wanted
        learned = {question_of(asked) for it in prompts for asked, _ in answered_turns(it, tokenizer, wanted)}
        return PromptsAsked(
            prompts=len(questions),
            replies=len(self.answers),
            in_training=len(questions & learned),
            cut=len({question_of(it.prompt) for it in self.answers if it.prompt.uncut or it.finish_reason == "length"}),
            left_out=self._read.count.left_out,
        )
