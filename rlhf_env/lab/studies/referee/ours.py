"""Our own objectives as the referee sees those of others: the losses of docs/losses.md, and RLOO with the KL penalty in
each of its places."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from rlhf_env.lab.studies.exact.losses import FLIPPED, loss_advantages, pair_losses, token_losses
from rlhf_env.lab.studies.referee import second
from rlhf_env.lab.studies.referee.entries import LibraryObjective, Penalty
from rlhf_env.lab.studies.referee.measuring import Measurable
from rlhf_env.lab.studies.referee.texts import Texts
from rlhf_env.learning.functional import KLEstimator, token_weights, weighted_sum
from rlhf_env.learning.losses.declaring import NamedPairLoss, NamedTokenLoss, Pairs, TokenBatch

OURS = "rlhf-env"


def token_entry(loss: NamedTokenLoss) -> LibraryObjective:
    """A token loss with the advantages of the agent that it is measured as part of (`rlhf-env lab exact`)."""

    def advantages(texts: Texts) -> Tensor:
        return loss_advantages(loss, texts.penalised, texts.reward, texts.mask, texts.group)

    def total(texts: Texts, given: Tensor) -> Tensor:
        batch = TokenBatch(
            logprobs=texts.logprobs,
            log_ratio=texts.logprobs - texts.written,
            advantages=given,
            actions=texts.mask,
        )
        how = loss.declared.aggregation or "sequence-mean"
        return weighted_sum(loss(batch), token_weights(texts.mask, how, longest=texts.longest))

    return LibraryObjective(maker=OURS, name=loss.name, theirs=Measurable(total, advantages))


def pair_entry(loss: NamedPairLoss) -> LibraryObjective:
    wrong = FLIPPED if loss.name == "robust" else 0.0

    def mean(texts: Texts, _: Tensor) -> Tensor:
        ratio = (texts.logprobs - (texts.reference if loss.declared.reference else 0.0)).sum(1)
        m, n = second.lengths(texts)
        pairs = Pairs(
            chosen=ratio[0::2],
            rejected=ratio[1::2],
            chosen_tokens=m,
            rejected_tokens=n,
            beta=texts.beta,
            wrong=wrong,
        )
        return loss(pairs).mean()

    penalty: Penalty = "in loss" if loss.declared.reference else "none"
    return LibraryObjective(
        maker=OURS, name=loss.name, theirs=Measurable(mean, None, "pairs"), penalty=penalty, wrong=wrong
    )


def objectives() -> Iterator[LibraryObjective]:
    """Without `clip-cov`, which draws which tokens it leaves out."""
    yield from (token_entry(loss) for loss in token_losses() if not loss.draws)
    yield LibraryObjective(
        maker=OURS, name="RLOO", theirs=second.derived(second.left_out, second.clipped, "sequence-sum")
    )
    kinds: tuple[KLEstimator, ...] = ("k2", "k3", "k3-corrected")
    for kind in kinds:
        advantages = partial(second.left_out, penalty=False)
        yield LibraryObjective(
            maker=OURS,
            name=f"{kind} in loss",
            theirs=second.derived(advantages, second.clipped, "sequence-sum", kl=kind),
            penalty="in loss",
        )
    whitened = partial(second.whitened, second.generalised, sample=False)
    yield LibraryObjective(maker=OURS, name="PPO", theirs=second.derived(whitened, second.clipped, "token-mean"))
    yield from (pair_entry(loss) for loss in pair_losses())
