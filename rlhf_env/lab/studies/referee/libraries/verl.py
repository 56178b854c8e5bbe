"""verl: the advantage estimators and policy losses of `verl.trainer.ppo.core_algos`, with the settings of its own
configuration classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_env.lab.studies.referee import second
from rlhf_env.lab.studies.referee.entries import Differs, LibraryObjective, LoadModule
from rlhf_env.lab.studies.referee.measuring import Measurable
from rlhf_env.lab.studies.referee.texts import Texts

_CORE, _SUMS = "verl.trainer.ppo.core_algos", "verl.utils.torch_functional"
_WHITENED = "whitened = (values - mean) * torch.rsqrt(var + 1e-8)"


class _Core:
    """The module, and what of its functions an objective is made of."""

    def __init__(self, load: LoadModule) -> None:
        self.core = load(_CORE)
        configurations = load("verl.workers.config")
        self.actor, self.policy = configurations.ActorConfig, configurations.PolicyLossConfig
        self.algorithm = load("verl.trainer.config").AlgoConfig

    def settings(self, **changed: Any) -> Any:
        """An ActorConfig of its defaults: made without the checks that ask for the sizes of a cluster's batches."""
        made = object.__new__(self.actor)
        for name, field in self.actor.__dataclass_fields__.items():
            made.__dict__[name] = field.default
        made.__dict__.update({"policy_loss": self.policy(), "global_batch_info": {}, **changed})
        return made

    def rewards(self, texts: Texts) -> Tensor:
        rewards: Tensor = self.core.compute_rewards(texts.paid, texts.written, texts.reference, texts.beta)
        return rewards

    def estimated(
        self, name: str, texts: Texts, *, rewards: Callable[[Texts], Tensor] | None = None, **more: Any
    ) -> Tensor:
        """[B, T]: by the estimator that is registered under `name`."""
        paid = (rewards or self.rewards)(texts)
        if name == "gae":
            values = torch.zeros_like(paid)
            return self._first(self.core.compute_gae_advantage_return(paid, values, texts.marked, 1.0, 0.95))
        given = {
            "token_level_rewards": paid,
            "response_mask": texts.marked,
            "index": texts.group.numpy(),
            "config": self.algorithm(gamma=1.0),
            "reward_baselines": torch.full_like(texts.reward, texts.greedy),
            "old_log_probs": texts.written,
            "sum_pi_squared": (2.0 * texts.logits.detach().log_softmax(-1)).logsumexp(-1).exp(),
            **more,
        }
        function = self.core.get_adv_estimator_fn(name)
        asked = function.__code__.co_varnames[: function.__code__.co_argcount]
        return self._first(function(**{key: value for key, value in given.items() if key in asked}))

    @staticmethod
    def _first(both: tuple[Tensor, Tensor]) -> Tensor:
        return both[0]

    def policy_loss(self, name: str, how: str = "token-mean", **settings: Any) -> Callable[[Texts, Tensor], Tensor]:
        """Of a registered loss, added up as `how` says."""
        function, made = self.core.get_policy_loss_fn(name), self.settings(**settings)

        def loss(texts: Texts, advantages: Tensor) -> Tensor:
            # A copy: two of the losses write into what they are given.
            given = advantages.expand(texts.mask.shape).clone()
            found: Tensor = function(texts.written, texts.logprobs, given, texts.marked, how, made)[0]
            return found

        return loss

    def with_penalty(
        self, loss: Callable[[Texts, Tensor], Tensor], kind: str, how: str
    ) -> Callable[[Texts, Tensor], Tensor]:
        """The actor's loss with its KL term, as its worker adds them up."""

        def both(texts: Texts, advantages: Tensor) -> Tensor:
            by_token = self.core.kl_penalty(texts.logprobs, texts.reference, kind)
            term = self.core.agg_loss(by_token, texts.marked, how)
            total: Tensor = loss(texts, advantages) + texts.beta * term
            return total

        return both


def _estimators(core: _Core) -> Iterator[LibraryObjective]:
    """The estimators, each with the loss that verl pairs them with by default, a mean over tokens."""
    clip = partial(second.clipped, dual=3.0)
    vanilla = core.policy_loss("vanilla")

    def entry(
        name: str,
        advantages: Callable[[Texts], Tensor],
        ours: str = "",
        differs: Differs | None = None,
        label: str = "",
        **more: Any,
    ) -> LibraryObjective:
        return LibraryObjective(
            maker="verl",
            name=label or name,
            theirs=Measurable(vanilla, partial(core.estimated, name, **more)),
            second=second.derived(advantages, clip, "token-mean"),
            ours=ours,
            differs=differs,
        )

    def whitening(advantages: Callable[[Texts], Tensor]) -> Differs:
        found = partial(second.whitened, advantages, epsilon=1e-8, dtype=torch.float32)
        return Differs(
            line=_WHITENED,
            module=_SUMS,
            why="1e-8 is added to the variance, and n / (n - 1) of an int64 mask is a quotient in float32",
            explained=second.derived(found, clip, "token-mean"),
        )

    plain = partial(second.of_group, scaled=False)
    yield entry("grpo", second.of_group)
    yield entry("grpo", plain, label="grpo without std", norm_adv_by_std_in_grpo=False)
    yield entry(
        "grpo_vectorized",
        second.of_group,
        differs=Differs(
            line="scores = scores.reshape(-1).to(device=target, dtype=torch.float32)",
            module="verl.utils.groupwise",
            why="mean and deviation of a group in float32: where all rewards are equal, a rounding error over 1e-6",
            explained=second.derived(_in_single, clip, "token-mean"),
        ),
    )
    yield entry("rloo", second.left_out)
    yield entry("rloo_vectorized", second.left_out)
    yield entry("grpo_passk", second.best_of_group)
    yield entry("opo", second.weighed_by_length)
    yield entry("remax", partial(second.to_go, baseline="greedy"))
    yield entry(
        "reinforce_plus_plus",
        partial(second.whitened, second.to_go),
        "reinforce++",
        whitening(second.to_go),
    )
    yield entry("reinforce_plus_plus_baseline", partial(second.whitened, plain), "reinforce++", whitening(plain))
    yield entry("gdpo", partial(second.whitened, second.of_group), differs=whitening(second.of_group))
    yield entry("gae", partial(second.whitened, second.generalised), "PPO", whitening(second.generalised))
    yield entry("gpg", plain)
    yield entry("optimal_token_baseline", _token_baseline)


def _in_single(texts: Texts) -> Tensor:
    """As of a group, its mean and its deviation rounded to float32."""
    returns = texts.penalised.sum(1).reshape(texts.batches, -1)
    single = returns.float()
    mean = single.sum(1, keepdim=True) / single.shape[1]
    spread = ((single - mean).square().sum(1, keepdim=True) / (single.shape[1] - 1.0)).sqrt()
    scaled = (returns - mean) / (spread + 1e-6)
    return scaled.reshape(-1, 1).expand(texts.mask.shape)


def _token_baseline(texts: Texts) -> Tensor:
    """Of each place: the returns from there on, weighed by W = sum so far of |grad log pi|^2 by the logits; 0 where one
    text is longer than all others."""
    returns = second.to_go(texts)
    logprobs = texts.logits.detach().log_softmax(-1)
    norms = 1.0 - 2.0 * texts.written.exp() + logprobs.exp().square().sum(-1)
    weight = (norms * texts.counted).cumsum(1) * texts.counted
    baseline = torch.zeros_like(returns)
    for number in range(texts.batches):
        rows = texts.group == number
        total = (returns * weight)[rows].sum(0) / (weight[rows].sum(0) + 1e-8)
        alone = texts.counted[rows].sum(0) < 2.0
        baseline[rows] = torch.where(alone, torch.zeros_like(total), total)
    return (returns - baseline).masked_fill(~texts.mask, 0.0)


def _losses(core: _Core) -> Iterator[LibraryObjective]:
    """The policy losses, on GRPO's advantages."""

    def entry(
        name: str,
        terms: second.Terms,
        how: second.Adding = "token-mean",
        ours: str = "",
        differs: Differs | None = None,
        label: str = "",
        their_way: str = "token-mean",
        **settings: Any,
    ) -> LibraryObjective:
        return LibraryObjective(
            maker="verl",
            name=label or f"{name} loss",
            theirs=Measurable(core.policy_loss(name, their_way, **settings), partial(core.estimated, "grpo")),
            second=second.derived(second.of_group, terms, how),
            ours=ours,
            differs=differs,
        )

    dual = partial(second.clipped, dual=3.0)
    yield entry(
        "vanilla",
        dual,
        "sequence-mean",
        "clip",
        label="vanilla loss, seq-mean-token-mean",
        their_way="seq-mean-token-mean",
    )
    higher = partial(second.clipped, clip=0.2, high=0.28, dual=10.0)
    yield entry("vanilla", higher, ours="dapo", label="vanilla loss, DAPO", clip_ratio_high=0.28, clip_ratio_c=10.0)
    tv: Any = {"low": 0.2, "high": 0.2, "cap": 3.0}
    yield entry("dppo_tv", partial(second.within_divergence, form="tv", **tv))
    yield entry(
        "dppo_kl",
        partial(second.within_divergence, form="kl", **tv),
    )
    of_text = partial(second.of_text, clip=3e-4, high=4e-4)
    yield entry(
        "gspo",
        of_text,
        "sequence-mean",
        "gspo",
        their_way="seq-mean-token-mean",
        clip_ratio_low=3e-4,
        clip_ratio_high=4e-4,
    )
    yield entry("sapo", second.soft_gate, "sequence-mean", "sapo")
    yield entry("gpg", second.likelihood)
    bounded = partial(second.weighed_likelihood, low=0.8, high=1.2)
    yield entry("cispo", bounded, ours="cispo")
    yield entry("kl_cov", partial(second.few_with_penalty, share=2e-4, coefficient=0.1))
    yield entry("geo_mean", partial(second.geometric, clip=0.2), "sequence-mean")
    dro = core.policy(dro_beta=0.5)
    yield entry("dro", partial(second.quadratic, beta=0.5), policy_loss=dro)


def _penalties(core: _Core) -> Iterator[LibraryObjective]:
    """The KL terms, beside the policy gradient of RLOO, summed over the tokens of a text."""
    how = "seq-mean-token-sum"
    vanilla = core.policy_loss("vanilla", how)
    reward = partial(core.estimated, "rloo", rewards=lambda texts: texts.paid)
    kinds: tuple[tuple[str, Any, str], ...] = (
        ("k1", "k1", ""),
        ("k2", "k2", "k2 in loss"),
        ("low_var_kl", "k3", "k3 in loss"),
        ("k3+", "k2", "k2 in loss"),
        ("abs", "abs", ""),
    )
    for kind, same, ours in kinds:
        yield LibraryObjective(
            maker="verl",
            name=f"rloo, KL term {kind}",
            theirs=Measurable(core.with_penalty(vanilla, kind, how), reward),
            second=second.derived(
                partial(second.left_out, penalty=False), partial(second.clipped, dual=3.0), "sequence-sum", kl=same
            ),
            penalty="in loss",
            ours=ours,
        )
    yield LibraryObjective(
        maker="verl",
        name="Dr. GRPO, KL term low_var_kl",
        theirs=Measurable(
            core.with_penalty(
                core.policy_loss("vanilla", "seq-mean-token-sum-norm"), "low_var_kl", "seq-mean-token-sum-norm"
            ),
            partial(core.estimated, "grpo", rewards=lambda texts: texts.paid, norm_adv_by_std_in_grpo=False),
        ),
        second=second.derived(
            partial(second.of_group, scaled=False, penalty=False), partial(second.clipped, dual=3.0), "dr-grpo", kl="k3"
        ),
        penalty="in loss",
        ours="dr-grpo",
    )
    plain = core.settings()

    def reinforce(texts: Texts, advantages: Tensor) -> Tensor:
        found: Tensor = core.core.compute_policy_loss_reinforce(
            texts.written, texts.logprobs, advantages, texts.marked, how, plain
        )[0]
        return found

    yield LibraryObjective(
        maker="verl",
        name="rloo, reinforce loss",
        theirs=Measurable(reinforce, partial(core.estimated, "rloo")),
        second=second.derived(second.left_out, second.likelihood, "sequence-sum"),
        ours="RLOO",
    )


def objectives(load: LoadModule) -> list[LibraryObjective]:
    core = _Core(load)
    return [*_estimators(core), *_losses(core), *_penalties(core)]
