"""AReaL: `ppo_actor_loss_fn`, `sapo_loss_fn` and the preference loss of `areal.utils.functional.functional`.

Its advantages are made by a trainer with its own engine, so those of the losses here are RLOO's, by us.
"""

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

_CORE = "areal.utils.functional.functional"


def objectives(load: LoadModule) -> list[LibraryObjective]:
    core = load(_CORE)
    return [*_online(core), *_pairs(core)]


def _online(core: Any) -> Iterator[LibraryObjective]:
    def ppo(texts: Texts, advantages: Tensor, **settings: Any) -> Tensor:
        found: Tensor = core.ppo_actor_loss_fn(
            texts.logprobs, texts.written, texts.written, advantages, 0.2, texts.mask, **settings
        )[0]
        return found

    def sapo(texts: Texts, advantages: Tensor, **settings: Any) -> Tensor:
        found: Tensor = core.sapo_loss_fn(texts.logprobs, texts.written, advantages, 1.0, 1.05, texts.mask, **settings)[
            0
        ]
        return found

    def entry(
        name: str, loss: Callable[..., Tensor], terms: second.Terms, ours: str, **settings: Any
    ) -> LibraryObjective:
        return LibraryObjective(
            maker="areal",
            name=name,
            theirs=Measurable(partial(loss, **settings), second.left_out),
            second=second.derived(second.left_out, terms, "token-mean"),
            ours=ours,
        )

    yield entry("ppo_actor_loss_fn", ppo, second.uncapped, "clip")
    yield entry("ppo_actor_loss_fn, dual clip 3", ppo, partial(second.clipped, dual=3.0), "clip", c_clip=3.0)
    yield entry(
        "ppo_actor_loss_fn, sequence level",
        ppo,
        partial(second.of_text, clip=0.2),
        "gspo",
        importance_sampling_level="sequence",
    )
    yield entry("sapo_loss_fn", sapo, second.soft_gate, "sapo")


def _pairs(core: Any) -> Iterator[LibraryObjective]:
    def entry(name: str, loss_type: str, form: second.Pairwise, single: second.Pairwise, ours: str) -> LibraryObjective:
        def loss(texts: Texts, _: Tensor) -> Tensor:
            # A text is packed behind one token of prompt.
            inside = torch.cat([torch.zeros(len(texts.reward), 1, dtype=torch.bool), texts.mask], 1)
            kept = torch.cat([torch.ones(len(texts.reward), 1, dtype=torch.bool), texts.mask], 1)

            def packed(values: Tensor) -> Tensor:
                # What follows a position is predicted there.
                shifted = torch.cat([values, torch.zeros(len(values), 1, dtype=values.dtype)], 1)
                return shifted[kept]

            ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
            policy, reference, count = core.dpo_pair_logratios(
                packed(texts.logprobs),
                packed(texts.reference),
                ends,
                inside[kept],
                torch.ones(len(texts.reward) // 2, dtype=torch.bool),
            )
            ratio = policy - reference
            if loss_type == "ipo":
                ratio = ratio / count
            found: Tensor = core.dpo_preference_loss(
                ratio[:, 0] - ratio[:, 1], beta=texts.beta, loss_type=loss_type
            ).mean()
            return found

        return LibraryObjective(
            maker="areal",
            name=name,
            theirs=Measurable(loss, None, "pairs"),
            second=second.of_pairs(form),
            penalty="in loss",
            ours=ours,
            differs=Differs(
                line="return -torch.nn.functional.logsigmoid(beta * logits.float())"
                if loss_type == "sigmoid"
                else "return (logits.float() - 1.0 / (2.0 * beta)) ** 2",
                module=_CORE,
                why="the difference of log-ratios is rounded to float32",
                explained=second.of_pairs(single),
            ),
        )

    def sigmoid(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
        return -torch.nn.functional.logsigmoid(texts.beta * (a - b).float())

    def ipo(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
        m, n = second.lengths(texts)
        return ((a / m - b / n).float() - 0.5 / texts.beta).square()

    yield entry("dpo sigmoid", "sigmoid", second.sigmoid, sigmoid, "sigmoid")
    yield entry("dpo ipo", "ipo", partial(second.ipo, per_token=1), ipo, "ipo")
