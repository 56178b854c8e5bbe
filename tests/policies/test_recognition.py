"""A model's anatomy is looked up once, and again after every change that decides whether it is what its family is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.tiny import tiny_language_model


@pytest.fixture
def policy() -> LanguageModel:
    return tiny_language_model("llama", dtype=torch.float32)


def first_mlp(policy: LanguageModel) -> Any:
    return policy.model.model.layers[0].mlp


def replaced_layer(policy: LanguageModel) -> None:
    old = first_mlp(policy).up_proj
    first_mlp(policy).up_proj = nn.Sequential(old)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def other_kind(policy: LanguageModel) -> None:
    first_mlp(policy).up_proj.__class__ = Doubled


def own_forward(policy: LanguageModel) -> None:
    layer = first_mlp(policy).up_proj
    layer.forward = layer.forward


CHANGES: dict[str, Callable[[LanguageModel], object]] = {
    "a hook": lambda policy: first_mlp(policy).up_proj.register_forward_hook(lambda *_: None),
    "a hook before": lambda policy: policy.model.register_forward_pre_hook(lambda *_: None),
    "a hook backward": lambda policy: first_mlp(policy).register_full_backward_hook(lambda *_: None),
    "another module": replaced_layer,
    "another class": other_kind,
    "a forward of its own": own_forward,
    "half of it in bfloat16": lambda policy: first_mlp(policy).to(torch.bfloat16),
    "all in float16": lambda policy: policy.model.half(),
    "another attention": lambda policy: setattr(policy.model.config, "_attn_implementation", "flex_attention"),
    "attends to what comes": lambda policy: setattr(policy.model.config, "use_bidirectional_attention", True),
    "recomputation": lambda policy: setattr(policy.model.model, "gradient_checkpointing", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen(policy: LanguageModel, change: Callable[[LanguageModel], object]) -> None:
    assert policy.anatomy() is not None
    change(policy)
    assert anatomy_of(policy.model) is None
    assert policy.anatomy() is None


def test_a_change_that_is_taken_back_is_seen(policy: LanguageModel) -> None:
    hook = first_mlp(policy).register_forward_hook(lambda *_: None)
    assert policy.anatomy() is None
    hook.remove()
    assert policy.anatomy() is not None


def test_weights_may_move_and_it_is_not_looked_up_again(policy: LanguageModel) -> None:
    before = policy.anatomy()
    for parameter in policy.parameters():
        parameter.data.mul_(1.1)
    policy.load_state_dict(policy.state_dict())
    assert policy.anatomy() is before


def test_another_precision_of_all_is_the_new_one(policy: LanguageModel) -> None:
    before = policy.anatomy()
    policy.model.double()
    assert policy.anatomy() not in (None, before)


def test_a_copy_has_an_anatomy_of_its_own(policy: LanguageModel) -> None:
    before = policy.anatomy()
    other = copy.deepcopy(policy)
    found = other.anatomy()
    assert before is not None and found is not None
    assert found.embed is other.model.get_input_embeddings() and found.embed is not before.embed
