"""What the common families of language models are made of: one description of a layer for all of them.

The transformers library has separate modules for each family, and runs them in many small operations. All families
have the same matrices in nearly the same order, so one piece of code can compute any of them in fewer operations:
`fused` decodes one token more, `trunk` reads whole texts. Both follow the description given here.

`layer` is the description, `families` says where each family keeps its parts, `recognition` decides whether a model
computes what its family computes, `rotary` and `weights` are what the description is computed with.
"""

from rlhf_env.policies.anatomy.layer import Anatomy, Layer
from rlhf_env.policies.anatomy.recognition import Recognized, anatomy_of, has_dropout
from rlhf_env.policies.anatomy.rotary import Rotary, apply_rotary
from rlhf_env.policies.anatomy.weights import (
    LowRank,
    layer_norm_weight,
    low_rank_of,
    rms_norm_weight,
    weight_and_bias,
)

__all__ = [
    "Anatomy",
    "Layer",
    "LowRank",
    "Recognized",
    "Rotary",
    "anatomy_of",
    "apply_rotary",
    "has_dropout",
    "layer_norm_weight",
    "low_rank_of",
    "rms_norm_weight",
    "weight_and_bias",
]
