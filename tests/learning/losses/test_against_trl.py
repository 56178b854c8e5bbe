"""Losses against the code that people know them from: TRL's own methods on the same tensors, in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason="TRL is among what the tests need")
pytest.importorskip("datasets", reason="TRL's trainers read data sets of that library")

from rlhf_rewards.overlong import Overlong
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer

from rlhf_env.learning.advantages import group_advantages
from rlhf_env.learning.functional import kl_estimate, pair_loss, token_weights, weighted_sum
from rlhf_env.learning.losses.declaring import Pairs, TokenBatch, load_pair_loss, load_token_loss
from rlhf_env.testing import make_episode

ROWS, TOKENS = 6, 7


@pytest.fixture
def texts() -> dict[str, Tensor]:
    """Six answers of one to seven tokens, in two groups; ratios from 0.2 to 5."""
    stream = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    mask = torch.arange(TOKENS) < torch.tensor([7, 1, 4, 5, 2, 6])[:, None]
    logprobs = -normal(ROWS, TOKENS).abs() - 0.1
    returns = normal(ROWS)
    return {
        "mask": mask,
        "logprobs": logprobs,
        "old": logprobs + 0.6 * normal(ROWS, TOKENS),
        "reference": logprobs + 0.4 * normal(ROWS, TOKENS),
        "returns": returns,
        "group": torch.tensor([0, 0, 0, 1, 1, 1]),
    }


class Accelerator(SimpleNamespace):
    """One process."""

    num_processes = 1
    sync_gradients = True
    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str = "sum") -> Tensor:
        return values

    gather_for_metrics = gather


def their_token_loss(
    texts: dict[str, Tensor], logprobs: Tensor, advantages: Tensor, *, level: str = "token", **settings: Any
) -> Tensor:
    """`GRPOTrainer._compute_loss` itself, on a trainer that holds nothing but what it reads."""
    from collections import defaultdict

    args = SimpleNamespace(
        delta=settings.pop("delta", None),
        use_bias_correction_kl=settings.pop("use_bias_correction_kl", False),
        sapo_temperature_pos=settings.pop("sapo_temperature_pos", 1.0),
        sapo_temperature_neg=settings.pop("sapo_temperature_neg", 1.05),
        steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=settings.pop("beta", 0.0),
        args=args,
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=TOKENS + 2,
        accelerator=Accelerator(),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    for name, value in settings.items():
        setattr(trainer, name, value)
    mask = texts["mask"].long()
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": texts["old"],
        "ref_per_token_logps": texts["reference"],
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[arg-type]
    return loss


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip": ({"name": "clip", "aggregation": "sequence-mean", "importance_cap": 1e9}, {"loss_type": "grpo"}),
    "clip, capped": (
        {"name": "clip", "aggregation": "sequence-mean", "importance_cap": 1.5},
        {"loss_type": "grpo", "delta": 1.5},
    ),
    "dapo": ({"name": "dapo", "importance_cap": 1e9}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr-grpo": ({"name": "dr-grpo", "importance_cap": 1e9}, {"loss_type": "dr_grpo"}),
    "gspo": (
        {"name": "gspo", "clip": 0.03, "clip_high": 0.04},
        {"loss_type": "grpo", "level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "cispo": ({"name": "cispo", "cap": 1.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),
    "sapo": (
        {"name": "sapo", "positive_temperature": 0.75, "negative_temperature": 1.5},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.75, "sapo_temperature_neg": 1.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_token_losses_and_their_gradients_are_those_of_trl(texts: dict[str, Tensor], case: str) -> None:
    spec, theirs = CASES[case]
    loss = load_token_loss(spec)
    advantages = group_advantages(texts["returns"], texts["group"], scale_by_std=case != "dr-grpo")
    ours = texts["logprobs"].clone().requires_grad_()
    tokens = TokenBatch(
        logprobs=ours,
        log_ratio=(ours - texts["old"]).masked_fill(~texts["mask"], 0.0),
        advantages=advantages[:, None].expand(ROWS, TOKENS),
        actions=texts["mask"],
    )
    assert loss.declared.aggregation is not None
    weights = token_weights(texts["mask"], loss.declared.aggregation, longest=TOKENS + 2)
    value = weighted_sum(loss(tokens), weights)
    given = texts["logprobs"].clone().requires_grad_()
    expected = their_token_loss(texts, given, advantages, **theirs)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(one, by)[0] for one, by in ((value, ours), (expected, given))),
                               rtol=0, atol=1e-12)  # fmt: skip
    unclipped = weighted_sum(-tokens.log_ratio.exp() * tokens.advantages, weights)
    assert abs(float(value.detach() - unclipped.detach())) > 1e-3, "the case must clip something"


def test_the_corrected_kl_is_that_of_trl(texts: dict[str, Tensor]) -> None:
    """Its default penalty, alone: no advantage."""
    nothing = torch.zeros(ROWS, dtype=torch.float64)
    weights = token_weights(texts["mask"], "sequence-mean")
    found = []
    for kind, corrected in (("k3", False), ("k3-corrected", True)):
        ours, given = (texts["logprobs"].clone().requires_grad_() for _ in range(2))
        log_ratio = (ours - texts["old"]).masked_fill(~texts["mask"], 0.0)
        estimate = kl_estimate(ours, texts["reference"], kind, log_ratio)  # type: ignore[arg-type]
        value = 0.3 * weighted_sum(estimate, weights)
        expected = their_token_loss(texts, given, nothing, loss_type="grpo", beta=0.3, use_bias_correction_kl=corrected)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(one, by)[0] for one, by in ((value, ours), (expected, given))]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
        found.append(float(value.detach()))
    assert abs(found[0] - found[1]) > 1e-3


# ---------------------------------------------------------------- pairs

PAIRS = 5
BETA = 0.3


def their_pair_loss(kind: str, logps: Tensor, reference: Tensor, lengths: Tensor, smoothing: float) -> Tensor:
    """`DPOTrainer._compute_loss` itself, on log-probabilities of [chosen, rejected], one token a row: [2 P]."""
    from collections import defaultdict

    width = int(lengths.max()) + 1
    # An answer's log-probability stands at its first token; the mask, shifted by one as theirs is, has its length.
    mask = (torch.arange(width) >= 1) & (torch.arange(width) <= lengths[:, None])
    of_tokens = torch.zeros(2 * PAIRS, width - 1, dtype=torch.float64)
    of_tokens = torch.cat([logps[:, None], of_tokens[:, 1:]], dim=1)

    class Stop(Exception):
        """Beyond the loss they log what this needs no model for."""

    def model(**_: Any) -> Any:
        return SimpleNamespace(log_probs=of_tokens, aux_loss=None, entropy=torch.zeros_like(of_tokens))

    found: list[Tensor] = []

    def gather_for_metrics(values: Tensor) -> Tensor:
        raise Stop

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=gather_for_metrics),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "input_ids": torch.zeros(2 * PAIRS, width, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }
    import sys

    def keep(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is DPOTrainer._compute_loss.__code__ and event == "exception":
            found.append(frame.f_locals["loss"])
        return keep

    before = sys.gettrace()
    sys.settrace(keep)
    try:
        DPOTrainer._compute_loss(trainer, model, inputs, False)  # type: ignore[arg-type]
    except Stop:
        pass
    finally:
        sys.settrace(before)
    return found[0]


@pytest.fixture
def answers() -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(1)
    logps = -5.0 * torch.rand(2 * PAIRS, generator=stream, dtype=torch.float64) - 0.5
    reference = logps + 3.0 * torch.randn(2 * PAIRS, generator=stream, dtype=torch.float64)
    return {"logps": logps, "reference": reference, "lengths": torch.tensor([3, 1, 4, 2, 5, 2, 2, 6, 1, 3])}


def pairs_of(answers: dict[str, Tensor], scores: Tensor, smoothing: float = 0.0) -> Pairs:
    return Pairs(
        chosen=scores[:PAIRS],
        rejected=scores[PAIRS:],
        chosen_tokens=answers["lengths"][:PAIRS],
        rejected_tokens=answers["lengths"][PAIRS:],
        beta=BETA,
        wrong=smoothing,
    )


@pytest.mark.parametrize(
    ("name", "theirs", "smoothing"),
    [
        ("sigmoid", "sigmoid", 0.0),
        ("hinge", "hinge", 0.0),
        ("robust", "robust", 0.1),
        ("apo-zero", "apo_zero", 0.0),
        ("apo-down", "apo_down", 0.0),
        ("sppo", "sppo_hard", 0.0),
    ],
)
def test_pair_losses_and_their_gradients_are_those_of_trl(
    answers: dict[str, Tensor], name: str, theirs: str, smoothing: float
) -> None:
    ours, given = (answers["logps"].clone().requires_grad_() for _ in range(2))
    value = load_pair_loss(name)(pairs_of(answers, ours - answers["reference"], smoothing)).mean()
    expected = their_pair_loss(theirs, given, answers["reference"], answers["lengths"], smoothing)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(one, by)[0] for one, by in ((value, ours), (expected, given))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("ipo", "ipo"), ("sigmoid", "sigmoid_norm")])
def test_what_trl_divides_by_length_is_length_normalised(answers: dict[str, Tensor], name: str, theirs: str) -> None:
    """IPO without that is the paper's eq. 17, and another number."""
    ratios = answers["logps"] - answers["reference"]
    expected = their_pair_loss(theirs, answers["logps"], answers["reference"], answers["lengths"], 0.0)
    loss = load_pair_loss(name)
    torch.testing.assert_close(
        loss(pairs_of(answers, ratios / answers["lengths"])).mean(), expected, rtol=0, atol=1e-12
    )
    assert abs(float(loss(pairs_of(answers, ratios)).mean() - expected)) > 1e-3


def test_losses_without_a_reference_are_those_of_trl(answers: dict[str, Tensor]) -> None:
    """SimPO and CPO by `CPOTrainer.cpo_loss`, ORPO by `ORPOTrainer.odds_ratio_loss`, which computes in float32."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    per_token = answers["logps"] / answers["lengths"]

    def trainer(**settings: Any) -> Any:
        return SimpleNamespace(accelerator=Accelerator(), alpha=0.0, label_smoothing=0.0, **settings)

    both = per_token[:PAIRS], per_token[PAIRS:]
    theirs, _, _ = CPOTrainer.cpo_loss(trainer(loss_type="simpo", beta=2.0, simpo_gamma=1.0), *both)
    torch.testing.assert_close(load_pair_loss("simpo")(pairs_of(answers, answers["logps"])), theirs, rtol=0, atol=1e-12)
    whole = answers["logps"][:PAIRS], answers["logps"][PAIRS:]
    theirs, _, _ = CPOTrainer.cpo_loss(trainer(loss_type="sigmoid", beta=0.1), *whole)
    ours = load_pair_loss({"name": "cpo", "likelihood": 0.0})(pairs_of(answers, answers["logps"]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    with_likelihood = load_pair_loss("cpo")(pairs_of(answers, answers["logps"]))
    torch.testing.assert_close(with_likelihood, theirs - whole[0], rtol=0, atol=1e-12)
    odds, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.1), *both)
    ours = load_pair_loss("orpo")(pairs_of(answers, answers["logps"]))
    torch.testing.assert_close(ours, -both[0] - odds.double(), rtol=0, atol=1e-6)


def test_soft_overlong_punishment_is_that_of_trl() -> None:
    theirs = get_soft_overlong_punishment(10, 4)
    episodes = [make_episode("p", "a" * length) for length in range(1, 15)]
    lengths = [int(episode.actions.sum()) for episode in episodes]
    expected = theirs(completion_ids=[[0] * length for length in lengths])
    assert Overlong(10, 4)(episodes).tolist() == pytest.approx(expected, abs=1e-12)
    assert min(expected) == -1.0 and len(set(expected)) == 5, "0, three steps and -1"


def test_the_sigmoid_with_a_margin_of_reward_is_no_other_loss() -> None:
    """The plain function that a reward model learns by is the one that the table has."""
    chosen, rejected = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.2, 0.4]).double()
    pairs = Pairs(chosen=chosen, rejected=rejected, chosen_tokens=chosen, rejected_tokens=chosen, beta=0.7)
    assert torch.equal(load_pair_loss("sigmoid")(pairs), pair_loss(chosen, rejected, beta=0.7))
