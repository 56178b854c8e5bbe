"""OpenRLHF: `PolicyLoss`, `compute_approx_kl` and `DPOLoss`, and the advantages of its `RemoteExperienceMaker`, called
with an object that has the settings that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlhf_env.lab.studies.referee import second
from rlhf_env.lab.studies.referee.entries import Differs, LibraryObjective, LoadModule
from rlhf_env.lab.studies.referee.measuring import Measurable
from rlhf_env.lab.studies.referee.texts import Texts

_LOSS, _SUMS = "openrlhf.models.loss", "openrlhf.models.utils"
_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_SINGLE = "log_ratio = log_probs.float() - log_probs_base.float()"


def _advantages(maker: Any, sums: Any, estimator: str, *, penalty: bool = True) -> Callable[[Texts], Tensor]:
    """[B, T]: of `compute_advantages_and_returns`; the penalty of each token is its own `compute_approx_kl`, k1."""

    def advantages(texts: Texts) -> Tensor:
        settings = SimpleNamespace(
            algo=SimpleNamespace(
                advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=0.95, no_std_norm=False)
            ),
            rollout=SimpleNamespace(n_samples_per_prompt=len(texts.reward) // texts.batches),
            reward=SimpleNamespace(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None),
        )
        made = SimpleNamespace(
            strategy=SimpleNamespace(args=settings),
            args=settings,
            advantage_estimator=estimator,
            kl_ctl=SimpleNamespace(value=texts.beta if penalty else 0.0),
        )
        for name in ("get_advantages_and_returns", "get_cumulative_returns"):
            setattr(made, name, partial(getattr(maker, name), made))
        experience = SimpleNamespace(
            index=list(range(len(texts.reward))),
            rewards=texts.reward.clone(),
            kl=sums.compute_approx_kl(texts.written, texts.reference, kl_estimator="k1") * texts.counted,
            action_mask=texts.marked,
            values=torch.zeros_like(texts.written),
            info={},
        )
        maker.compute_advantages_and_returns(made, [experience])
        found: Tensor = experience.advantages
        return found

    return advantages


def _online(load: LoadModule) -> Iterator[LibraryObjective]:
    loss_module, sums, maker = load(_LOSS), load(_SUMS), load(_MAKER).RemoteExperienceMaker

    def policy(**settings: Any) -> Callable[[Texts, Tensor], Tensor]:
        function = loss_module.PolicyLoss(**settings)

        def loss(texts: Texts, advantages: Tensor) -> Tensor:
            found: Tensor = function(texts.logprobs, texts.written, advantages, action_mask=texts.marked)[0]
            return found

        return loss

    single = Differs(line=_SINGLE, module=_SUMS, why="the KL penalty in the reward is computed in float32")

    def estimated(
        name: str, advantages: Callable[[Texts], Tensor], ours: str, exact: Callable[[Texts], Tensor], why: str = ""
    ) -> LibraryObjective:
        """`advantages`: the paper's; `exact`: with the penalty in float32, and what else they do."""
        return LibraryObjective(
            maker="openrlhf",
            name=name,
            theirs=Measurable(policy(), _advantages(maker, sums, name)),
            second=second.derived(advantages, second.uncapped, "token-mean"),
            ours=ours,
            differs=Differs(
                line=single.line,
                module=single.module,
                why=f"{single.why}{why}",
                explained=second.derived(exact, second.uncapped, "token-mean"),
            ),
        )

    def rounded(advantages: Callable[[Texts], Tensor]) -> Callable[[Texts], Tensor]:
        """Of texts whose penalty has the digits of float32."""

        def of_rounded(texts: Texts) -> Tensor:
            again = texts.again()
            single = (texts.written.float() - texts.reference.float()).double()
            again.__dict__["penalised"] = texts.paid - texts.beta * single
            return advantages(again)

        return of_rounded

    over_all = partial(second.whitened, sample=False)
    group = partial(second.to_go, baseline="group")
    yield estimated("rloo", partial(second.to_go, baseline="others"), "RLOO", rounded(second.of_others_and_penalty))
    yield estimated(
        "reinforce_baseline",
        partial(over_all, group),
        "reinforce++",
        rounded(partial(_single_moments, group)),
        "; so are mean and variance of the batch",
    )
    yield estimated("dr_grpo", group, "dr-grpo", rounded(group))
    yield estimated(
        "group_norm",
        partial(second.scaled_to_go, epsilon=1e-9),
        "clip",
        rounded(partial(second.scaled_to_go, epsilon=1e-9)),
    )
    yield estimated(
        "reinforce",
        partial(over_all, second.to_go),
        "reinforce++",
        rounded(partial(_single_moments, second.to_go)),
        "; so are mean and variance of the batch",
    )
    yield estimated(
        "gae",
        partial(over_all, second.generalised),
        "PPO",
        rounded(partial(_single_moments, second.generalised)),
        "; so are mean and variance of the batch",
    )

    def losses(name: str, terms: second.Terms, how: second.Adding, ours: str, **settings: Any) -> LibraryObjective:
        return LibraryObjective(
            maker="openrlhf",
            name=name,
            theirs=Measurable(policy(**settings), _advantages(maker, sums, "group_norm", penalty=False)),
            second=second.derived(partial(second.of_group, epsilon=1e-9, penalty=False), terms, how),
            penalty="none",
            ours=ours,
        )

    of_text = partial(second.of_text, clip=0.2)
    yield losses("gspo loss, no penalty", of_text, "sequence-mean", "gspo", policy_loss_type="gspo")
    yield losses("dual clip loss, no penalty", partial(second.clipped, dual=3.0), "token-mean", "clip", dual_clip=3.0)
    yield losses("ppo loss per text, no penalty", second.uncapped, "sequence-mean", "clip", token_level_loss=False)


def _single_moments(advantages: Callable[[Texts], Tensor], texts: Texts) -> Tensor:
    """To mean 0 and variance 1, both computed in float32."""
    values, counted = advantages(texts), texts.marked
    single, count = values.float(), counted.sum()
    mean = (single * counted).sum() / count
    variance = ((single - mean).square() * counted).sum() / count
    return (values - mean) * variance.clamp(min=1e-8).rsqrt()


def _penalties(load: LoadModule) -> Iterator[LibraryObjective]:
    """Its KL terms, beside the policy gradient of its rloo advantages without a penalty; a mean over tokens, as its
    actor adds both up."""
    loss_module, sums, maker = load(_LOSS), load(_SUMS), load(_MAKER).RemoteExperienceMaker
    function = loss_module.PolicyLoss()
    kinds: tuple[tuple[str, str, bool, Any], ...] = (
        ("k2", "k2", False, "k2"),
        ("k3", "k3", False, "k3"),
        ("k1, unbiased_gradient", "k1", True, "weighed k2"),
        ("k3, unbiased_gradient", "k3", True, "weighed k2"),
    )

    def with_term(estimator: str, unbiased: bool) -> Callable[[Texts, Tensor], Tensor]:
        def loss(texts: Texts, advantages: Tensor) -> Tensor:
            policy = function(texts.logprobs, texts.written, advantages, action_mask=texts.marked)[0]
            kl = sums.compute_approx_kl(
                texts.logprobs,
                texts.reference,
                log_probs_old=texts.written,
                kl_estimator=estimator,
                unbiased_gradient=unbiased,
            )
            total: Tensor = policy + texts.beta * loss_module.aggregate_loss(kl, texts.marked)
            return total

        return loss

    def term(same: str, texts: Texts, advantages: Tensor, single: bool = False) -> Tensor:
        logprobs, reference, written = (
            (each.float() if single else each) for each in (texts.logprobs, texts.reference, texts.written)
        )
        gap = logprobs - reference
        if same == "k3":
            kl = torch.expm1(-gap) + gap if not single else (-gap).exp() - 1 + gap
        else:
            weight = (logprobs - written).exp().detach() if same == "weighed k2" else 1.0
            kl = weight * gap.square() / 2.0
        return second.uncapped(texts, advantages) + texts.beta * kl

    advantages = partial(second.left_out, penalty=False)
    for name, estimator, unbiased, same in kinds:
        yield LibraryObjective(
            maker="openrlhf",
            name=f"rloo, KL term {name}",
            theirs=Measurable(with_term(estimator, unbiased), _advantages(maker, sums, "rloo", penalty=False)),
            second=second.derived(advantages, partial(term, same), "token-mean"),
            penalty="in loss",
            ours="k3 in loss" if same == "k3" else "k2 in loss",
            differs=Differs(
                line=_SINGLE,
                module=_SUMS,
                why="the KL term is computed in float32",
                explained=second.derived(advantages, partial(term, same, single=True), "token-mean"),
            ),
        )


def _pairs(load: LoadModule) -> Iterator[LibraryObjective]:
    loss_module = load(_LOSS)

    def entry(name: str, form: second.Pairwise, ours: str, **settings: Any) -> LibraryObjective:
        def loss(texts: Texts, _: Tensor) -> Tensor:
            function = loss_module.DPOLoss(texts.beta, **settings)
            (preferred, other), reference = second.free(texts), texts.reference.sum(1)
            found: Tensor = function(preferred, other, reference[0::2], reference[1::2])[0]
            return found

        return LibraryObjective(
            maker="openrlhf",
            name=name,
            theirs=Measurable(loss, None, "pairs"),
            second=second.of_pairs(form),
            penalty="in loss",
            ours=ours,
        )

    yield entry("DPOLoss", second.sigmoid, "sigmoid")
    yield entry("DPOLoss, label_smoothing 0.1", partial(second.sigmoid, wrong=0.1), "sigmoid", label_smoothing=0.1)
    yield entry("DPOLoss, ipo", second.ipo, "ipo", ipo=True)


def objectives(load: LoadModule) -> list[LibraryObjective]:
    return [*_online(load), *_penalties(load), *_pairs(load)]
