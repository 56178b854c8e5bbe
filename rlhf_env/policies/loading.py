"""Causal language models from folders and the hub: loaded as transformers loads them, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlhf_env import assets
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.attention import naming_attention
from rlhf_env.policies.lora import ADAPTER_FILE, base_of, load_adapter
from rlhf_env.policies.sizes import require_room
from rlhf_env.policies.untyped import HFConfig, HFModel


def load_causal_lm(
    name: str | Path, dtype: torch.dtype | None, revision: str | None, attention: str | None = None
) -> HFModel:
    """The model in a folder or, if there is no such folder, of the hub; `dtype` None: in that of its files.

    `attention`: one of the library's implementations, None for its own choice. Raises DataError; ConfigError for an
    attention that cannot be had here.
    """
    from huggingface_hub import constants
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = Path(assets.resolve(str(name))).expanduser()
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    elif folder.exists() or str(name).startswith(("/", ".", "~")):
        raise DataError(f"model {str(name)!r}: there is no such folder")
    require_room(str(folder) if local else name, dtype, revision)
    try:
        with quiet_transformers(), naming_attention(attention, dtype):
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder) if local else str(name),
                dtype=dtype or "auto",
                revision=revision,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except ConfigError:
        raise
    except Exception as problem:  # the library, its checks of configurations and the network raise many kinds
        why = (str(problem).strip() or type(problem).__name__).split("\n")[0]
        if local and isinstance(problem, SafetensorError):
            for file in sorted(folder.glob("*.safetensors")):
                _require_whole(file)
        if "mismatched_sizes" in why:
            why = "some of its weights have other shapes than config.json says: these files are of two models"
        if not local and constants.HF_HUB_OFFLINE:
            why = "no such folder, not in this machine's hub cache, and HF_HUB_OFFLINE forbids fetching it"
        elif not local:
            why = f"no such folder, and the hub did not give it: {why}"
        raise DataError(f"model {str(name)!r}: {why}") from None
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise DataError(f"model {str(name)!r}: {len(missing)} weights are missing, {missing[0]} among them")
    if dtype is None:
        _in_own_precision(model, str(name))
    for parameter in model.parameters():
        # Copied out of the file's memory map. Then rewriting the file changes nothing here, and the same weights give
        # the same bits (kernels sum in another order if a tensor does not begin at a multiple of 64 bytes).
        parameter.data = parameter.data.clone()
    return model


def _in_own_precision(model: HFModel, name: str) -> None:
    """Of a model that was loaded as its files are: float16 becomes float32, which loses nothing. Raises DataError for a
    precision that nothing can be learned in."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.dtype == torch.float16:
            buffer.data = buffer.data.float()
    kinds = {parameter.dtype for parameter in model.parameters()}
    if unknown := kinds - {torch.float32, torch.float64, torch.bfloat16}:
        kind = str(unknown.pop()).removeprefix("torch.")
        raise DataError(f"model {name!r}: its files are in {kind}, which cannot be trained: name a dtype")
    if len(kinds) > 1:  # a few norms, in float32 beside the rest: as a dtype that is named makes them
        model.to(next(iter(model.parameters())).dtype)


def model_files(name: str | Path) -> Path:
    """The local folder of a model: a folder, a shipped model, or a hub name (fetched, or from the cache).

    Raises DataError where the hub does not give it.
    """
    from huggingface_hub import constants, snapshot_download

    folder = Path(assets.resolve(str(name))).expanduser()
    if folder.exists() or str(name).startswith(("/", ".", "~")):
        return folder
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=wanted))
    except Exception as problem:  # the library and the network raise many kinds
        why = f"no such folder, and the hub did not give it ({type(problem).__name__})"
        if constants.HF_HUB_OFFLINE:
            why = "no such folder, not in this machine's hub cache, and HF_HUB_OFFLINE forbids fetching it"
        raise DataError(f"model {str(name)!r}: {why}") from None


def context_of(config: HFConfig) -> int | None:
    """The longest text that a model of this configuration can read; None without a limit."""
    text_config = config.get_text_config()
    # MPT and Whisper have names of their own for it.
    named = [
        getattr(text_config, it, None) for it in ("max_position_embeddings", "max_seq_len", "max_target_positions")
    ]
    limits = [limit for limit in named if limit is not None and limit > 0]  # XLNet says -1: no limit
    # Where "longrope" has one set of angles for short texts and another for long ones, the longest text of a batch
    # decides for all, and keys in the cache have the angles of the moment: only below is a text always the same.
    rotary = getattr(text_config, "rope_parameters", None) or {}
    for table in (rotary, *(it for it in rotary.values() if isinstance(it, dict))):
        if table.get("rope_type") == "longrope":
            limits += [it for it in [table.get("original_max_position_embeddings")] if it]
    return min(map(int, limits), default=None)


def context_named(name: str | Path, revision: str | None = None) -> int | None:
    """The context of a model, from its configuration alone; None without a limit, or where it cannot be read."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            base, _ = base_and_adapter(name)
            config = AutoConfig.from_pretrained(assets.resolve(base), revision=revision, trust_remote_code=False)
            return context_of(config)
    except Exception:  # loading the model says what is wrong
        return None


def base_and_adapter(name: str | Path) -> tuple[str, Path | None]:
    """The model that a folder of peft's belongs to, and that folder; any other name as it is, and None.

    A base that is a relative path is looked for beside the adapter first. Raises DataError for an adapter without base.
    """
    folder = Path(assets.resolve(str(name))).expanduser()
    if not (folder / ADAPTER_FILE).is_file():
        return str(name), None
    base = base_of(folder)
    beside = folder.parent / base
    return str(beside) if not Path(base).is_absolute() and beside.is_dir() else base, folder


@contextmanager
def naming_base(base: str, adapter: Path | None) -> Iterator[None]:
    """Inside, `base` is loaded; where that fails, and it is what an adapter belongs to, the error says so."""
    try:
        yield
    except DataError as error:
        if adapter is None:
            raise
        raise DataError(
            f"adapter {adapter}: the model that it belongs to, {base!r}, cannot be loaded ({error}): correct "
            f"base_model_name_or_path in {ADAPTER_FILE}"
        ) from error


def load_with_adapter(
    name: str | Path, dtype: torch.dtype | None, revision: str | None, attention: str | None = None
) -> HFModel:
    """As `load_causal_lm`; of an adapter's folder, its base with the adapter, which alone trains."""
    base, adapter = base_and_adapter(name)
    with naming_base(base, adapter):
        model = load_causal_lm(base, dtype, revision, attention)
    if adapter is not None:
        load_adapter(model, adapter)
    return model


def refuse_adapter(folder: Path) -> None:
    """Raise DataError for a folder that peft wrote, which holds the changes to another model and no model."""
    if not (folder / ADAPTER_FILE).is_file():
        return
    raise DataError(
        f"model {str(folder)!r}: a PEFT adapter of {base_of(folder)!r}, and no whole model: merge the two with "
        "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(WHOLE), save the "
        "tokenizer there too, and name WHOLE"
    )


def _refuse_scorer(folder: Path) -> None:
    """Raise DataError for a model that scores texts: its trunk loads as one that writes them, and writes nonsense."""
    scores = any((folder / card).is_file() for card in ("reward_model.json", "reward_ensemble.json"))
    if not scores:
        try:
            named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
            scores = any("Classification" in str(it) or "RewardModel" in str(it) for it in named)
        except (OSError, ValueError, AttributeError, TypeError):  # loading says what is wrong
            return
    if scores:
        raise DataError(
            f"model {str(folder)!r}: it scores texts and writes none: name the language model that it was made from "
            "here, and this one in [rewards.bradley_terry]"
        )


def _check_folder(folder: Path) -> None:
    refuse_adapter(folder)
    _refuse_scorer(folder)
    if not (folder / "config.json").is_file():
        raise DataError(f"model {str(folder)!r}: not a model folder, config.json is missing")
    if not any(folder.glob("*.safetensors")):
        remedy = " (pickled weights are not read: save them as safetensors)" if any(folder.glob("*.bin")) else ""
        raise DataError(f"model {str(folder)!r}: the weights, *.safetensors, are missing{remedy}")


def _require_whole(file: Path) -> None:
    """Raise DataError for a file of weights that is not there as a whole: its header says how long it is."""
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            said = "a pointer of Git LFS stands in place of the weights: fetch them (git lfs pull)"
            raise DataError(f"{file}: {said}")
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise DataError(f"{file}: cut off, or no safetensors file ({error}): copy or fetch it again") from error


_POINTER = b"version https://git-lfs"
