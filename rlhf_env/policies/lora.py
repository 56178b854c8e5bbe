"""LoRA: low-rank adapters on the matrices of a frozen model, made, loaded and saved by the library peft.

A linear layer x W^T + b becomes x W^T + b + s (x A^T) B^T with A [r, in] and B [out, r]; W and b stay as they are (Hu
et al. 2021, 2106.09685, equation 3). B starts at 0, so that the model begins as its base. peft puts the adapters into
the model's own modules; `anatomy.LowRank` is what the fused paths read there.

This is the one file that imports peft, and only where there is an adapter.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, DataError, MissingExtra, Problem
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.untyped import HFModel

ADAPTER = "default"  # what peft calls the one adapter that a model has here
ADAPTER_FILE = "adapter_config.json"  # what makes a folder an adapter's
# Settings of peft's with which an adapter is more than A and B beside a matrix, or is not always on.
_BEYOND = (
    *("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters", "bias", "lora_bias"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config"),
    *("monteclora_config", "ensure_weight_tying"),
)
_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # which leave the base as it is
_PREFIX = "base_model.model."  # before every name of a weight in an adapter's file


def add_adapter(model: HFModel, wanted: Lora, seed: int) -> None:
    """Put a new adapter on a causal language model, in place; from here on it alone trains.

    `seed` draws A. Raises ConfigError for targets that the model does not have, or that share their weights.
    """
    peft = _peft()
    targets: str | list[str] = list(wanted.targets)
    if "all-linear" in targets:
        if len(targets) > 1:
            raise ConfigError(Problem('"all-linear" leaves no other target to name', ("targets",)))
        targets = "all-linear"
    config = peft.LoraConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha,
        lora_dropout=wanted.dropout,
        target_modules=targets,
        use_rslora=wanted.rslora,
        use_dora=wanted.dora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:  # no module has such a name, or one of them is no matrix
            said = str(error).strip().splitlines()[0]
            raise ConfigError(Problem(f"no adapter can be put there: {said}", ("targets",))) from error
    _require_untied(model)
    _in_full_precision(model)


def load_adapter(model: HFModel, folder: Path) -> None:
    """Put the adapter of a folder that peft wrote on its base model, in place; from here on it alone trains.

    Raises DataError for a folder that holds something else than LoRA, or an adapter of another model.
    """
    peft = _peft()
    try:
        with _quiet():
            config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise DataError(f"adapter {folder}: {_first_line(error)}") from error
    if config.peft_type != "LORA":
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise DataError(f"adapter {folder}: it is {kind}, and only LoRA is read: merge it into its base")
    for extra in _BEYOND:
        if (value := getattr(config, extra, None)) not in (None, False, "none"):
            raise DataError(
                f"adapter {folder}: {extra} = {value!r} changes more than low-rank adapters do, which is not read: "
                "merge it into its base (merge_and_unload) and name the merged folder"
            )
    if config.init_lora_weights not in _STARTS:
        start = config.init_lora_weights
        raise DataError(
            f"adapter {folder}: init_lora_weights = {start!r} changes the weights of its base, which stay as they are "
            "here: convert it to LoRA (path_initial_model_for_weight_conversion of save_pretrained)"
        )
    config.inference_mode, config.init_lora_weights = False, True
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(0)  # what is drawn is replaced below
        try:
            peft.inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:
            raise DataError(f"adapter {folder}: it does not fit its base: {_first_line(error)}") from error
    _require_untied(model)
    _in_full_precision(model)
    own = adapter_weights(model)
    try:
        held = _weights_in(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"adapter {folder}: its weights cannot be read: {_first_line(error)}") from error
    weights = {_own_name(name): value for name, value in held.items() if not _is_of_base(model, name, value, folder)}
    wrong = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
    if wrong:
        raise DataError(
            f"adapter {folder}: it is of another model than its base here: {len(wrong)} weights do not fit, "
            f"{wrong[0]} among them"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def base_of(folder: Path) -> str:
    """The name of the model that an adapter's folder belongs to. Raises DataError."""
    file = folder / ADAPTER_FILE
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{file} cannot be read: {_first_line(error)}") from error
    if not isinstance(base, str) or not base:
        raise DataError(f"{file}: base_model_name_or_path, the model that the adapter belongs to, is missing")
    return base


def has_adapter(model: HFModel) -> bool:
    return any(hasattr(module, "lora_A") for module in model.modules())


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by name, as they are in the model (not copied)."""
    return {name: value.data for name, value in model.named_parameters() if is_of_adapter(name)}


def is_of_adapter(name: str) -> bool:
    """Whether the parameter of this name is an adapter's."""
    return ".lora_" in name


def save_adapter(
    model: HFModel, path: Path, base: str, *, revision: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write the adapter alone, as peft's `PeftModel.from_pretrained(base_model, path)` reads it.

    `base` is the model that it belongs to, as `AutoPeftModelForCausalLM` will look for it, of a hub's `revision`.
    `dtype`: of the weights, where it should be another.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    with _quiet():
        own = _peft().get_peft_model_state_dict(model, adapter_name=ADAPTER)
    weights = {_PREFIX + name: value.detach().to("cpu", dtype).contiguous() for name, value in own.items()}
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.save_pretrained(str(path))


def bytes_kept_per_token(model: HFModel) -> int:
    """About how much memory a backward pass through a model with adapters needs for each token: what the matrices of
    its layers read and write."""
    weights = {
        id(module.weight): module.weight
        for name, module in model.base_model.named_modules()
        if getattr(module, "weight", None) is not None and not is_of_adapter(name)
    }
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            weights.pop(id(module.weight), None)
    return sum(sum(weight.shape) * weight.element_size() for weight in weights.values() if weight.ndim == 2)


def merge_adapter(model: HFModel) -> HFModel:
    """The same model with the adapter added to its matrices and no adapter any more; the given model is not changed.

    Only the matrices that change are copied.
    """
    touched = {id(p) for layer in _adapted(model) for p in layer.base_layer.parameters()}
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if id(p) not in touched}
    whole = copy.deepcopy(model, memo)
    for layer in _adapted(whole):
        layer.merge(safe_merge=False)
    return _unwrapped(whole)


def without_adapter(model: HFModel) -> HFModel:
    """The base that a model's adapter is on, sharing all its weights; a model without an adapter as it is."""
    if not has_adapter(model):
        return model
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    return _unwrapped(copy.deepcopy(model, memo))


def _unwrapped(whole: HFModel) -> HFModel:
    """Each matrix in the place of the adapter that is around it, in place."""
    # The innermost first: experts have an adapter around an adapter, one for each of their two matrices.
    for name, layer in reversed([(n, m) for n, m in whole.named_modules() if hasattr(m, "lora_A")]):
        parent = whole.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer.base_layer)
    del whole.peft_config
    return whole


def _adapted(model: HFModel) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def _in_full_precision(model: HFModel) -> None:
    """Adapters on weights in half precision are in float32: steps of a usual learning rate would round away."""
    for name, weight in model.named_parameters():
        if is_of_adapter(name) and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()


def _require_untied(model: HFModel) -> None:
    """Refuse adapters on embeddings and heads that share one matrix: the two would no longer be one."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module, other in ((embeddings, head), (head, embeddings)):
        if not hasattr(module, "lora_A"):
            continue
        ours, theirs = (getattr(it, "base_layer", it).weight for it in (module, other))
        if ours is theirs or not isinstance(getattr(module, "base_layer", module), nn.Linear):
            name = next(name for name, it in model.named_modules() if it is module)
            raise ConfigError(
                Problem(
                    f"{name} shares its weight with the embedding, or is the embedding: no adapter is put there",
                    ("targets",),
                )
            )


def _weights_in(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise DataError(f"adapter {folder}: {file.name} is missing (pickled weights are not read)")
    return load_file(file)


def _is_of_base(model: HFModel, name: str, value: Tensor, folder: Path) -> bool:
    """Whether a weight in an adapter's file is the base's own, which peft saves beside an adapter of the head.

    Raises DataError where it is another: the vocabulary was enlarged, say.
    """
    if not name.endswith(".base_layer.weight"):
        return False
    place = name.removeprefix(_PREFIX).removesuffix(".weight")
    try:
        base: Tensor = model.get_submodule(place).weight
    except AttributeError:
        return False  # it fits nowhere, which is said of all such weights together
    if base.shape == value.shape and torch.equal(base, value.to(base.dtype)):
        return True
    raise DataError(
        f"adapter {folder}: it holds a {place} that is not that of its base here: it was trained on another model, or "
        "on one whose vocabulary was enlarged: merge it into that one and name the merged folder"
    )


def _own_name(name: str) -> str:
    """The name in the model of a weight in a file, in which peft leaves the adapter's name out."""
    module, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
    return f"{module}.{part}.{ADAPTER}.weight"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtra("peft", "peft") from error
    return peft


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
