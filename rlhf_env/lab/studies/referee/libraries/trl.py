"""TRL: `GRPOTrainer`, `RLOOTrainer` and `DPOTrainer` compute advantages and losses in methods, which are called here
with an object that has the attributes that they read. Nothing of theirs is written down again."""

from __future__ import annotations

from collections import defaultdict
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

_GRPO, _RLOO, _DPO = "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer", "trl.trainer.dpo_trainer"
_STD = Differs(
    line="advantages / (std_rewards + 1e-4)",
    module=_GRPO,
    why="1e-4 is added to the standard deviation; 1e-6 here",
)
_ADVANTAGES: dict[bytes, Tensor] = {}
_MODEL = SimpleNamespace(training=True, is_gradient_checkpointing=False)
_PROCESSES = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    sync_gradients=False,
    gather=lambda values: values,
    gather_for_metrics=lambda values: values,
    reduce=lambda values, reduction: values,
)


def _trainer(texts: Texts, arguments: Any, **own: Any) -> SimpleNamespace:
    """What the methods of an online trainer read, with the settings of its own configuration class."""
    size = texts.mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(texts.tokens.tolist(), size, strict=True)]

    def logprobs(
        model: object, ids: Tensor, mask: Tensor, kept: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor, None]:
        # As wide as the longest text of the batch, which is how wide theirs would be.
        wanted = {"reference": texts.reference, "policy": texts.logprobs}.get(str(model), texts.written)
        return wanted[:, :kept], texts.entropy[:, :kept], None

    return SimpleNamespace(
        accelerator=_PROCESSES,
        model=_MODEL,
        ref_model="reference",
        args=arguments,
        beta=texts.beta,
        epsilon_low=arguments.epsilon,
        epsilon_high=arguments.epsilon if arguments.epsilon_high is None else arguments.epsilon_high,
        max_completion_length=texts.longest,
        num_generations=len(ids) // texts.batches,
        num_iterations=1,
        reward_weights=torch.ones(1, dtype=torch.float64),
        reward_funcs=["reward"],
        reward_func_names=["reward"],
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        use_vllm=False,
        environment_factories=None,
        environments=None,
        tools=None,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _metrics={"train": defaultdict(list)},
        _logs={"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": {}},
        _pending_extra_logs={},
        _pending_metrics={},
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=logprobs,
        _generate=lambda prompts: ([[0]] * len(ids), ids, None, [""] * len(ids), None, {}, None, None),
        _calculate_rewards=lambda *_: texts.reward[:, None],
        **own,
    )


class _Online:
    """An online trainer's class with its configuration: `advantages` and `loss` of texts, by its own methods."""

    def __init__(
        self, trainer: Any, configuration: Any, scoring: Any | None = None, *, tools: bool = True, **settings: Any
    ) -> None:
        """`scoring`: the class whose advantages it takes; `tools`: whether its texts may call some."""
        self.trainer, self.tools = trainer, tools
        self.scoring = scoring or trainer
        # Only the values: the class would make a folder for its results and choose a device.
        names = {field.name: field.default for field in configuration.__dataclass_fields__.values()}
        self.arguments = SimpleNamespace(**{**names, "steps_per_generation": 1, **settings})
        # Computing log mu instead of taking it for log pi is what it does off-policy.
        self.arguments.gradient_accumulation_steps = 1

    def _self(self, texts: Texts) -> SimpleNamespace:
        arguments = self.arguments
        read = (
            "loss_type",
            "scale_rewards",
            "importance_sampling_level",
            "top_entropy_quantile",
            "off_policy_mask_threshold",
            "multi_objective_aggregation",
            "normalize_advantages",
            "reward_clip_range",
        )
        own = {name: getattr(arguments, name) for name in read if hasattr(arguments, name)}
        made = _trainer(texts, arguments, **own)
        made.get_gamma_weights = getattr(self.trainer, "get_gamma_weights", None)
        if not self.tools:
            written = made._generate(None)
            made._generate = lambda _: (written[0], written[1], written[3])
        return made

    def _scored(self, texts: Texts) -> dict[str, Tensor]:
        rows = [{"prompt": ""} for _ in range(len(texts.reward))]
        scored: dict[str, Tensor] = self.scoring._generate_and_score_completions(self._self(texts), rows)
        return scored

    def advantages(self, texts: Texts) -> Tensor:
        return self._scored(texts)["advantages"]

    def advantages_of_rewards(self, texts: Texts) -> Tensor:
        """Where the penalty is in the loss, they are of rewards alone: asked for once."""
        settings = str(getattr(self.arguments, "scale_rewards", None)).encode()
        key = b"".join([settings, texts.reward.numpy().tobytes(), texts.group.numpy().tobytes()])
        if key not in _ADVANTAGES:
            _ADVANTAGES[key] = self.advantages(texts)
        return _ADVANTAGES[key]

    def loss(self, texts: Texts, advantages: Tensor) -> Tensor:
        """In batches of more than one group the number of tokens is that of all."""
        made = self._self(texts)
        inputs = {
            "prompt_ids": torch.zeros(len(advantages), 1, dtype=torch.int64),
            "prompt_mask": torch.ones(len(advantages), 1, dtype=torch.int64),
            "completion_ids": texts.tokens,
            "completion_mask": texts.mask.long(),
            "advantages": advantages,
            "num_items_in_batch": texts.mask.sum(),
            "old_per_token_logps": texts.written,
            "old_logps": texts.written.sum(1),
            "ref_per_token_logps": texts.reference,
        }
        loss: Tensor = self.trainer._compute_loss(made, "policy", inputs)
        return loss


def _online(load: LoadModule) -> Iterator[LibraryObjective]:
    """GRPO's loss types, its KL terms, and RLOO."""
    trainer, configuration = load(_GRPO).GRPOTrainer, load("trl.trainer.grpo_config").GRPOConfig

    def entry(name: str, like: Callable[[float], Measurable], ours: str = "", **settings: Any) -> LibraryObjective:
        theirs = _Online(trainer, configuration, **settings)
        scaled = theirs.arguments.scale_rewards != "none"
        return LibraryObjective(
            maker="trl",
            name=name,
            theirs=Measurable(theirs.loss, theirs.advantages_of_rewards),
            second=like(1e-6),
            penalty="in loss",
            ours=ours,
            differs=Differs(line=_STD.line, module=_STD.module, why=_STD.why, explained=like(1e-4)) if scaled else None,
        )

    def scaled(epsilon: float) -> Callable[[Texts], Tensor]:
        return partial(second.of_group, epsilon=epsilon, penalty=False)

    def like(terms: second.Terms, how: second.Adding, **parts: Any) -> Callable[[float], Measurable]:
        return lambda epsilon: second.derived(scaled(epsilon), terms, how, **{"kl": "k3-corrected", **parts})

    clip = partial(second.clipped, dual=1e9)
    yield entry("grpo", like(clip, "sequence-mean"), "clip", loss_type="grpo")
    yield entry("dapo (default)", like(clip, "token-mean"), "dapo", loss_type="dapo")
    yield entry("bnpo", like(clip, "token-mean"), loss_type="bnpo")
    yield entry("dr_grpo, scaled by std", like(clip, "dr-grpo"), loss_type="dr_grpo")
    capped = partial(second.weighed_likelihood, low=0.0, high=5.0)
    yield entry("cispo", like(capped, "token-mean"), "cispo", loss_type="cispo", epsilon_high=5.0)
    yield entry("sapo", like(partial(second.soft_gate, dtype=torch.float32), "sequence-mean"), "sapo", loss_type="sapo")
    yield entry("vespo", like(second.gamma_weighed, "token-mean"), loss_type="vespo")
    gspo: dict[str, Any] = {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
    of_text = partial(second.of_text, clip=3e-4, high=4e-4)
    yield entry(
        "grpo, sequence level (GSPO)",
        like(of_text, "sequence-mean", whole_ratio=True),
        "gspo",
        loss_type="grpo",
        **gspo,
    )
    yield entry("luspo", like(of_text, "sequence-sum", whole_ratio=True), loss_type="luspo", **gspo)

    plain = {"loss_type": "dr_grpo", "scale_rewards": "none"}

    def unscaled(kl: Any, **parts: Any) -> Callable[[float], Measurable]:
        advantages = partial(second.of_group, scaled=False, penalty=False)
        return lambda _: second.derived(advantages, clip, "dr-grpo", kl=kl, **parts)

    yield entry("dr_grpo, KL term (default)", unscaled("k3-corrected"), "dr-grpo", **plain)
    yield entry("dr_grpo, KL term uncorrected", unscaled("k3"), "k3 in loss", use_bias_correction_kl=False, **plain)
    whole = {"importance_sampling_level": "sequence", **plain}
    advantages = partial(second.of_group, scaled=False, penalty=False)
    yield entry(
        "dr_grpo, KL term, sequence level",
        lambda _: second.derived(
            advantages, partial(second.of_text, clip=0.2), "dr-grpo", kl="k3-corrected", whole_ratio=True
        ),
        **whole,
    )

    gmpo = load("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
    settings = load("trl.experimental.gmpo.gmpo_config").GMPOConfig
    geometric = _Online(gmpo, settings, trainer)
    form = partial(second.geometric, clip=float(geometric.arguments.epsilon))
    yield LibraryObjective(
        maker="trl",
        name="gmpo",
        theirs=Measurable(geometric.loss, geometric.advantages_of_rewards),
        second=second.derived(scaled(1e-6), form, "sequence-mean", kl="k3"),
        penalty="in loss",
        differs=Differs(
            line=_STD.line,
            module=_STD.module,
            why=_STD.why,
            explained=second.derived(scaled(1e-4), form, "sequence-mean", kl="k3"),
        ),
    )

    rloo, settings = load(_RLOO).RLOOTrainer, load("trl.trainer.rloo_config").RLOOConfig

    def whole_text(texts: Texts, advantages: Tensor) -> Tensor:
        ratio = (texts.logprobs - texts.written).sum(1, keepdim=True).exp()
        bound = ratio.clamp(0.8, 1.2)
        term = -torch.minimum(ratio * advantages, bound * advantages) / texts.counted.sum(1, keepdim=True)
        return term.expand(texts.mask.shape)

    left_out = _Online(rloo, settings, tools=False)
    yield LibraryObjective(
        maker="trl",
        name="rloo",
        theirs=Measurable(left_out.loss, left_out.advantages),
        second=second.derived(second.left_out, whole_text, "sequence-sum"),
        ours="RLOO",
    )


# ---------------------------------------------------------------- pairs


class _Pairs:
    """DPOTrainer with one of its loss types."""

    def __init__(self, trainer: Any, loss_type: str, **settings: Any) -> None:
        self.trainer, self.loss_type, self.settings = trainer, loss_type, settings

    def loss(self, texts: Texts, _: Tensor) -> Tensor:
        # One prompt token, then the text: its first half preferred, the second the others.
        order = torch.cat([torch.arange(0, len(texts.reward), 2), torch.arange(1, len(texts.reward), 2)])
        token = torch.zeros(len(order), 1, dtype=torch.int64)
        mask = torch.cat([token, texts.mask[order].long()], 1)

        def model(*, input_ids: Tensor, **_: Any) -> SimpleNamespace:
            logprobs = texts.logits[order].log_softmax(-1)
            squares = (2.0 * logprobs).logsumexp(-1).detach()
            return SimpleNamespace(
                log_probs=texts.logprobs[order],
                log_sum_sq_probs=squares,
                entropy=texts.entropy[order],
                mean_logits=texts.logits[order].mean(-1).detach(),
                is_top1=logprobs.argmax(-1) == texts.tokens[order],
            )

        reference = texts.reference[order].sum(1).chunk(2)
        made = SimpleNamespace(
            accelerator=_PROCESSES,
            model=_MODEL,
            args=SimpleNamespace(discopop_tau=0.05),
            beta=texts.beta,
            loss_types=[self.loss_type],
            loss_weights=[1.0],
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
            **{
                "label_smoothing": 0.0,
                "ld_alpha": None,
                "f_divergence_type": "reverse_kl",
                "use_weighting": False,
                **self.settings,
            },
        )
        inputs = {
            "input_ids": torch.cat([token, texts.tokens[order]], 1),
            "attention_mask": mask,
            "completion_mask": torch.cat([token, texts.mask[order].long()], 1),
            "ref_chosen_logps": reference[0],
            "ref_rejected_logps": reference[1],
        }
        loss: Tensor = self.trainer._compute_loss(made, model, inputs, False)
        return loss


def _pairs(load: LoadModule) -> Iterator[LibraryObjective]:
    """The DPO types that are losses of one pair, the f-divergences, WPO; and CPO, SimPO and ORPO."""
    trainer = load(_DPO).DPOTrainer

    def entry(name: str, form: second.Pairwise, loss_type: str, ours: str = "", **settings: Any) -> LibraryObjective:
        theirs = _Pairs(trainer, loss_type, **settings)
        return LibraryObjective(
            maker="trl",
            name=name,
            theirs=Measurable(theirs.loss, None, "pairs"),
            second=second.of_pairs(form),
            penalty="in loss",
            ours=ours,
        )

    yield entry("dpo sigmoid", second.sigmoid, "sigmoid", "sigmoid")
    yield entry("dpo hinge", second.hinge, "hinge", "hinge")
    yield entry("dpo ipo", partial(second.ipo, per_token=1), "ipo", "ipo")
    yield entry("dpo sigmoid_norm", second.per_token_sigmoid, "sigmoid_norm")
    yield replace(
        entry("dpo exo_pair", partial(second.exo, wrong=1e-3), "exo_pair", label_smoothing=1e-3),
        differs=Differs(
            line="epsilon = torch.tensor(self.label_smoothing, device=device)",
            module=_DPO,
            why="the share of wrong labels in float32",
            explained=second.of_pairs(partial(second.exo, wrong=float(torch.tensor(1e-3)))),
        ),
    )
    yield entry("dpo nca_pair", second.nca, "nca_pair")
    robust = entry("dpo robust", partial(second.robust, wrong=0.1), "robust", "robust", label_smoothing=0.1)
    yield replace(robust, wrong=0.1)
    yield entry("dpo bco_pair", second.bco, "bco_pair")
    yield entry("dpo sppo_hard", second.sppo, "sppo_hard", "sppo")
    yield entry("dpo apo_zero", second.apo_zero, "apo_zero", "apo-zero")
    yield entry("dpo apo_down", second.apo_down, "apo_down", "apo-down")
    yield entry("dpo discopop", second.discovered, "discopop")
    yield entry("dpo sft", second.preferred_only, "sft")
    yield entry("dpo forward_kl", second.forward_kl, "sigmoid", f_divergence_type="forward_kl")
    yield entry("dpo js_divergence", second.jensen_shannon, "sigmoid", f_divergence_type="js_divergence")
    yield entry("dpo use_weighting (WPO)", second.weighed, "sigmoid", use_weighting=True)

    contrastive = load("trl.experimental.cpo.cpo_trainer").CPOTrainer
    odds = load("trl.experimental.orpo.orpo_trainer").ORPOTrainer

    def cpo(texts: Texts, _: Tensor) -> Tensor:
        made = SimpleNamespace(accelerator=_PROCESSES, alpha=0.0, beta=0.1, label_smoothing=0.0, loss_type="sigmoid")
        preferred, other = second.free(texts)
        losses, _, _ = contrastive.cpo_loss(made, preferred, other)
        mean: Tensor = losses.mean() - preferred.mean()
        return mean

    def simpo(texts: Texts, _: Tensor) -> Tensor:
        made = SimpleNamespace(
            accelerator=_PROCESSES, alpha=0.0, beta=2.0, label_smoothing=0.0, loss_type="simpo", simpo_gamma=1.0
        )
        (preferred, other), (m, n) = second.free(texts), second.lengths(texts)
        losses, _, _ = contrastive.cpo_loss(made, preferred / m, other / n)
        mean: Tensor = losses.mean()
        return mean

    def orpo(texts: Texts, _: Tensor) -> Tensor:
        made = SimpleNamespace(accelerator=_PROCESSES, beta=0.1)
        (preferred, other), (m, n) = second.free(texts), second.lengths(texts)
        losses = odds.odds_ratio_loss(made, preferred / m, other / n)[0]
        mean: Tensor = (-preferred / m - losses).mean()
        return mean

    single = Differs(
        line="policy_chosen_logps = policy_chosen_logps.float()",
        module="trl.experimental.orpo.orpo_trainer",
        why="the odds are computed in float32",
        explained=second.of_pairs(partial(second.orpo, single=True)),
    )
    free: dict[str, Any] = {"maker": "trl", "penalty": "none"}
    yield LibraryObjective(
        name="cpo", theirs=Measurable(cpo, None, "pairs"), second=second.of_pairs(second.cpo), ours="cpo", **free
    )
    yield LibraryObjective(
        name="cpo simpo",
        theirs=Measurable(simpo, None, "pairs"),
        second=second.of_pairs(second.simpo),
        ours="simpo",
        **free,
    )
    yield LibraryObjective(
        name="orpo",
        theirs=Measurable(orpo, None, "pairs"),
        second=second.of_pairs(second.orpo),
        ours="orpo",
        differs=single,
        **free,
    )


def objectives(load: LoadModule) -> list[LibraryObjective]:
    return [*_online(load), *_pairs(load)]
