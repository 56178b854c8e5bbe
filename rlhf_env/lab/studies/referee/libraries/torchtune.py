"""torchtune: `DPOLoss`, `RSOLoss` and `PPOLoss` of `torchtune.rlhf.loss`; its advantages are GAE's, by
`rlhf.estimate_advantages`."""

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


def objectives(load: LoadModule) -> list[LibraryObjective]:
    rlhf, losses = load("torchtune.rlhf"), load("torchtune.rlhf.loss")
    return [_ppo(rlhf, losses), *_pairs(losses)]


def _ppo(rlhf: Any, losses: Any) -> LibraryObjective:
    function = losses.PPOLoss(epsilon=0.2)

    def advantages(texts: Texts) -> Tensor:
        zeros = torch.zeros_like(texts.penalised)
        # Off the text there is neither reward nor value.
        found: Tensor = rlhf.estimate_advantages(zeros, texts.penalised, 1.0, 0.95, masks=texts.mask)[0]
        return found

    def loss(texts: Texts, given: Tensor) -> Tensor:
        zeros = torch.zeros_like(texts.written)
        found: Tensor = function(texts.written, texts.logprobs, given, zeros, zeros, zeros, padding_masks=texts.mask)[0]
        return found

    def off_centre(texts: Texts) -> Tensor:
        """The mean is taken off, and added again to what was scaled."""
        values = second.generalised(texts)
        mean = (values * texts.counted).sum() / texts.counted.sum()
        return mean + second.whitened(second.generalised, texts, epsilon=1e-8, dtype=torch.float32)

    return LibraryObjective(
        maker="torchtune",
        name="PPOLoss, estimate_advantages",
        theirs=Measurable(loss, advantages),
        second=second.derived(partial(second.whitened, second.generalised), second.uncapped, "token-mean"),
        ours="PPO",
        differs=Differs(
            line="    if shift_mean:",
            module="torchtune.rlhf.rewards",
            why="the mean is added again to what was scaled, where TRL, whose function it names as its source, adds it "
            "unless shift_mean is set: normalised advantages keep their mean; and 1e-8 is added to the variance",
            explained=second.derived(off_centre, second.uncapped, "token-mean"),
        ),
    )


def _pairs(losses: Any) -> Iterator[LibraryObjective]:
    def entry(name: str, function: Callable[[Texts], Any], form: second.Pairwise, ours: str) -> LibraryObjective:
        def loss(texts: Texts, _: Tensor) -> Tensor:
            (preferred, other), reference = second.free(texts), texts.reference.sum(1)
            found: Tensor = function(texts)(preferred, other, reference[0::2], reference[1::2])[0].mean()
            return found

        return LibraryObjective(
            maker="torchtune",
            name=name,
            theirs=Measurable(loss, None, "pairs"),
            second=second.of_pairs(form),
            penalty="in loss",
            ours=ours,
        )

    yield entry("DPOLoss", lambda texts: losses.DPOLoss(beta=texts.beta), second.sigmoid, "sigmoid")
    yield entry("RSOLoss", lambda texts: losses.RSOLoss(gamma=texts.beta), second.hinge, "hinge")
