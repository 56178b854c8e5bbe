"""Smaller models of a family: some of a model's layers, or the same shape made narrower. Students for distillation.

A student that keeps every n-th layer of its teacher starts with its embeddings and much of its sense (DistilBERT, Sanh
et al. 2019, 1910.01108).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_env.envs.tokenizers import end_ids
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.learning.models import load_tokenizer_of, with_vocabulary_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import model_folder, save_language_model
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import merge_adapter
from rlhf_env.policies.untyped import HFConfig, HFModel
from rlhf_env.whole_files import folder_written


@dataclass(frozen=True)
class SmallerModel:
    """What `write_smaller` wrote."""

    parameters: int
    of: int
    """Parameters of the model that it was made from."""
    kept: tuple[int, ...] | None
    """Numbers of the layers that were kept, from 0 on; None: all weights are random."""
    layers_before: int


def spread_layers(layers: int, kept: int) -> tuple[int, ...]:
    """`kept` of the numbers 0..layers - 1, evenly spread, the first and the last among them (the first, if one)."""
    if kept == 1:
        return (0,)
    return tuple(round(place * (layers - 1) / (kept - 1)) for place in range(kept))


def write_smaller(
    name: str, out: str | Path, *, layers: int, hidden_size: int | None = None, seed: int = 0
) -> SmallerModel:
    """Write a model of `layers` of the layers of the model called `name` into the folder `out`, with its tokenizer.

    `hidden_size`: as narrow as that, with heads of the same width and an MLP in proportion, and random weights that
    `seed` gives. `out` appears whole or not at all.

    Raises ConfigError where the model has no more layers, where widths do not divide, and where `out` holds something;
    DataError where there is no such model, or where its family keeps layers in a way that is not known here.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name another folder, or remove it")
    if name in ("tiny", "table"):
        raise ConfigError(Problem(f"{name!r} is made anew for each run: name a model", ("model",)))
    wanted = PolicySettings(model=name, dtype="auto")
    tokenizer = load_tokenizer_of(wanted)
    policy = LanguageModel.from_pretrained(
        model_folder(name), dtype=None, end_id=end_ids(tokenizer), pad_id=tokenizer.pad_id
    )
    tokenizer = with_vocabulary_of(tokenizer, policy, name)
    model = merge_adapter(policy.model) if policy.adapted else policy.model
    text: HFConfig = model.config.get_text_config()
    before = int(text.num_hidden_layers)
    if layers > before or (layers == before and hidden_size is None):
        raise ConfigError(f"layers: {name} has {before}, and {layers} are no fewer")
    kept = spread_layers(before, layers)
    config = copy.deepcopy(model.config)
    _keep_layers(config.get_text_config(), before, kept)
    if hidden_size is not None:
        _narrow(config.get_text_config(), hidden_size)
    smaller = _made(model, config, seed)
    if hidden_size is None:
        try:
            smaller.load_state_dict(_weights_of(model, before, kept))
        except RuntimeError as error:
            raise DataError(f"{name}: a {type(model).__name__} keeps its layers in a way not known here") from error
        smaller.tie_weights()
    with folder_written(out, replace=out.exists()) as half:
        save_language_model(smaller, tokenizer, half, ends=policy.end_ids, sampling=policy.sampling)
    parameters, of = (sum(weight.numel() for weight in it.parameters()) for it in (smaller, model))
    return SmallerModel(parameters, of, None if hidden_size is not None else kept, before)


def _made(model: HFModel, config: HFConfig, seed: int) -> HFModel:
    """A model of the class of `model`, with random weights."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return type(model)(config).to(next(model.parameters()).dtype).eval()


def _keep_layers(config: HFConfig, before: int, kept: Sequence[int]) -> None:
    """The configuration of those layers: lists with an entry for each layer (kinds of attention) lose the others'."""
    for key, value in config.to_dict().items():
        of_layers = isinstance(value, (list, tuple)) and len(value) == before
        if of_layers and key != "architectures" and not key.endswith(("_id", "_ids")):
            setattr(config, key, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)


def _narrow(config: HFConfig, hidden_size: int) -> None:
    before, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or before // heads)
    if hidden_size >= before or hidden_size % head_size:
        raise ConfigError(
            f"hidden_size: {hidden_size} must be less than {before}, and heads of {head_size} must fill it"
        )
    fewer = hidden_size // head_size
    if hasattr(config, "num_key_value_heads"):
        shared = heads // int(config.num_key_value_heads)  # heads of queries to one of keys
        config.num_key_value_heads = fewer // shared if fewer % shared == 0 else fewer
    if getattr(config, "intermediate_size", None):
        config.intermediate_size = max(8, round(config.intermediate_size * hidden_size / before / 8) * 8)
    config.hidden_size, config.num_attention_heads = hidden_size, fewer


def _weights_of(model: HFModel, before: int, kept: Sequence[int]) -> Mapping[str, Tensor]:
    """The weights, layer kept[i] under the name of layer i."""
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == before]
    # Within a layer there may be lists of the same length, of experts.
    of_layers = [f"{name}." for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    weights: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        prefix = next((it for it in of_layers if key.startswith(it)), None)
        if prefix is None:
            weights[key] = value
            continue
        number, _, rest = key.removeprefix(prefix).partition(".")
        if int(number) in kept:
            weights[f"{prefix}{list(kept).index(int(number))}.{rest}"] = value
    return weights
