"""The model card of a run's model: a README.md that says what it was trained on and for, and what was measured.

The head is what the Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards). JSON is YAML, so its values
are written as JSON.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from rlhf_env.envs.success import Success
from rlhf_env.errors import RlhfEnvError
from rlhf_env.lab.evaluation.asked import PromptsAsked
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.evaluation.metrics import METRICS, meaning_of, with_plugins
from rlhf_env.lab.evaluation.passing import pass_metric
from rlhf_env.own_code import label_of, names_code
from rlhf_env.shown_text import without_secrets
from rlhf_env.types import JsonObject, JsonView

_SHIPPED = "rlhf-env/"  # models of this package, under its licence
_NOT_MEASURES = ("prompts", "prompts_in_training", "answers", "kl_is_bound")
_CURRENCIES = (
    "updates",
    "episodes",
    "generated_tokens",
    "reward_calls",
    "preference_labels",
    "gradient_steps",
    "gradient_tokens",
)


@dataclass(frozen=True)
class Provenance:
    """What is known of how a model came about."""

    name: str
    """What the model is called."""
    experiment: JsonObject
    """The experiment as its file says it."""
    update: int
    """How many updates the agent has behind it."""
    began_with: Sequence[str]
    """The model that it began with; if that is a run, then the model which that one began with, and so on."""
    license: str | None
    """That of the model it began with, where that is known."""
    spent: Mapping[str, float]
    before: Mapping[str, float]
    """The evaluation before training, empty where there was none."""
    after: Mapping[str, float]
    """The evaluation of the model as it is here, empty where there was none."""
    record: JsonView
    """How the run was started, and with which versions, as its folder keeps it."""
    has_template: bool
    dtype: str
    lora: JsonObject | None = None
    """Rank, alpha and targets of the adapters that were trained; None where the whole model was."""
    adapter: bool = False
    """Whether these are the adapters alone, without the model that they belong to."""


def model_card(of: Provenance) -> str:
    """The card as Markdown. What may be a secret is masked, and of absolute paths only the last part is kept."""
    agent = label_of(of.experiment.get("agent", {}), "ppo")
    task = label_of(of.experiment.get("task", {}), "count")
    lines = [
        *_front_matter(of, agent),
        f"# {of.name}",
        "",
        f"`{_base(of)}` trained with the agent `{agent}` on the task `{task}`, by "
        "[rlhf-env](https://pypi.org/project/rlhf-env/); after "
        f"{of.update:,} updates, seed {of.experiment.get('seed', 0)}.",
        "",
        *_loading(of),
        *_training(of),
        *_evaluation(of),
        *_origin(of),
    ]
    return without_secrets("\n".join(lines) + "\n")


def _base(of: Provenance) -> str:
    return _nameless(of.began_with[0]) if of.began_with else "a model"


def _front_matter(of: Provenance, agent: str) -> Iterator[str]:
    root = of.began_with[-1] if of.began_with else "tiny"
    library = "peft" if of.adapter else "transformers"
    tags = ["rlhf-env", agent, *(["lora"] if of.lora else [])]
    head: JsonObject = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    if _is_hub_name(root):
        head["base_model"] = root
    if of.license:
        head["license"] = of.license
    yield "---"
    for key, value in head.items():
        if isinstance(value, list):
            yield f"{key}:"
            yield from (f"- {json.dumps(item)}" for item in value)
        else:
            yield f"{key}: {json.dumps(value)}"
    yield "---"
    yield ""


def _loading(of: Provenance) -> Iterator[str]:
    asked = (
        'prompt = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], tokenize=False, '
        "add_generation_prompt=True)"
        if of.has_template
        else 'prompt = "..."'
    )
    special = ", add_special_tokens=False" if of.has_template else ""
    loader = "AutoPeftModelForCausalLM" if of.adapter else "AutoModelForCausalLM"
    yield from (
        "## How to load it",
        "",
        "```python",
        *(["from peft import AutoPeftModelForCausalLM"] if of.adapter else []),
        f"from transformers import {'' if of.adapter else 'AutoModelForCausalLM, '}AutoTokenizer",
        "",
        'folder = "."  # where these files are, or their name on the hub',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {loader}.from_pretrained(folder)",
        asked,
        f'ids = tokenizer(prompt, return_tensors="pt"{special}).input_ids',
        f"answer = model.generate(ids, max_new_tokens={_most_tokens(of)})[0, ids.shape[1]:]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
        "```",
        "",
        _who_else_loads_it(of),
        "",
    )
    if stop := of.experiment.get("environment", {}).get("stop"):
        yield from (f"Its answers also ended at {stop}: `generate(..., stop_strings={stop}, tokenizer=tokenizer)`.", "")
    if not of.has_template:
        yield from ("It has no chat template: it continues the text that it is given.", "")


def _who_else_loads_it(of: Provenance) -> str:
    if of.adapter:
        return (
            "These are low-rank adapters alone. The model that they belong to is what `base_model_name_or_path` in "
            "`adapter_config.json` names: where it lies elsewhere, write that there. rlhf-env goes on from the folder "
            'with `model = "FOLDER"` in `[policy]`, and `rlhf-env export` without `--adapter` makes one model of both.'
        )
    return (
        "`generation_config.json` samples as the model was trained and measured, and names every token that ends an "
        "answer. TRL's trainers take the folder as `model`, vLLM serves it (`vllm serve FOLDER"
        + (" --dtype float32`, as it has no float64" if of.dtype == "float64" else "`")
        + '), and rlhf-env goes on from it with `model = "FOLDER"` in `[policy]`.'
    )


def _most_tokens(of: Provenance) -> int:
    return int(of.experiment.get("environment", {}).get("max_new_tokens", 24))


def _training(of: Provenance) -> Iterator[str]:
    tables = {key: of.experiment[key] for key in ("task", "rewards", "agent", "budget") if of.experiment.get(key)}
    if preferences := of.experiment.get("preferences"):
        tables = {"preferences": preferences, **tables}
    yield from ("## How it was trained", "", "What it was asked, what it was paid for, who learned, and for how long:")
    yield from ("", "````toml", tomli_w.dumps(_without_paths(tables)).rstrip(), "````", "")
    spent = [f"{of.spent[name]:,.0f} {name.replace('_', ' ')}" for name in _CURRENCIES if of.spent.get(name)]
    if seconds := of.spent.get("seconds"):
        spent.append(f"{seconds:,.0f} seconds")
    if spent:
        yield from (f"Spent: {', '.join(spent)}.", "")
    yield from (f"{_trained_weights(of)} The weights here are in {of.dtype or 'the precision that they had'}.", "")


def _trained_weights(of: Provenance) -> str:
    if of.lora is None:
        return "All weights of the model were trained."
    targets = ", ".join(map(str, of.lora["targets"]))
    now = "they are what is here" if of.adapter else "they are merged into the weights here"
    return (
        f"Low-rank adapters (LoRA) were trained, of rank {of.lora['rank']} and alpha {of.lora['alpha']:g}, on "
        f"{targets} of `{_base(of)}`, whose own weights did not change; {now}."
    )


def _evaluation(of: Provenance) -> Iterator[str]:
    yield from ("## What was measured", "")
    if not of.after:
        yield from ("No evaluation was made of this checkpoint.", "")
        return
    evaluation = of.experiment.get("evaluation", {})
    replies = int(of.after.get("answers", evaluation.get("prompts", 128) * evaluation.get("samples", 1)))
    asked = PromptsAsked.of(of.after, replies)
    metrics: Sequence[Metric] = METRICS
    with suppress(RlhfEnvError):  # of a package that is not here
        # Code that a run folder names is not run to describe it.
        offered = with_plugins([name for name in evaluation.get("metrics") or () if not names_code(name)])
        success = Success.read(evaluation.get("success", "task"))
        metrics = (*offered, *(pass_metric(k, success) for k in evaluation.get("pass_at", ())))
    yield from (f"On {asked or 'the prompts of the evaluation'}, by one program for all agents:", "")
    yield from ("| | before training | this model | |", "|---|---:|---:|---|")
    for key in of.after:
        if key in _NOT_MEASURES or key.endswith(("_std", "_low", "_high")):
            continue
        meaning = meaning_of(key, metrics)
        yield f"| {_cell(key)} | {_shown(of.before, key)} | {_shown(of.after, key)} | {_cell(meaning)} |"
    yield ""
    yield "These are numbers of one run with one seed. Reward is what it was trained for, and proves no quality."
    yield ""


def _shown(numbers: Mapping[str, float], key: str) -> str:
    value, low, high = (numbers.get(f"{key}{ending}") for ending in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} ({low:.4g} to {high:.4g})"


def _origin(of: Provenance) -> Iterator[str]:
    yield from ("## How it came about", "")
    command = of.record.get("command")
    if isinstance(command, list) and command:
        words = [Path(str(command[0])).name, *(_nameless(str(word)) for word in command[1:])]
        yield from ("```sh", shlex.join(words), "```", "")
    chain = " from ".join(f"`{_nameless(name)}`" for name in of.began_with)
    if chain:
        yield from (f"It began with {chain}.", "")
    versions = of.record.get("versions")
    if isinstance(versions, Mapping):
        yield "Versions: " + ", ".join(f"{name} {it}" for name, it in versions.items() if name != "platform") + "."
    resumed = of.record.get("resumed")
    if isinstance(resumed, list) and resumed:
        changes = sorted({str(change) for entry in resumed for change in entry.get("not_exact", [])})
        yield f"The run was resumed {len(resumed)} times" + (
            f"; not as before: {'; '.join(changes)}." if changes else "."
        )


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


def is_shipped(name: str) -> bool:
    return name.startswith(_SHIPPED)


def _without_paths(value: object) -> JsonObject:
    cleaned = _clean(value)
    return cleaned if isinstance(cleaned, dict) else {}


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return _nameless(value) if isinstance(value, str) else value


def _nameless(text: str) -> str:
    """Of an absolute path the last part: where it lay is nobody's business."""
    return Path(text).name if text.startswith(("/", "~")) and "\n" not in text and len(text) > 1 else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
