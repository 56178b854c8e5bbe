"""Adapters without their base: peft loads what `export --adapter` writes, and every door takes such a folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import rlhf_env
from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.lab.chat import open_chat
from rlhf_env.lab.evaluation.exporting import export_run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.pipeline.responses import Responses, write_responses
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import merge_adapter
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from chat_tokenizers import save_chat_tokenizer

peft = pytest.importorskip("peft")
IDS = torch.tensor([[259, 104, 105, 260]])


def experiment(model: Path | str, lora: dict[str, Any] | None, **policy: Any) -> Experiment:
    content: dict[str, Any] = {
        "name": "polite",
        "policy": {"model": str(model), "dtype": "float64", "lora": lora, **policy},
        "task": {"name": "prompts", "prompts": ["Hi", "Well", "So"]},
        "environment": {"num_envs": 8, "max_new_tokens": 6, "max_prompt_tokens": 16},
        "rewards": {"length": {"weight": 0.5, "target": 3}, "kl": 0.1},
        "agent": {"name": "grpo", "group_size": 4, "lr": 0.05},
        "budget": {"updates": 1},
        "evaluation": {"prompts": 4},
    }
    content["policy"] = {key: value for key, value in content["policy"].items() if value is not None}
    return Experiment.from_table(content)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_chat_tokenizer(tmp_path_factory.mktemp("models") / "chat")
    tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=257).model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    """A run with LoRA."""
    folder = base.parent / "run"
    rlhf_env.run(experiment(base, {"rank": 2}), folder)
    return folder


@pytest.fixture(scope="module")
def adapter(trained: Path) -> Path:
    out = trained.parent / "adapter"
    export_run(trained, out, adapter=True)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "down_proj"]}])
def test_peft_loads_the_run(kind: dict[str, Any], base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = rlhf_env.run(experiment(base, {"rank": 2, **kind}), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "theirs", adapter=True)
    run.export(tmp_path / "ours", adapter=True)
    expected = logits(run.policy.model)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)))
    for out in (tmp_path / "theirs", tmp_path / "ours"):
        whole = peft.AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float64)
        on_base = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), out)
        for model in (whole, on_base):
            assert (logits(model) - expected).abs().max() < 1e-10
        asked = AutoTokenizer.from_pretrained(out).apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
        )
        assert asked.endswith("<|im_start|>assistant\n")


def test_the_folder_holds_adapters_and_no_base(adapter: Path, base: Path) -> None:
    assert set(load_file(adapter / "adapter_model.safetensors")) and not (adapter / "model.safetensors").exists()
    assert all(".lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]) == base
    card = (adapter / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["library_name"], head["tags"]) == ("peft", ["rlhf-env", "grpo", "lora"])
    assert "model = AutoPeftModelForCausalLM.from_pretrained(folder)" in card
    assert "of rank 2 and alpha 32, on all-linear of `chat`" in card and "weights here are in float64" in card
    assert str(base.parent) not in card


def test_the_card_of_a_merged_model_says_what_was_trained(trained: Path, base: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "whole", dtype="bfloat16")
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "of rank 2 and alpha 32, on all-linear of `chat`, whose own weights did not change; they are merged" in card
    assert "The weights here are in bfloat16." in card and "AutoPeft" not in card
    rlhf_env.run(experiment(base, None), tmp_path / "run").export(tmp_path / "full")
    assert "All weights of the model were trained." in (tmp_path / "full" / "README.md").read_text()


def test_adapters_in_another_precision(trained: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "out", adapter=True, dtype="float32")
    kinds = {value.dtype for value in load_file(tmp_path / "out" / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}


def test_a_run_without_adapters_has_none_to_write(base: Path, tmp_path: Path) -> None:
    run = rlhf_env.run(experiment(base, None), tmp_path / "run")
    with pytest.raises(DataError, match=r"run .*run: it trained the whole model, and has no adapters to write alone"):
        export_run(tmp_path / "run", tmp_path / "out", adapter=True)
    with pytest.raises(DataError, match="this run trains the whole model, and has no adapters to write alone"):
        run.export(tmp_path / "out", adapter=True)
    tiny = rlhf_env.run(experiment("tiny", {"rank": 2}, tokenizer="bytes"), tmp_path / "tiny")
    for export in (
        lambda: tiny.export(tmp_path / "out", adapter=True),
        lambda: export_run(tmp_path / "tiny", tmp_path / "out", adapter=True),
    ):
        with pytest.raises(DataError, match="'tiny' is made anew for each run, and adapters alone would belong to"):
            export()
    assert not (tmp_path / "out").exists()


def test_an_adapter_trains_on_and_is_a_reference_and_is_exported(adapter: Path, tmp_path: Path) -> None:
    """As `[policy] model`: it begins where the adapter is, trains that one, and keeps no base."""
    begun = rlhf_env.run(experiment(adapter, None), tmp_path / "run")
    policy, reference = begun.policy, begun.workplace.setup.reference
    assert isinstance(policy, LanguageModel) and isinstance(reference, LanguageModel) and policy.adapted
    start = LanguageModel.from_pretrained(adapter, dtype=torch.float64)
    assert torch.equal(logits(reference.model), logits(start.model))
    assert not torch.equal(logits(policy.model), logits(start.model))
    export_run(tmp_path / "run", tmp_path / "alone", adapter=True)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float64)
    assert (logits(again) - logits(policy.model)).abs().max() < 1e-10
    assert "of rank 2 and alpha 32, on " in (tmp_path / "alone" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"is an adapter already, which trains as it is: leave \[policy.lora\] out"):
        rlhf_env.run(experiment(adapter, {"rank": 2}))


def test_a_reward_model_is_fitted_on_an_adapter(adapter: Path, tmp_path: Path) -> None:
    model = RewardModel.from_trunk(adapter, dtype=torch.float64)
    whole = merge_adapter(LanguageModel.from_pretrained(adapter, dtype=torch.float64).model)
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in model.trunk.state_dict().items())
    sides = [Response(text, author=Author("human", "a")) for text in ("yes", "no")]
    pairs = [Preference(Prompt(id=str(i), text=f"Hi {i}"), *sides, annotator="b") for i in range(4)]
    config = RewardModelConfig(epochs=1, validation=0.0)
    fitted, _ = fit_reward_model(pairs, adapter, config, generator=torch.Generator())
    fitted.save(tmp_path / "rm")
    loaded = load_scorer(tmp_path / "rm")
    assert [list(it) for it in loaded.score_pairs(pairs)] == [list(it) for it in fitted.score_pairs(pairs)]


def test_texts_are_written_with_an_adapter(adapter: Path, tmp_path: Path) -> None:
    wanted = Responses(
        model=str(adapter),
        task={"name": "prompts", "prompts": ["Hi"]},
        prompts=1,
        samples=2,
        temperatures=(1.0,),
        max_new_tokens=4,
    )
    assert write_responses(tmp_path / "store.sqlite", wanted, console=Console(quiet=True)) == 2


def test_a_chat_with_an_adapter_says_what_its_merged_model_says(adapter: Path, trained: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "whole")
    alone, whole = (
        open_chat(str(folder), greedy=True, max_new_tokens=5).ask("Hi", lambda _piece: None).text
        for folder in (adapter, tmp_path / "whole")
    )
    assert alone == whole


@pytest.mark.parametrize(("command", "says"), [("evaluate", "holds no run"), ("export", "holds a PEFT adapter")])
def test_what_reads_runs_says_what_it_is(command: str, says: str, adapter: Path, tmp_path: Path) -> None:
    words = [command, str(adapter), *([str(tmp_path / "out")] if command == "export" else [])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0 and says in str(result.exception)


def test_the_base_of_an_adapter_is_gone(adapter: Path, base: Path, tmp_path: Path) -> None:
    copied = tmp_path / "adapter"
    shutil.copytree(adapter, copied)
    table = json.loads((copied / "adapter_config.json").read_text())
    for gone in (str(tmp_path / "gone"), "nobody/has-this"):
        (copied / "adapter_config.json").write_text(json.dumps({**table, "base_model_name_or_path": gone}))
        for use in (
            lambda: LanguageModel.from_pretrained(copied),
            lambda: rlhf_env.run(experiment(copied, None)),
            lambda: RewardModel.from_trunk(copied),
            lambda: open_chat(str(copied)),
        ):
            with pytest.raises(DataError) as error:
                use()
            assert f"adapter {copied}: the model that it belongs to, {gone!r}, " in str(error.value)
            assert "base_model_name_or_path in adapter_config.json" in str(error.value)


def test_the_base_of_a_run_with_adapters_is_gone(base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    rlhf_env.run(experiment(moved, {"rank": 2}), tmp_path / "run")
    moved.rename(tmp_path / "elsewhere")
    for use in (
        lambda: export_run(tmp_path / "run", tmp_path / "out"),
        lambda: rlhf_env.load_run(tmp_path / "run"),
        lambda: rlhf_env.run(experiment(moved, {"rank": 2}), tmp_path / "run", resume=True),
        lambda: open_chat(str(tmp_path / "run")),
        lambda: rlhf_env.run(experiment(tmp_path / "run", None)),
    ):
        with pytest.raises(DataError) as error:
            use()
        said = str(error.value)
        assert str(tmp_path / "run") in said and f"{str(moved)!r}" in said and "or a link to where it is now" in said
    moved.symlink_to(tmp_path / "elsewhere")
    export_run(tmp_path / "run", tmp_path / "out")
