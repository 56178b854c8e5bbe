"""An exported run is a model like any other: transformers, TRL and vLLM find what they read, people find what it is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import rlhf_env
from rlhf_env.errors import ConfigError, DataError, DiskRefused
from rlhf_env.lab.evaluation import exporting
from rlhf_env.lab.evaluation.exporting import export_run
from rlhf_env.lab.evaluation.hub import push
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.policies.tiny import tiny_language_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from chat_tokenizers import save_chat_tokenizer

KEPT = Path(__file__).resolve().parents[2] / "kept" / "files"


def experiment(model: Path | None = None, **table: Any) -> Experiment:
    policy: dict[str, Any] = {"dtype": "float64", "sampling": {"temperature": 0.8}}
    content: dict[str, Any] = {
        "name": "polite",
        "seed": 3,
        "policy": policy | ({"tokenizer": "bytes"} if model is None else {"model": str(model)}),
        "task": {"name": "prompts", "prompts": ["Hi", "Well", "So"]},
        "environment": {"num_envs": 8, "max_new_tokens": 6, "max_prompt_tokens": 16},
        "rewards": {"length": {"weight": 0.5, "target": 3}, "kl": 0.1},
        "agent": {"name": "grpo", "group_size": 4, "lr": 0.05},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 4, "every": 1},
    }
    return Experiment.from_table({**content, **table})


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_chat_tokenizer(tmp_path_factory.mktemp("models") / "chat")
    model = tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=257)
    model.model.generation_config.eos_token_id = [261]
    model.model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, chat_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "polite"
    rlhf_env.run(experiment(chat_model), folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    out = trained.parent / "out"
    export_run(trained, out)
    return out


def test_transformers_loads_the_bits_of_the_checkpoint(trained: Path, exported: Path) -> None:
    own = rlhf_env.load_run(trained, "best").policy
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert checkpoints.fingerprint(model.state_dict()) == checkpoints.fingerprint(own.model.state_dict())
    ids = torch.tensor([[259, 104, 105, 260]])
    with torch.no_grad():
        assert (model(ids).logits - own.model(ids).logits).abs().max() < 1e-12


def test_generate_stops_at_every_end_token_and_samples_as_the_run_did(exported: Path) -> None:
    generation = GenerationConfig.from_pretrained(exported)
    assert set(generation.eos_token_id) == {260, 257, 261}
    assert generation.pad_token_id == 258
    assert (generation.do_sample, generation.temperature, generation.top_k, generation.top_p) == (True, 0.8, 0, 1.0)
    generation.validate(strict=True)  # what transformers warns about is an error here
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    with torch.no_grad():
        model.lm_head.weight[:] = 0  # every token is as likely as any other, the ends among them
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    answers = model.generate(**prompt, max_new_tokens=60, num_return_sequences=64)[:, prompt["input_ids"].shape[1] :]
    ended = set()
    for answer in answers.tolist():
        ends = [place for place, token in enumerate(answer) if token in generation.eos_token_id]
        if ends:
            ended.add(answer[ends[0]])
            assert set(answer[ends[0] + 1 :]) <= {258}
    assert ended == {260, 257, 261}


def test_what_vllm_reads_is_there(exported: Path) -> None:
    """What vLLM looks for in a folder: the architecture by name, safetensors whose names are the model's, a tokenizer
    for AutoTokenizer, and the ends and the sampling of generation_config.json (`--generation-config auto`)."""
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config and config["model_type"] == "llama"
    assert {*config["eos_token_id"]} == {260, 257, 261}
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert names == set(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(exported)).state_dict())
    assert (exported / "tokenizer.json").is_file() and (exported / "chat_template.jinja").is_file()
    named = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert named[0] == 260 and {*named} == {260, 257, 261}


def test_trl_trains_on_from_it(exported: Path, tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yes"}]}]
    trainer = trl.SFTTrainer(
        model=str(exported),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True, bf16=False
        ),
        train_dataset=datasets.Dataset.from_list(rows * 2),
    )
    assert trainer.processing_class.convert_tokens_to_ids("<|im_end|>") == 260
    assert trainer.train().global_step == 1


def test_the_card_says_what_it_is(trained: Path, exported: Path, chat_model: Path) -> None:
    card = (exported / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf-env", "grpo"],
        "license": "mit",
    }
    for said in (
        '"Well"',  # the data
        "weight = 0.5",  # the reward parts
        "kl = 0.1",
        "seed 3",
        "updates = 2",
        "generated tokens",
        "On 3 prompts that training uses too, 4 replies",
        "apply_chat_template",
        "Versions: python",
        "--dtype float32",  # vLLM has no float64
    ):
        assert said in card, said
    update = rlhf_env.load_run(trained, "best").update
    row = next(row for row in rlhf_env.load_run(trained).metrics if row["update"] == update)
    assert re.search(rf"^\| objective \| \S+ \| {row['eval/objective']:.4g} \|", card, re.MULTILINE)
    assert str(chat_model.parent) not in card and "/tmp" not in card  # where it lay is nobody's business


def test_a_shipped_model_has_a_name_and_a_licence(tmp_path: Path) -> None:
    of = exporting._provenance(
        tmp_path, tmp_path, {"policy": {"model": "rlhf-env/chitchat"}, "agent": {"name": "ppo"}}, 0, {}, [], {}, {}
    )
    head = yaml.safe_load(exporting.model_card(of).split("---")[1])
    assert (head["base_model"], head["license"]) == ("rlhf-env/chitchat", "apache-2.0")


def test_secrets_in_settings_stay_out_of_the_card(tmp_path: Path) -> None:
    table = {"rewards": {"http": {"url": "https://me:hunter22@host/score?key=abcdef"}}}
    card = exporting.model_card(exporting._provenance(tmp_path, tmp_path, table, 0, {}, [], {}, {}))
    assert "host/score" in card and "hunter22" not in card and "abcdef" not in card


def test_from_python_in_two_lines(trained: Path, exported: Path, tmp_path: Path) -> None:
    out = rlhf_env.load_run(trained, "best").export(tmp_path / "out")
    names = {file.name for file in exported.iterdir()}
    assert {file.name for file in out.iterdir()} == names
    for name in names - {"README.md", "exported.json"}:
        assert (out / name).read_bytes() == (exported / name).read_bytes(), name
    assert "# out" in (out / "README.md").read_text()


def test_a_run_in_memory_is_exported_too(tmp_path: Path) -> None:
    run = rlhf_env.run(experiment(policy={"tokenizer": "bytes"}, evaluation={"prompts": 4}))
    out = run.export(tmp_path / "out", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert run.policy.dtype == torch.float32  # what was trained is not touched
    assert torch.equal(model.lm_head.weight, run.policy.model.lm_head.weight.to(torch.bfloat16))
    refused = rlhf_env.run(experiment(policy={"tokenizer": "bytes"}, agent={"name": "reference"}))
    with pytest.raises(DataError, match="the agent 'reference' writes texts that are not those of one trained model"):
        refused.export(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_with_adapters_is_exported_as_a_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    policy = {"tokenizer": "bytes", "dtype": "float64", "lora": {"rank": 2}}
    run = rlhf_env.run(experiment(policy=policy, evaluation={"prompts": 4}), tmp_path / "run")
    run.export(tmp_path / "ours")
    export_run(tmp_path / "run", tmp_path / "theirs", checkpoint="last")
    ids = torch.tensor([[72, 105, 33]])
    with torch.no_grad():
        expected = run.policy.model(ids).logits
        for out in ("ours", "theirs"):
            assert (AutoModelForCausalLM.from_pretrained(tmp_path / out)(ids).logits - expected).abs().max() < 1e-12


def test_an_earlier_export_is_replaced_and_nothing_else_is(trained: Path, tmp_path: Path) -> None:
    export_run(trained, tmp_path / "out", dtype="float32")
    export_run(trained, tmp_path / "out", checkpoint="last")
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.float64
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is there already, and no export of a run: choose another folder"):
        export_run(trained, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_export_that_fails_leaves_the_earlier_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(trained, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(_of: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", full)
    with pytest.raises(DiskRefused, match="out cannot be written: No space left on device"):
        export_run(trained, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("agent", ["curriculum", "dpo", "kto", "ppo", "sb3"])
@pytest.mark.filterwarnings("ignore:.*found in the working directory")
def test_runs_of_an_earlier_version_are_exported(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(KEPT)
    run = KEPT / "trained" / agent / "finished"
    export_run(run, tmp_path / "out")
    own = rlhf_env.load_run(run).policy
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert checkpoints.fingerprint(weights) == checkpoints.fingerprint(own.model.state_dict())
    assert sorted(path.name for path in run.iterdir() if path.name in ("model", "base")) == []  # an export only reads


class _Hub:
    """In the place of the hub."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        _Hub.calls = []

    def create_repo(self, name: str, **settings: Any) -> Any:
        if name == "nobody/x":
            raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required, but no token found.\nLog in.")
        _Hub.calls.append(("create", (name, settings)))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

    def upload_folder(self, **settings: Any) -> None:
        _Hub.calls.append(("upload", settings))


def test_the_folder_is_pushed_to_the_hub(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", _Hub)
    assert push(exported, "polite", private=True) == "https://huggingface.co/me/polite"
    (_, made), (_, sent) = _Hub.calls
    assert made == ("polite", {"private": True, "exist_ok": True})
    assert (sent["repo_id"], sent["folder_path"]) == ("me/polite", str(exported))
    with pytest.raises(
        ConfigError, match=r"--push nobody/x: Token is required.*: log in with `hf auth login`"
    ) as error:
        push(exported, "nobody/x")
    assert "\n" not in str(error.value)
