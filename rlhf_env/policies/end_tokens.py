"""The tokens that end a text, as models and the tokenizers beside them name them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_env import assets
from rlhf_env.envs.tokenizers import FileTokenizer
from rlhf_env.policies.untyped import HFModel


def listed(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Ids as configurations name them - none, one, or a list - without repetition, in their order."""
    return tuple(dict.fromkeys([] if ids is None else map(int, ids) if isinstance(ids, Sequence) else [int(ids)]))


def end_ids_of_model(model: HFModel) -> tuple[int, ...]:
    """Every end token that the model's configuration and its generation configuration name, in that order."""
    configs = (model.config.get_text_config(), model.config, getattr(model, "generation_config", None))
    return listed([token for config in configs for token in listed(getattr(config, "eos_token_id", None))])


def end_ids_beside(name: str | Path, model: HFModel) -> tuple[int, ...]:
    """Those that the model names, and those of the tokenizer in its folder, if it has one."""
    folder = Path(assets.resolve(str(name))).expanduser()
    beside = FileTokenizer(folder).end_ids if (folder / "tokenizer.json").is_file() else ()
    return listed([*end_ids_of_model(model), *beside])
