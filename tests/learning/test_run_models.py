"""A run is a model wherever a model is named: the same weights and the same ids as the agent's own."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlhf_env
from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer, FileTokenizer, end_ids, load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_models import model_folder
from rlhf_env.learning.workplace import build
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

TEXTS = ("ab=", "aabb=ab", "=", "b" * 9)
ANY_TEXTS = ("", "Hello, world!", " two  spaces\n", "é 😀 \x00\x7f", "<|end|><|pad|></s>", "你好")


def experiment(agent: Any = "ppo", updates: int = 2, **table: Any) -> Experiment:
    content: dict[str, Any] = {
        "policy": {"tokenizer": "alphabet:ab=", "dtype": "float64"},
        "task": {"name": "echo", "length": 2},
        "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 8},
        "agent": {"name": agent, "lr": 0.05} if isinstance(agent, str) else agent,
        "budget": {"updates": updates},
        "evaluation": {"prompts": 4},
    }
    return Experiment.from_table({**content, **table})


def asking(model: Path | str, **table: Any) -> Experiment:
    """Conversations with a model of files."""
    prompts = {"name": "prompts", "prompts": ["Hi", "Well"]}
    rewards = {"length": {"weight": 1.0, "target": 3}, "kl": 0.1}
    return experiment(
        "grpo", task=prompts, rewards=rewards, policy={"model": str(model), "dtype": "float64"}, **table
    ).with_agent({"name": "grpo", "group_size": 4, "lr": 0.05})


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """A model of files with a chat template and three end tokens."""
    folder = save_chat_tokenizer(tmp_path / "chat")
    model = tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=257)
    model.model.generation_config.eos_token_id = [261]
    model.model.save_pretrained(folder)
    for name, named in (("generation_config.json", [261]), ("config.json", 257)):
        content = json.loads((folder / name).read_text()) | {"eos_token_id": named}
        (folder / name).write_text(json.dumps(content))
    return folder


def assert_same_model(run: Path, folder: str, checkpoint: Any = "best", texts: tuple[str, ...] = TEXTS) -> None:
    """AutoModel has the bits of the run's own policy, and AutoTokenizer gives its ids."""
    own = rlhf_env.load_run(run, checkpoint).workplace.setup
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == own.policy.dtype
    assert fingerprint(model.state_dict()) == fingerprint(own.policy.model.state_dict())
    for text in texts:
        ids = own.tokenizer.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == own.tokenizer.decode(ids)
        if ids:
            batch = torch.tensor([ids])
            with torch.no_grad():
                logits = own.policy.model(batch).logits
                # Kernels sum in another order where weights lie elsewhere in memory.
                assert (model(batch).logits - logits).abs().max() < (1e-12 if model.dtype == torch.float64 else 1e-5)
    assert tokenizer.eos_token_id == own.tokenizer.end_id
    assert tokenizer.pad_token_id == own.tokenizer.pad_id
    named = model.generation_config.eos_token_id
    assert set([named] if isinstance(named, int) else named) == set(end_ids(own.policy))


def test_other_names_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("tiny", "table", "gpt2", "rlhf-env/chitchat", str(tmp_path), str(tmp_path / "none"), "x" * 5000):
        assert model_folder(name) == name


def test_a_toy_run_is_a_model_with_an_alphabet(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path)
    folder = model_folder(str(tmp_path))
    assert_same_model(tmp_path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode([0, 3, 1, 4, 2], skip_special_tokens=True) == "ab="
    with pytest.raises(Exception, match=r"\[UNK\]"):  # as ours, it refuses what it does not know
        tokenizer.encode("abc")
    with pytest.raises(DataError, match="cannot read 'abc'"):
        FileTokenizer(folder).encode("abc")


def test_bytes_are_read_as_bytes_whatever_the_text_says(tmp_path: Path) -> None:
    rlhf_env.run(experiment(policy={"tokenizer": "bytes"}), tmp_path)
    folder = model_folder(str(tmp_path))
    assert_same_model(tmp_path, folder, texts=ANY_TEXTS)
    own, fast = ByteTokenizer(), AutoTokenizer.from_pretrained(folder)
    garbled = [240, 159, 152, 258, 128, 255, 256, 65, 195]
    assert fast.decode(garbled, skip_special_tokens=True) == own.decode(garbled)


def test_a_model_of_files_keeps_its_ids_its_template_and_its_ends_when_its_folder_is_gone(
    tmp_path: Path, chat_model: Path
) -> None:
    before = FileTokenizer(chat_model)
    rlhf_env.run(asking(chat_model), tmp_path / "run")
    folder = model_folder(str(tmp_path / "run"))
    assert_same_model(tmp_path / "run", folder, texts=ANY_TEXTS)
    shutil.rmtree(chat_model)
    shutil.rmtree(tmp_path / "run" / "model")
    made = FileTokenizer(model_folder(str(tmp_path / "run")))
    assert set(made.end_ids) == {260, 257, 261} and made.end_id == 260 and made.pad_id == 258
    for text in (*ANY_TEXTS, "<|im_start|>user\nHi<|im_end|>\n"):
        assert made.encode(text) == before.encode(text)
        assert made.encode_prompt(Prompt("a", text)) == before.encode_prompt(Prompt("a", text))
    messages = [{"role": "user", "content": "Hi"}]
    asked = [it.own.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) for it in (before, made)]
    assert asked[0] == asked[1] and "assistant" in asked[0]


def test_a_run_begins_with_a_run_and_remembers_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = rlhf_env.run(experiment("rloo"), "runs/sft")
    (tmp_path / "ppo.toml").write_text(
        experiment(policy={"model": "runs/sft", "dtype": "float64"}, evaluation={"every": 1, "prompts": 4}).to_toml()
    )
    second = rlhf_env.run("ppo.toml", "runs/ppo")
    began = second.workplace.setup.reference
    assert all(torch.equal(a, b) for a, b in zip(began.parameters(), first.policy.parameters(), strict=True))
    assert isinstance(second.workplace.setup.tokenizer, AlphabetTokenizer)
    assert_same_model(Path("runs/ppo"), model_folder("runs/ppo"))
    # The environment, too, takes a run for the tokenizer's name.
    env = rlhf_env.TextVectorEnv(2, task="count", reward={"task": 1.0}, tokenizer="runs/ppo")
    assert env.tokenizer.encode("ab=") == [0, 1, 2]
    # The first run goes on: the second one can no longer be resumed as if nothing had happened.
    rlhf_env.run(experiment("rloo", updates=4), "runs/sft", resume=True)
    with pytest.raises(ConfigError, match="initial weights are not those that the run was started with"):
        rlhf_env.run("ppo.toml", "runs/ppo", resume=True)
    with pytest.warns(RuntimeWarning, match="'.*runs/sft' has other weights than the run began with"):
        rlhf_env.load_run("runs/ppo")
    shutil.rmtree("runs/sft")
    shutil.rmtree("runs/ppo/model")
    assert load_tokenizer(model_folder("runs/ppo")).encode("ab=") == [0, 1, 2]


def test_the_folder_is_made_once_and_made_anew_when_the_run_went_on(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path)
    folder = model_folder(str(tmp_path))
    made = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    assert model_folder(str(tmp_path)) == folder
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == made
    rlhf_env.run(experiment(updates=4), tmp_path, resume=True)
    further = model_folder(str(tmp_path))
    assert further != folder
    assert_same_model(tmp_path, further)


def test_the_best_checkpoint_is_the_model_unless_the_last_is_asked_for(tmp_path: Path) -> None:
    unsteady = experiment({"name": "ppo", "lr": 0.1}, updates=8, evaluation={"prompts": 8, "every": 1})
    rlhf_env.run(unsteady, tmp_path)
    best, last = model_folder(str(tmp_path)), model_folder(str(tmp_path), "last")
    assert best != last
    assert_same_model(tmp_path, best, "best")
    assert_same_model(tmp_path, last, "last")


def test_many_at_once_get_one_whole_folder(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: model_folder(str(tmp_path)), range(4)))
    assert len(found) == 1
    assert torch.get_default_dtype() == torch.float32  # which transformers changes while it makes a model
    assert [folder.name for folder in (tmp_path / "model").iterdir()] == [Path(next(iter(found))).name]
    assert_same_model(tmp_path, found.pop())


def test_what_was_killed_or_damaged_on_the_way_is_made_anew(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path)
    folder = Path(model_folder(str(tmp_path)))
    (folder / "model.safetensors").write_bytes(b"cut")
    half = folder.with_name(f".{folder.name}.999999999.1.tmp")  # of a process that is no more
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert model_folder(str(tmp_path)) == str(folder)
    assert_same_model(tmp_path, str(folder))
    assert not half.exists()


def test_the_folder_of_a_stage_stands_for_the_run_in_it(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path / "stage" / "run")
    assert model_folder(str(tmp_path / "stage")) == model_folder(str(tmp_path / "stage" / "run"))
    rlhf_env.run(experiment(), tmp_path / "stage" / "again")
    with pytest.raises(ConfigError, match="stage holds 2 runs: name one of them"):
        model_folder(str(tmp_path / "stage"))


def test_a_reward_model_is_built_on_a_run(tmp_path: Path) -> None:
    run = rlhf_env.run(experiment(), tmp_path)
    model = RewardModel.from_trunk(str(tmp_path), dtype=torch.float64)
    assert torch.equal(model.trunk.embed_tokens.weight, run.policy.model.model.embed_tokens.weight)


def test_a_wrapped_agents_model_is_found_in_its_state(tmp_path: Path) -> None:
    wrapped = {"name": "curriculum", "levels": [1, 2], "agent": {"name": "ppo", "lr": 0.05}}
    rlhf_env.run(experiment(wrapped), tmp_path)
    assert_same_model(tmp_path, model_folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"name": "reference"}, "its agent 'reference' trains no model: name the one it wrote with, 'tiny'"),
        ({"name": "random"}, "its agent 'random' trains no model"),
        ({"name": "best_of_n", "n": 2}, "its agent 'best_of_n' trains no model"),
        ({"name": "options"}, "its agent 'options' keeps 2 models and not one"),
    ],
)
def test_who_has_no_model_is_refused_by_name(tmp_path: Path, agent: Any, message: str) -> None:
    rlhf_env.run(experiment(agent), tmp_path)
    with pytest.raises(DataError, match=message) as error:
        model_folder(str(tmp_path))
    assert len(error.value.problems) == 1 and "\n" not in str(error.value)
    assert not list((tmp_path / "model").glob("*")) if (tmp_path / "model").exists() else True


def test_a_table_a_damaged_checkpoint_and_none_are_refused_in_a_line(tmp_path: Path) -> None:
    table = experiment(
        {"name": "reinforce", "lr": 0.1},
        task={"name": "enumerable"},
        policy={"model": "table", "tokenizer": "alphabet:abcd"},
        environment={"num_envs": 8, "max_new_tokens": 3},
    )
    rlhf_env.run(table, tmp_path / "table")
    with pytest.raises(DataError, match="its model is a table of logits"):
        model_folder(str(tmp_path / "table"))
    rlhf_env.run(experiment(), tmp_path / "run")
    weights = next((tmp_path / "run" / "checkpoints").glob("*/tensors.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"no valid checkpoint is left: .* is damaged"):
        model_folder(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no valid checkpoint is left"):
        build(experiment(policy={"model": str(tmp_path / "run")}))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(DataError, match="has no checkpoint yet: train further"):
        model_folder(str(tmp_path / "run"))


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    rlhf_env.run(experiment(), tmp_path)
    (tmp_path / "model").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written into its folder .*: .*`rlhf-env export .* OUT`"):
        model_folder(str(tmp_path))
