"""A run is a model: the weights of its checkpoint as a folder that transformers loads, and whoever loads such folders.

    model_folder("runs/sft")   # runs/sft/model/step-00000040-0c1f..., made when it is first asked for
    model_folder("gpt2")       # any other name is given back as it is

A run has its weights in checkpoints. Which model they belong to - its configuration and its tokenizer - is kept in
`base/` of the run's folder, so that the folder that the run began with may be gone.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlhf_env import assets, plugins
from rlhf_env.envs.tokenizers import (
    AlphabetTokenizer,
    ByteTokenizer,
    FileTokenizer,
    end_ids,
    load_tokenizer,
    named_end_ids,
    tokenizer_folder,
)
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError, DiskRefused, Problem, UnknownName
from rlhf_env.learning import checkpoints
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_folder import BEST
from rlhf_env.learning.run_record import config_hash, hashes_before, record_of
from rlhf_env.learning.tokenizer_files import save_tokenizer
from rlhf_env.own_code import label_of
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import base_and_adapter, load_causal_lm
from rlhf_env.policies.lora import add_adapter, is_of_adapter, load_adapter, merge_adapter, save_adapter
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.policies.untyped import HFConfig, HFModel
from rlhf_env.runs_on_disk import BASE, DESCRIBED, TOKENIZER_NAME, experiment_table_of, model_in, run_in, tokenizer_of
from rlhf_env.types import JsonObject, JsonView, Tokenizer
from rlhf_env.whole_files import folder_written

Checkpoint = Literal["best", "last"]
# transformers makes a model under torch's default dtype, which is the whole process's: of two threads that make one at
# once, the second would put back what the first had set.
_ONE_AT_A_TIME = threading.RLock()  # a run that began with a run asks again
_FIRST = (("model",), ("tokenizer",), ())  # settings that name what a run began with
_MADE_OF = "made_of.json"  # of a folder that was made of a checkpoint: of which one, and the sizes of its files


def model_folder(name: str, checkpoint: Checkpoint = "best") -> str:
    """What to load where `name` is named as a model: of a run, or of a stage with one run in it, a folder with its
    model; any other name as it is.

    The model is that of the run's best checkpoint where one was kept, else (or with "last") of its last one. The
    folder lies in the run's, it appears there whole or not at all, and is used again until the run has another
    checkpoint.

    Raises ConfigError, in one line, for a run that has no model (none trained, no checkpoint, a damaged one).
    """
    if name in ("tiny", "table"):
        return name
    run = run_in(Path(name).expanduser())
    if run is None:
        held = model_in(Path(name).expanduser())
        return name if held is None else str(held)
    for sealed, manifest in _sealed_checkpoints(run, checkpoint):
        if _is_whole(folder := _folder_for(run, sealed, manifest)):
            return str(folder)
        if not checkpoints.problems(sealed):
            break  # it is what the model is made of
    with _ONE_AT_A_TIME:
        return str(_made_model(run, checkpoint))


def _made_model(run: Path, checkpoint: Checkpoint) -> Path:
    trained = TrainedModel.of(run, checkpoint)
    folder = _folder_for(run, trained.checkpoint, trained.manifest)
    try:
        if folder.is_dir() and not _is_whole(folder):
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.damaged-{os.getpid()}")))
        with folder_written(folder, first=True) as half:
            trained.write(half)
            _note(half, trained)
    except (OSError, DiskRefused, SafetensorError) as error:
        why = getattr(error.__cause__ or error, "strerror", None) or error
        raise DataError(
            f"run {run}: its model cannot be written into its folder ({why}): write it elsewhere with "
            f"`rlhf-env export {run} OUT`, and name OUT"
        ) from error
    return folder


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, and what its weights belong to."""

    run: Path
    checkpoint: Path
    manifest: JsonObject
    """Of the checkpoint: a run that trains may remove it while its weights are written elsewhere."""
    experiment: JsonObject
    """The run's experiment as plain data."""

    @classmethod
    def of(cls, run: Path, checkpoint: Checkpoint) -> TrainedModel:
        """The newest valid checkpoint, of the best ones if asked for and kept. Raises DataError where there is none."""
        table = experiment_table_of(run)
        model = table["policy"].get("model", "tiny")
        if model == "table":
            raise DataError(f"run {run}: its model is a table of logits ('table'), and no language model")
        problems: list[str] = []
        for parent in _places(run, checkpoint):
            found, damaged = checkpoints.survey(parent)
            problems += [problem for each in damaged.values() for problem in each]
            if found is not None:
                manifest = checkpoints.manifest_of(found)
                _require_of_this_experiment(run, found, manifest)
                return cls(run, found, manifest, table)
        if problems:
            raise DataError(*(f"run {run}: no valid checkpoint is left: {problem}" for problem in problems[:3]))
        agent = label_of(table.get("agent", {}), "ppo")
        if not _trains(agent):
            raise DataError(f"run {run}: its agent {agent!r} trains no model: name the one it wrote with, {model!r}")
        raise DataError(f"run {run} has no checkpoint yet: train further, with a smaller checkpoint_every")

    @property
    def update(self) -> int:
        """How many updates the agent had behind it."""
        return int(self.manifest["step"])

    @property
    def settings(self) -> PolicySettings:
        return from_table(PolicySettings, self.experiment["policy"], f"{self.run / DESCRIBED}: [policy]")

    @property
    def agent(self) -> str:
        return str(self.experiment.get("agent", {}).get("name", "ppo"))

    def agent_state(self) -> JsonObject:
        """What the checkpoint holds of the agent."""
        state: JsonObject = checkpoints.load(self.checkpoint)[0]["agent"]
        return state

    def write(
        self,
        folder: Path,
        dtype: torch.dtype | None = None,
        *,
        adapter: bool = False,
        weights: str = "policy",
    ) -> dict[str, float]:
        """The files of transformers, into an empty folder: weights, configurations, tokenizer, chat template.

        Returns what the run had spent by then. The weights have the bits of the checkpoint, unless another `dtype` is
        asked for. `adapter`: the files of peft, with the adapters of a run that trained them and not the model that
        they belong to. `weights`: which of several models in the agent's state, by its key there. Raises DataError
        where the checkpoint has no model, or no adapters where they are asked for; OSError and SafetensorError where it
        cannot be written.
        """
        state, _ = checkpoints.load(self.checkpoint)
        settings, tokenizer = self.settings, load_tokenizer(tokenizer_of(self.run))
        base, first = self._base_and_adapter(settings)
        adapted = settings.lora is not None or first is not None
        if adapter:
            if not adapted:
                raise DataError(f"run {self.run}: it trained the whole model, and has no adapters to write alone")
            base = named_for_peft(settings.model, base)
        if adapted:
            model = self._adapted(state["agent"], settings, tokenizer, base, first, weights)
            if adapter:
                save_adapter(model, folder, base, revision=settings.revision, dtype=dtype)
                save_tokenizer(tokenizer, folder)
                return {name: float(amount) for name, amount in state["spending"].items()}
            model = merge_adapter(model)
        else:
            model = self._without_weights(settings, tokenizer)
            self._load(model, self._weights(state["agent"], set(model.state_dict()), weights), settings)
            model.tie_weights()
        ends = end_ids(tokenizer)
        if isinstance(tokenizer, FileTokenizer):
            beside = self.run / BASE if self._has_base() else _folder_of(settings)
            ends = tuple(dict.fromkeys((*ends, *(() if beside is None else named_end_ids(beside)))))
        save_language_model(model, tokenizer, folder, ends=ends, sampling=settings.sampling, dtype=dtype)
        return {name: float(amount) for name, amount in state["spending"].items()}

    def _load(self, model: HFModel, weights: dict[str, Tensor], settings: PolicySettings) -> None:
        adapter = any(is_of_adapter(name) for name in weights)  # of which the whole model has many more
        try:
            model.load_state_dict(weights, strict=not adapter, assign=True)
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1].strip()
            raise DataError(f"run {self.run}: its weights do not fit its model {settings.model!r}: {why}") from error

    def _base_and_adapter(self, settings: PolicySettings) -> tuple[str, Path | None]:
        with needing_first_model(self.run, settings):
            return base_and_adapter(model_folder(settings.model))

    def _adapted(
        self,
        state: Mapping[str, Any],
        settings: PolicySettings,
        tokenizer: Tokenizer,
        base: str,
        adapter: Path | None,
        weights: str,
    ) -> HFModel:
        """The model that a run with adapters began with, which has to be there still, with its adapters.

        Raises DataError where that model has other weights now: the adapters say nothing of those.
        """
        dtype, seed = settings.torch_dtype, int(self.experiment.get("seed", 0))
        if settings.model == "tiny":
            size, end, pad = tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id
            kind = dtype or torch.float32
            model = tiny_language_model(vocab_size=size, end_id=end, pad_id=pad, dtype=kind, seed=seed).model
        else:
            with needing_first_model(self.run, settings):
                model = load_causal_lm(base, dtype, settings.revision)
        if adapter is not None:
            load_adapter(model, adapter)
        elif settings.lora is not None:
            add_adapter(model, settings.lora, seed)
        require_begun_with(self.run, settings, {f"model.{name}": value for name, value in model.state_dict().items()})
        names = {name for name in model.state_dict() if is_of_adapter(name)}
        self._load(model, self._weights(state, names, weights), settings)
        return model

    def _has_base(self) -> bool:
        return (self.run / BASE / "config.json").is_file()

    def _without_weights(self, settings: PolicySettings, tokenizer: Tokenizer) -> HFModel:
        """The run's model with weights that do not matter."""
        from transformers import AutoConfig, AutoModelForCausalLM

        dtype = settings.torch_dtype or torch.float32  # the weights of the checkpoint bring their own
        if settings.model == "tiny" and not self._has_base():
            size, end, pad = tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id
            return tiny_language_model(vocab_size=size, end_id=end, pad_id=pad, dtype=dtype).model
        name = str(self.run / BASE) if self._has_base() else assets.resolve(model_folder(settings.model))
        revision = None if self._has_base() else settings.revision
        try:
            with quiet_transformers(), torch.random.fork_rng(devices=[]):
                config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
                return AutoModelForCausalLM.from_config(config, dtype=dtype)
        except Exception as error:  # the library and the network raise many kinds
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            said = f"run {self.run}: the configuration of the model that it began with, {settings.model!r}, is needed"
            raise DataError(f"{said}: {why}") from error

    def _weights(self, state: Mapping[str, Any], of_model: set[str], wanted: str) -> dict[str, Tensor]:
        """Those that the agent's state holds under the names of the model's; the agent may keep them anywhere."""
        names = {f"model.{name}" for name in of_model}
        held = list(_tables(state, names))
        named = [weights for key, weights in held if key == wanted]
        if len(found := named or [weights for _, weights in held]) != 1:
            held_here = f"{len(found)} models and not one" if found else f"no weights of its model {self._base_name()}"
            raise DataError(f"run {self.run}: its agent {self.agent!r} keeps {held_here}: it has no model to name")
        return {name.removeprefix("model."): tensor for name, tensor in found[0].items()}

    def _base_name(self) -> str:
        return repr(self.settings.model)


@contextmanager
def needing_first_model(run: str | Path | None, settings: PolicySettings) -> Iterator[None]:
    """Inside, what a run began with is loaded, as `settings` name it: a DataError about it names the run, and says what
    to do. `run` may be a folder in which none has begun yet."""
    try:
        yield
    except DataError as error:
        keys = [problem.keys for problem in error.problems if isinstance(problem, Problem)]
        begun = run is not None and (Path(run) / DESCRIBED).is_file()
        if not begun or any(its[:1] == ("policy",) and its[1:2] not in _FIRST for its in keys):
            raise
        what = (
            "it kept its adapters alone, and the model that they belong to" if settings.lora else "what it began with"
        )
        said = f"run {run}: {what}, {settings.model!r}, cannot be loaded ({error}): put it back where it was, or a "
        raise DataError(Problem(f"{said}link to where it is now", keys[0] if keys else ())) from error


def named_for_peft(model: str, base: str) -> str:
    """What an adapter's files call its base, so that peft finds it from anywhere: a folder by its whole path.

    `model` is what the settings name, and `base` the model below it. Raises DataError for one that is in no folder.
    """
    if model == "tiny":
        raise DataError("the model 'tiny' is made anew for each run, and adapters alone would belong to nothing")
    folder = Path(assets.resolve(base)).expanduser()
    return str(folder.absolute()) if folder.is_dir() else base


def require_begun_with(run: Path, settings: PolicySettings, weights: Mapping[str, Tensor]) -> None:
    """Raise DataError unless these are the weights that a run began with, as far as its record says which they were."""
    if has_other_weights(run, weights):
        raise DataError(
            f"run {run}: {settings.model!r} has other weights than the run began with, and the run kept its adapters "
            "alone, which belong to those: put that model back"
        )


def has_other_weights(run: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a run began with other weights than these; False where its record says nothing of them."""
    return record_of(run).get("initial weights") not in (None, checkpoints.fingerprint(weights))


def keep_base(run: Path, policy: object, tokenizer: Tokenizer) -> None:
    """Keep in a run's folder what its weights belong to: configuration and, if it has files, the tokenizer.

    Does nothing where that was done, and for a policy that is no language model. A tokenizer or a configuration that
    this version of transformers cannot save is not kept: the run needs the folder that it began with, then, to be a
    model. Raises DiskRefused.
    """
    if not isinstance(policy, LanguageModel) or (run / BASE).exists():
        return
    try:
        with folder_written(run / BASE, first=True) as half:
            _write_base(half, policy, tokenizer)
    except DiskRefused:
        raise
    except Exception:  # the library raises many kinds, and training does not need it
        return


def _write_base(folder: Path, policy: LanguageModel, tokenizer: Tokenizer) -> None:
    with quiet_transformers():
        policy.model.config.save_pretrained(str(folder))
        named = generation_config(policy.end_ids, policy.pad_id, policy.model.config, policy.sampling)
        named.save_pretrained(str(folder))
    if isinstance(tokenizer, FileTokenizer):
        save_tokenizer(tokenizer, folder)
    elif isinstance(tokenizer, (ByteTokenizer, AlphabetTokenizer)):
        name = f"alphabet:{tokenizer.symbols}" if isinstance(tokenizer, AlphabetTokenizer) else "bytes"
        (folder / TOKENIZER_NAME).write_text(json.dumps({"tokenizer": name}), encoding="utf-8")


def save_language_model(
    model: HFModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    ends: tuple[int, ...],
    sampling: Sampling,
    dtype: torch.dtype | None = None,
) -> None:
    """The files with which transformers, TRL and vLLM load a model: weights, configurations, tokenizer.

    The model is changed: its configuration names all end tokens, and its weights become of another `dtype` if one is
    given.
    """
    if dtype is not None:
        model.to(dtype)
    say_ends(model.config, ends, tokenizer.pad_id)
    model.generation_config = generation_config(ends, tokenizer.pad_id, model.config, sampling)
    with quiet_transformers():
        model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)


def say_ends(config: HFConfig, ends: tuple[int, ...], pad: int) -> None:
    """Let a model's configuration name every end token, and the padding."""
    named = list(ends) if len(ends) > 1 else ends[0]
    for table in {id(it): it for it in (config.get_text_config(), config)}.values():
        table.eos_token_id, table.pad_token_id = named, pad


def generation_config(ends: tuple[int, ...], pad: int, config: HFConfig, sampling: Sampling) -> Any:
    """What `generate` and vLLM go by unless told otherwise: all end tokens, and the distribution of the training."""
    from transformers import GenerationConfig

    begin = getattr(config.get_text_config(), "bos_token_id", None)
    return GenerationConfig(
        bos_token_id=begin,
        eos_token_id=list(ends) if len(ends) > 1 else ends[0],
        pad_token_id=pad,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )


def _places(run: Path, checkpoint: Checkpoint) -> list[Path]:
    return [run / BEST, run / "checkpoints"] if checkpoint == "best" else [run / "checkpoints"]


def _sealed_checkpoints(run: Path, checkpoint: Checkpoint) -> Iterator[tuple[Path, JsonObject]]:
    """Those whose manifest is whole, in the order in which they are asked for; their files are not read."""
    for parent in _places(run, checkpoint):
        yield from checkpoints.sealed(parent)


def _folder_for(run: Path, checkpoint: Path, manifest: JsonView) -> Path:
    seal = str(manifest["sha256"])
    return run / "model" / f"{checkpoint.name.removesuffix('.replaced')}-{seal[:12]}"


def _note(folder: Path, trained: TrainedModel) -> None:
    """Written last: what is missing or cut later is noticed by the sizes."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    made = {
        "run": str(trained.run),
        "checkpoint": f"{trained.checkpoint.parent.name}/{trained.checkpoint.name}",
        "manifest_sha256": trained.manifest["sha256"],
        "files": sizes,
    }
    (folder / _MADE_OF).write_text(json.dumps(made, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        made = json.loads((folder / _MADE_OF).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in made["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _require_of_this_experiment(run: Path, checkpoint: Path, manifest: JsonView) -> None:
    made_with = manifest.get("config_hash")
    described = run / DESCRIBED
    if made_with not in (config_hash(described.read_bytes().decode()), *hashes_before(run)):
        raise DataError(f"{described} is not what {checkpoint} was trained with: it was changed; put it back")


def _trains(agent: str) -> bool:
    try:
        return bool(getattr(plugins.host().load("agent", agent), "trains", True))
    except UnknownName:  # of a package that is not here
        return True


def _folder_of(settings: PolicySettings) -> Path | None:
    return None if settings.model == "tiny" else tokenizer_folder(model_folder(settings.model), settings.revision)


def _tables(state: object, names: set[str], key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tables in a state that have exactly these names, with the key under which each stands."""
    if isinstance(state, Mapping):
        if state.keys() == names:
            yield key, dict(state)
        else:
            for inner, value in state.items():
                yield from _tables(value, names, str(inner))
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tables(value, names, key)
