"""A run's model as a folder of its own: for transformers, TRL, vLLM, the hub."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError, DiskRefused, RlhfEnvError
from rlhf_env.lab.evaluation.model_card import Provenance, is_shipped, model_card
from rlhf_env.learning.agent import traits
from rlhf_env.learning.run_models import Checkpoint, TrainedModel, model_folder, named_for_peft, save_language_model
from rlhf_env.learning.run_record import read_metrics, record_of
from rlhf_env.learning.tokenizer_files import save_tokenizer
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.lora import ADAPTER_FILE, merge_adapter, save_adapter
from rlhf_env.runs_on_disk import experiment_table_of, run_in
from rlhf_env.toml_files import read_toml
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import folder_written

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_EXPORTED = "exported.json"  # by which an earlier export is known


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: Checkpoint = "best",
    dtype: str | None = None,
    adapter: bool = False,
) -> TrainedModel:
    """Write the model of a run into the folder `out`, which appears whole or not at all, with a model card.

    Args:
        run: the run's folder, or that of a stage with one run in it.
        out: a folder that does not exist, or is empty, or holds an earlier export, which is replaced.
        checkpoint: the best one where one was kept, or the last.
        dtype: of the weights, where it should be another than the checkpoint's: float32, bfloat16, float16, float64.
        adapter: of a run with LoRA, the adapters alone, as peft loads them, and not the model with them merged in.

    Raises ConfigError for a folder that holds no run, a run without a model (or adapters), and a place where something
    else is; DiskRefused where `out` cannot be written.
    """
    run = Path(run).expanduser()
    found = run_in(run)
    if found is None:
        raise ConfigError(_no_run(run))
    trained = TrainedModel.of(found, checkpoint)

    def write(folder: Path) -> None:
        spent = trained.write(folder, None if dtype is None else dtype_named(dtype), adapter=adapter)
        rows, record = read_metrics(found), record_of(found)
        ended, experiment = _table(found / "evaluation.json"), read_toml(found / "experiment.toml")
        last = ended.get("metrics", {}) if ended.get("update") == trained.update else {}
        of = _provenance(Path(out), folder, experiment, trained.update, spent, rows, last, record)
        _write_card(
            folder, replace(of, began_with=(chain := _began_with(found, experiment)), license=_license(chain[-1]))
        )

    write_export(out, write)
    return trained


def export_policy(
    workplace: Workplace,
    out: str | Path,
    rows: Sequence[JsonView],
    evaluation: Mapping[str, float],
    record: JsonView,
    *,
    dtype: str | None = None,
    adapter: bool = False,
) -> None:
    """The same of an agent in memory, as it is now. Raises DataError where its texts are not those of one model."""
    setup, agent = workplace.setup, workplace.agent
    name, says = workplace.experiment.agent_label, traits(agent)
    policy = setup.policy
    if not isinstance(policy, LanguageModel):
        raise DataError(f"the model of this run is a {type(policy).__name__}, and no language model")
    if not (says.trains and says.policy_writes):
        raise DataError(f"the agent {name!r} writes texts that are not those of one trained model: it has none to name")

    wanted, base = workplace.experiment.located().policy, ""
    if adapter:
        if not policy.adapted:
            raise DataError("this run trains the whole model, and has no adapters to write alone")
        base = named_for_peft(wanted.model, base_and_adapter(model_folder(wanted.model))[0])

    def write(folder: Path) -> None:
        kind = None if dtype is None else dtype_named(dtype)
        if adapter:
            save_adapter(policy.model, folder, base, revision=wanted.revision, dtype=kind)
            save_tokenizer(setup.tokenizer, folder)
        else:
            model = copy.deepcopy(merge_adapter(policy.model) if policy.adapted else policy.model)
            ends, sampling = policy.end_ids, policy.sampling
            save_language_model(model, setup.tokenizer, folder, ends=ends, sampling=sampling, dtype=kind)
        spent = {key: float(value) for key, value in setup.spending.as_dict().items()}
        experiment = tomllib.loads(workplace.experiment.to_toml())
        of = _provenance(Path(out), folder, experiment, setup.spending.updates, spent, rows, evaluation, record)
        _write_card(folder, of)

    write_export(out, write)


def write_export(out: str | Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder that becomes `out`. Raises ConfigError where something else is there, DiskRefused."""
    out = Path(out).expanduser().absolute()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / _EXPORTED).is_file())):
        raise ConfigError(f"{out} is there already, and no export of a run: choose another folder")
    try:
        with folder_written(out, replace=True) as half:
            write(half)
            (half / _EXPORTED).write_text(json.dumps({"by": "rlhf-env export"}), encoding="utf-8")
    except SafetensorError as error:
        raise DiskRefused(f"{out} cannot be written: {error}") from error


def dtype_named(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"dtype: {name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _write_card(folder: Path, of: Provenance) -> None:
    (folder / "README.md").write_text(model_card(of), encoding="utf-8", errors="replace")


def _provenance(
    out: Path,
    folder: Path,
    experiment: JsonObject,
    update: int,
    spent: Mapping[str, float],
    rows: Sequence[JsonView],
    evaluation: Mapping[str, object],
    record: JsonView,
) -> Provenance:
    """`rows` of metrics have the evaluations on the way; `evaluation` is that of this very model, if there was one."""
    by_update = {int(row["update"]): row for row in rows}
    policy = experiment.get("policy", {})
    config, model = _table(folder / "config.json"), str(policy.get("model", "tiny"))
    numbers = {key: float(value) for key, value in evaluation.items() if isinstance(value, (int, float))}
    return Provenance(
        name=out.absolute().name,
        experiment=experiment,
        update=update,
        began_with=[model],
        license=_license(model),
        spent=spent,
        before=_evaluated(by_update.get(0, {})),
        after=_evaluated(by_update.get(update, {})) or numbers,
        record=record,
        has_template=(folder / "chat_template.jinja").is_file()
        or "chat_template" in _table(folder / "tokenizer_config.json"),
        dtype=str(config.get("dtype", config.get("torch_dtype", ""))) or _dtype_of_adapter(folder),
        lora=_lora(policy, _table(Path(assets.resolve(model)).expanduser() / ADAPTER_FILE)),
        adapter=(folder / ADAPTER_FILE).is_file(),
    )


def _lora(policy: JsonView, of_folder: JsonView) -> JsonObject | None:
    """Rank, alpha and targets of the adapters that were trained: as [policy.lora] names them or, where the run began
    with an adapter's folder, as that one's file does; None where the whole model was."""
    if (named := policy.get("lora")) is not None:
        return {"rank": named["rank"], "alpha": named["alpha"], "targets": list(named["targets"])}
    if not of_folder:
        return None
    targets = of_folder.get("target_modules") or []
    listed = [targets] if isinstance(targets, str) else sorted(map(str, targets))
    return {"rank": of_folder.get("r"), "alpha": of_folder.get("lora_alpha"), "targets": listed}


def _dtype_of_adapter(folder: Path) -> str:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return ""
    with safe_open(file, "pt") as weights:
        return next(str(weights.get_tensor(name).dtype).removeprefix("torch.") for name in weights.keys())  # noqa: SIM118


def _evaluated(row: Mapping[str, object]) -> dict[str, float]:
    return {
        key.removeprefix("eval/"): float(value)
        for key, value in row.items()
        if key.startswith("eval/") and isinstance(value, (int, float))
    }


def _began_with(run: Path, experiment: JsonObject) -> list[str]:
    """The model as the run names it; if that is a run, then the one which that run began with, and so on."""
    names = [str(experiment.get("policy", {}).get("model", "tiny"))]
    try:
        before = run_in(Path(str(experiment_table_of(run)["policy"].get("model", "tiny"))))
        while before is not None and len(names) < 100:
            policy = experiment_table_of(before)["policy"]
            names.append(str(policy.get("model", "tiny")))
            before = run_in(Path(names[-1]))
    except RlhfEnvError:  # it is gone, or damaged: the model is here all the same
        pass
    return names


def _license(model: str) -> str | None:
    """Of a shipped model that of this package; of a folder what its own card says."""
    if is_shipped(model) and assets.resolve(model) != model:
        return "apache-2.0"
    try:
        head = (Path(model).expanduser() / "README.md").read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return None
    stated = [line.partition(":")[2].strip().strip("\"'") for line in head.splitlines() if line.startswith("license:")]
    return stated[0] if stated and stated[0] else None


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder (RUN is the folder of a run that rlhf-env train made)"
    if (folder / "reward_model.json").is_file() or (folder / "reward_ensemble.json").is_file():
        return (
            f"{folder} holds a reward model, whose head transformers has no class for: it cannot be exported; copy the "
            "folder, and name it in [rewards.bradley_terry] or load it with rlhf_env.load_scorer"
        )
    if (folder / ADAPTER_FILE).is_file():
        return (
            f"{folder} holds a PEFT adapter, and no run: copy the folder; merged with its base, it is what "
            "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload() gives"
        )
    if (folder / "config.json").is_file():
        return f"{folder} is a model already, and no run: copy the folder"
    return f"{folder} holds no run: it has no experiment.toml (rlhf-env train makes such folders)"


def _table(file: Path) -> JsonObject:
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
