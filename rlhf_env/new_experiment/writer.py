"""The model that an experiment is written for, looked at before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rlhf_env.envs.tokenizers import FileTokenizer, has_template
from rlhf_env.errors import ConfigError
from rlhf_env.learning.models import context_before_loading, load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import model_folder
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.sizes import size_of
from rlhf_env.types import Tokenizer

_LARGE = 50_000_000  # parameters from which on adapters are trained in place of all weights


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes: what is known of a model from its folder alone."""

    model: str
    """As it was named."""
    tokenizer: Tokenizer
    context: int | None
    """The longest text that it can read; None: no limit is known."""
    parameters: int = 0
    """0: not known."""
    is_adapter: bool = False
    """Whether the folder holds adapters, which train as they are."""

    @property
    def is_folder(self) -> bool:
        return Path(self.model).expanduser().is_dir()

    @property
    def wants_messages(self) -> bool:
        """Whether its chat template reads messages, and none of a prompt that is a plain text."""
        if not isinstance(self.tokenizer, FileTokenizer) or not has_template(self.tokenizer):
            return False
        return not self.tokenizer.asks_plain_prompts_as_user

    @property
    def is_large(self) -> bool:
        return self.parameters >= _LARGE

    @property
    def adapters(self) -> bool:
        """Whether its experiment trains adapters: it is large, has none yet, and there is the library for them."""
        return self.is_large and not self.is_adapter and find_spec("peft") is not None


def look_at_model(model: str) -> Writer:
    """Raises ConfigError or DataError where it cannot be loaded; of a hub model, tokenizer and configuration are
    fetched, and not its weights."""
    if model in ("tiny", "table"):
        raise ConfigError(
            f"--model {model}: it is made new for toy tasks and has no words: leave --model out for a small model that "
            "talks, or name a folder, an earlier run or a hub name"
        )
    wanted = PolicySettings(model=model)
    tokenizer = load_tokenizer_of(wanted)
    base, adapter = base_and_adapter(model_folder(model))
    size = size_of(base)
    return Writer(
        model=model,
        tokenizer=tokenizer,
        context=context_before_loading(wanted),
        parameters=0 if size is None else size.parameters,
        is_adapter=adapter is not None,
    )
