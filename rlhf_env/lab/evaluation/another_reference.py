"""Another model in the place of the one that a run began with: what its agent is compared with, token by token."""

from __future__ import annotations

from dataclasses import replace

from rlhf_env.envs.tasks import held_out, prompt_at
from rlhf_env.envs.tokenizers import end_ids, keeping_special, prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.learning.models import load_policy, load_tokenizer_of, with_vocabulary_of
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.policy import Policy
from rlhf_env.types import Tokenizer


def load_other(workplace: Workplace, model: str) -> tuple[Policy, Tokenizer]:
    """A model by folder, run or name, to answer what a run's agent answers, with the run's dtype and sampling."""
    experiment = workplace.experiment
    wanted = replace(experiment.policy, model=model, tokenizer=None, revision=None)
    tokenizer = load_tokenizer_of(wanted)
    longest = experiment.environment.max_new_tokens
    policy = load_policy(wanted, tokenizer, workplace.env.task, max_new_tokens=longest, seed=experiment.seed)
    tokenizer = with_vocabulary_of(tokenizer, policy, model)
    return policy.frozen_copy(), keeping_special(tokenizer, experiment.environment.keep_special)


def with_reference(workplace: Workplace, model: str) -> Workplace:
    """The workplace with another model as the reference of its evaluations; the reward's KL part keeps its own.

    Raises DataError for a model that reads and writes other tokens than the run's.
    """
    policy, tokenizer = load_other(workplace, model)
    ours = workplace.setup.tokenizer
    task = held_out(workplace.env.task)
    prompts = [prompt_at(task, index, {}) for index in range(min(8, task.size or 8))]
    alike = (
        tokenizer.vocab_size == ours.vocab_size
        and set(end_ids(tokenizer)) == set(end_ids(ours))
        and all(prompt_ids(tokenizer, prompt) == prompt_ids(ours, prompt) for prompt in prompts)
        and all(tokenizer.decode([token]) == ours.decode([token]) for token in range(ours.vocab_size))
    )
    if not alike:
        raise DataError(
            f"{model} has another tokenizer than the run's model {workplace.experiment.policy.model}: they cannot be "
            "compared token by token; people can compare what they say (rlhf-env preferences evaluate)"
        )
    return replace(workplace, setup=replace(workplace.setup, reference=policy))
