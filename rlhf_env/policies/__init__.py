"""Who writes the texts."""

from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Policy, Sampling, TextEvaluation, Written
from rlhf_env.policies.tabular import ResponseTree, TabularPolicy
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.policies.value_head import ValueHead

__all__ = [
    "Policy",
    "Sampling",
    "Written",
    "TextEvaluation",
    "LanguageModel",
    "TabularPolicy",
    "ResponseTree",
    "ValueHead",
    "tiny_language_model",
]
