"""How agents use a token loss, and given texts, in a gradient step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlhf_env.learning.engine import Optimizer
from rlhf_env.learning.functional import stated_log_ratio, token_weights, weighted_sum
from rlhf_env.learning.losses.declaring import NamedTokenLoss, TokenBatch
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import Policy
from rlhf_env.policies.precision import finest, refined
from rlhf_env.types import State


def token_terms(loss: NamedTokenLoss, logprobs: Tensor, part: Rollout) -> Tensor:
    """[B, L]: the loss of each token of a micro-batch, whose extras hold "advantages"; `logprobs` are the policy's."""
    return loss(_tokens(logprobs, part))


def add_likelihood(policy: Policy, optimizer: Optimizer, texts: Rollout, coefficient: float = 1.0) -> float:
    """Accumulate the gradient of `coefficient` times the mean of -log p over the tokens that are marked; that mean.

    The mean is over all tokens (not over texts or micro-batches): the negative log-likelihood of the texts.
    """
    texts = texts.with_extras(weight=token_weights(texts.actions, "token-mean"))
    loss = 0.0
    for rows in optimizer.rows(texts.lengths, group=texts.group, prompts=texts.prompt_lengths):
        part = texts.select(rows)
        logprobs = policy.evaluate(part.tokens, part.mask, part.actions).logprobs
        term = weighted_sum(-refined(logprobs), part.extras["weight"])
        optimizer.backward(coefficient * term)
        loss += float(term.detach())
    return optimizer.summed({"loss": loss})["loss"]


def with_left_out(
    loss: NamedTokenLoss | None, policy: Policy, optimizer: Optimizer, batch: Rollout, stream: np.random.Generator
) -> Rollout:
    """The batch of one gradient step, with the tokens that the loss leaves out in its extra "left_out".

    Which they are depends on the whole batch, so it is read once more, without gradients; not for a loss that leaves
    none out.
    """
    if loss is None or not loss.draws:
        return batch
    logprobs = torch.zeros(batch.tokens.shape, dtype=finest(batch.tokens.device), device=batch.tokens.device)
    with torch.no_grad():
        for rows in optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            width = part.tokens.shape[1]
            logprobs[rows, :width] = refined(policy.evaluate(part.tokens, part.mask, part.actions).logprobs)
    return batch.with_extras(left_out=refined(loss.left_out(_tokens(logprobs, batch), stream)))


def _tokens(logprobs: Tensor, part: Rollout) -> TokenBatch:
    left_out = part.extras.get("left_out")
    return TokenBatch(
        logprobs=refined(logprobs),
        log_ratio=stated_log_ratio(logprobs, part.logprobs, part.actions),
        advantages=part.extras["advantages"],
        actions=part.actions,
        left_out=None if left_out is None else left_out != 0,
    )


def state_of_draws(loss: NamedTokenLoss | None, stream: np.random.Generator) -> State:
    """The stream that tokens are left out by, for the state of an agent whose loss does so; else nothing."""
    return {"left_out": dict(stream.bit_generator.state)} if loss is not None and loss.draws else {}


def load_state_of_draws(state: State, stream: np.random.Generator) -> None:
    """Give `state_of_draws` back."""
    if "left_out" in state:
        stream.bit_generator.state = dict(state["left_out"])
