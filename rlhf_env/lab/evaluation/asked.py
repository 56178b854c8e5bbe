"""What an evaluation asked: how many different prompts, and whether training uses them too.

"Held out" is said of prompts that training does not use, and of nothing else. A task that holds nothing out is measured
on the prompts that it trains on; where an evaluation asks for more prompts than there are, some are asked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_env.envs.tokenizers import conversation_of, said_in
from rlhf_env.types import Prompt


@dataclass(frozen=True)
class PromptsAsked:
    """The prompts behind an evaluation's numbers."""

    prompts: int
    """Different ones."""
    replies: int
    """Answers that were measured: more than prompts where some were asked more than once."""
    in_training: int | None
    """Of the prompts, those that training uses too; None where nobody knows."""
    cut: int = 0
    """Of the prompts, those that were asked without a part that was too long (`over_long` in [environment])."""
    left_out: int = 0
    """Prompts beside them that were too long to be asked."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], replies: int) -> PromptsAsked | None:
        """As an evaluation's metrics say it; None for metrics of a version that did not."""
        if "prompts" not in metrics:
            return None
        known = metrics.get("prompts_in_training")
        cut, left_out = (int(metrics.get(name, 0)) for name in ("prompts_cut", "prompts_left_out"))
        return cls(int(metrics["prompts"]), replies, None if known is None else int(known), cut, left_out)

    def __str__(self) -> str:
        """Like "128 held-out prompts", "60 prompts that training uses too (3 of them cut, 2 left out), 128 replies"."""
        words = f"{self.prompts:,} {self.kind}"
        changed = [f"{self.cut:,} of them cut"] * (self.cut > 0) + [f"{self.left_out:,} left out"] * (self.left_out > 0)
        words += f" ({', '.join(changed)})" if changed else ""
        return words if self.replies <= self.prompts else f"{words}, {self.replies:,} replies"

    @property
    def kind(self) -> str:
        """The same without numbers of prompts and replies."""
        prompts = "prompt" if self.prompts == 1 else "prompts"
        if self.in_training == 0:
            return f"held-out {prompts}"
        if self.in_training is None:
            return f"{prompts} (training may use them too)"
        if self.in_training == self.prompts:
            return f"{prompts} that training uses too"
        return f"{prompts}, {self.in_training:,} of which training uses too"


def question_of(prompt: Prompt) -> str:
    """What tells prompts apart: the messages of a conversation, however they were rendered; otherwise the text.

    Of a prompt that was cut, that of the whole one: what training reads is not held out because it was cut elsewhere.
    """
    if prompt.uncut is not None:
        return question_of(prompt.uncut)
    messages = prompt.messages or conversation_of(prompt)
    return prompt.text if not messages else json.dumps([[m.get("role"), said_in(m)] for m in messages])
