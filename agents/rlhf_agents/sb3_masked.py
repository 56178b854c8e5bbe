"""sb3-contrib's MaskablePPO with a language model as its policy; see `sb3`. The only file that imports sb3_contrib.

The masks are the task's (`Task.action_mask`): MaskablePPO asks the environment for `action_masks()`.
"""

from __future__ import annotations

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from rlhf_agents.sb3 import SpeaksAsTheModel


class MaskableLanguageModelPolicy(SpeaksAsTheModel, MaskableActorCriticPolicy):  # type: ignore[misc]  # untyped base
    """`MaskablePPO(MaskableLanguageModelPolicy, env, policy_kwargs={"language_model": model})`."""
