"""SkyRL: the advantage estimators, reductions and policy losses of `skyrl.backends.skyrl_train.utils.ppo_utils`.

Its losses are sums: how tokens add up is in the advantages, by `apply_loss_reduction_to_advantages_minibatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlhf_env.lab.studies.referee import second
from rlhf_env.lab.studies.referee.entries import Differs, LibraryObjective, LoadModule
from rlhf_env.lab.studies.referee.measuring import Measurable
from rlhf_env.lab.studies.referee.texts import Texts

_CORE, _SUMS = "skyrl.backends.skyrl_train.utils.ppo_utils", "skyrl.backends.skyrl_train.utils.torch_utils"
_RATIO = Differs(
    line="y = torch.clamp(delta.to(torch.float32), -clip, clip).exp()",
    module=_SUMS,
    why="the ratio is computed in float32",
)
_WHITENED = "whitened = (values - mean) * torch.rsqrt(var + 1e-8)"


def _settings(**changed: Any) -> SimpleNamespace:
    """What the losses read of AlgorithmConfig, with its defaults."""
    values: dict[str, Any] = {
        "policy_loss_type": "regular",
        "loss_reduction": "sequence_mean",
        "eps_clip_low": 0.2,
        "eps_clip_high": 0.2,
        "clip_ratio_c": 3.0,
        "sapo": SimpleNamespace(tau_pos=1.0, tau_neg=1.05),
        "cispo": SimpleNamespace(cispo_eps_clip_low=0.0, cispo_eps_clip_high=5.0),
        "dppo": SimpleNamespace(dppo_type="binary_tv", delta_low=0.2, delta_high=0.2),
        "kl_cov": SimpleNamespace(kl_cov_frac=0.2, ppo_kl_coef=1.0),
        "off_policy_correction": SimpleNamespace(
            tis_ratio_type=None,
            sequence_mask_metric=None,
            outlier_token_is_threshold_low=None,
            outlier_token_is_threshold_high=None,
            token_mask_is_threshold_low=None,
            token_mask_is_threshold_high=None,
        ),
    }
    return SimpleNamespace(**{**values, **changed})


def _ratio(texts: Texts, dtype: torch.dtype = torch.float32) -> Tensor:
    """r, computed in `dtype`."""
    return (texts.logprobs - texts.written).to(dtype).exp().double()


def _clipped(texts: Texts, advantages: Tensor) -> Tensor:
    ratio = _ratio(texts)
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def _likelihood(texts: Texts, advantages: Tensor, *, low: float, high: float, drop: bool = False) -> Tensor:
    ratio = _ratio(texts).detach()
    kept = ratio * ((ratio > low) & (ratio < high)) if drop else ratio.clamp(low, high)
    return -kept * advantages * texts.logprobs


def _within(texts: Texts, advantages: Tensor, **bounds: Any) -> Tensor:
    kept = second.within_divergence(texts, torch.where(advantages > 0, 1.0, -1.0), cap=None, **bounds).detach() != 0
    return -_ratio(texts) * advantages * kept


def objectives(load: LoadModule) -> list[LibraryObjective]:
    return list(_all(load))


def _all(load: LoadModule) -> Iterator[LibraryObjective]:
    core = load(_CORE)

    def advantages(function: Callable[..., Any], how: str, **more: Any) -> Callable[[Texts], Tensor]:
        def of(texts: Texts) -> Tensor:
            given = {
                "token_level_rewards": texts.penalised,
                "response_mask": texts.marked,
                "index": texts.group.numpy(),
                "gamma": 1.0,
                **more,
            }
            if function is core.compute_gae_advantage_return:
                given.update({"values": torch.zeros_like(texts.penalised), "lambd": 0.95})
            found: Tensor = core.apply_loss_reduction_to_advantages_minibatch(
                function(**given)[0], texts.marked, how, len(texts.reward), texts.longest
            )
            return found

        return of

    def loss(function: Callable[..., Any], written: bool = False, **settings: Any) -> Callable[[Texts, Tensor], Tensor]:
        made = _settings(**settings)

        def of(texts: Texts, given: Tensor) -> Tensor:
            rollout = texts.written if written else None
            found: Tensor = function(texts.logprobs, texts.written, given, made, texts.marked, rollout)[0]
            return found

        return of

    ways: dict[second.Adding, str] = {
        "token-mean": "token_mean",
        "sequence-mean": "sequence_mean",
        "dr-grpo": "seq_mean_token_sum_norm",
    }
    regular = loss(core.ppo_policy_loss)

    def estimator(
        name: str,
        function: Callable[..., Any],
        exact: Callable[[Texts], Tensor],
        how: second.Adding,
        ours: str = "",
        rounded: Callable[[Texts], Tensor] | None = None,
        **more: Any,
    ) -> LibraryObjective:
        line, module, why = _RATIO.line, _RATIO.module, _RATIO.why
        if rounded is not None:
            line, module, why = _WHITENED, _CORE, f"1e-8 is added to the variance; {_RATIO.why}"
        return LibraryObjective(
            maker="skyrl",
            name=name,
            theirs=Measurable(regular, advantages(function, ways[how], **more)),
            second=second.derived(exact, second.uncapped, how),
            ours=ours,
            differs=Differs(
                line=line,
                module=module,
                why=why,
                explained=second.derived(rounded or exact, _clipped, how),
            ),
        )

    grpo = core.compute_grpo_outcome_advantage
    yield estimator("grpo, token_mean", grpo, second.of_group, "token-mean")
    yield estimator("grpo, sequence_mean", grpo, second.of_group, "sequence-mean", "clip")
    yield estimator(
        "grpo without std, seq_mean_token_sum_norm",
        grpo,
        partial(second.of_group, scaled=False),
        "dr-grpo",
        "dr-grpo",
        grpo_norm_by_std=False,
    )
    yield estimator("rloo", core.compute_rloo_outcome_advantage, second.left_out, "token-mean", "RLOO")
    for name, function, exact, ours in (
        ("reinforce++", core.compute_reinforce_plus_plus_outcome_advantage, second.to_go, "reinforce++"),
        ("gae", core.compute_gae_advantage_return, second.generalised, "PPO"),
    ):
        soft = partial(second.whitened, exact, epsilon=1e-8, dtype=torch.float32)
        yield estimator(name, function, partial(second.whitened, exact), "token-mean", ours, soft)

    def policy(
        name: str,
        function: Callable[..., Any],
        terms: second.Terms,
        ours: str = "",
        how: second.Adding = "token-mean",
        single: second.Terms | None = None,
        written: bool = False,
        **settings: Any,
    ) -> LibraryObjective:
        """`single`: the same with the ratio in float32."""
        theirs = advantages(core.compute_rloo_outcome_advantage, ways[how])
        explained = None if single is None else second.derived(second.left_out, single, how)
        return LibraryObjective(
            maker="skyrl",
            name=f"{name} loss",
            theirs=Measurable(loss(function, written, **settings), theirs),
            second=second.derived(second.left_out, terms, how),
            ours=ours,
            differs=None if explained is None else replace(_RATIO, explained=explained),
        )

    yield policy("sapo", core.sapo_policy_loss, second.soft_gate, "sapo", "sequence-mean")
    of_text = partial(second.of_text, clip=0.2)
    yield policy("gspo", core.gspo_policy_loss, of_text, "gspo", "sequence-mean")
    bounds: dict[str, Any] = {"low": 1.0, "high": 6.0}
    yield policy(
        "cispo",
        core.compute_policy_loss_cispo,
        partial(second.weighed_likelihood, **bounds),
        "cispo",
        single=partial(_likelihood, **bounds),
    )
    bounds = {"low": 0.8, "high": 1.2, "drop": True}
    yield policy(
        "rollout_is",
        core.rollout_is_policy_loss,
        partial(second.weighed_likelihood, **bounds),
        single=partial(_likelihood, **bounds),
        written=True,
    )
    forms: tuple[tuple[str, str], ...] = (("tv", "binary_tv"), ("kl", "binary_kl"))
    for form, called in forms:
        bounds = {"form": form, "low": 0.2, "high": 0.2}
        yield policy(
            f"dppo {form}",
            core.dppo_policy_loss,
            partial(second.within_divergence, cap=None, **bounds),
            single=partial(_within, **bounds),
            dppo=SimpleNamespace(dppo_type=called, delta_low=0.2, delta_high=0.2),
        )
    yield policy("importance_sampling", core.importance_sampling_loss, _weighed)


def _weighed(texts: Texts, advantages: Tensor) -> Tensor:
    return -(texts.logprobs - texts.written).exp() * advantages
