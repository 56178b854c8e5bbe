"""How large a model is, before it is loaded; a model larger than memory is refused before it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.policies import loading, sizes
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.sizes import memory_free, require_room, size_of
from rlhf_env.policies.tiny import tiny_language_model

# Two layers of which nothing fits anywhere.
HUGE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 259,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_the_size_is_that_of_the_model(family: str, tmp_path: Path) -> None:
    policy = tiny_language_model(family, key_value_heads=2, dtype=torch.bfloat16)  # type: ignore[arg-type]
    policy.save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size is not None
    held = sum(weight.numel() * weight.element_size() for weight in policy.parameters())  # tied ones once
    assert (size.weights(torch.bfloat16), size.weights(None), size.weights(torch.float64)) == (held, held, 4 * held)
    assert size.dtype == torch.bfloat16
    kv_heads = 4 if family == "gpt2" else 2
    assert size.keys_and_values == 2 * 2 * kv_heads * 8  # keys and values, layers, heads of 8
    of_layers = [weight for name, weight in policy.named_parameters() if ".layers." in name or ".h." in name]
    assert sum(a * b for _, a, b in size.matrices) == sum(weight.numel() for weight in of_layers if weight.ndim == 2)
    trunk = size_of(tmp_path, head=False)
    assert trunk is not None
    tied = policy.model.get_output_embeddings().weight is policy.model.get_input_embeddings().weight
    assert size.parameters - trunk.parameters == (0 if tied else 259 * 32)


def test_float16_is_counted_as_what_it_is_read_as(tmp_path: Path) -> None:
    tiny_language_model(dtype=torch.float16).model.save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size is not None and size.dtype == torch.float16 and size.weights(None) == 4 * size.parameters


def test_nothing_is_loaded_to_know_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGE))
    size = size_of(tmp_path)
    assert size is not None and size.parameters > 10**13
    assert size_of(tmp_path / "nothing") is None


def test_a_model_larger_than_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGE))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    for load in (LanguageModel.from_pretrained, RewardModel.from_trunk):
        with pytest.raises(
            DataError, match=r"weights alone are [\d,.]+ GiB in float32 \([\d,]+ parameters\), and .*: take"
        ):
            load(tmp_path)
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path / "small")
    held = size_of(tmp_path / "small")
    assert held is not None
    monkeypatch.setattr(sizes, "memory_free", lambda: held.weights(torch.float32) - 1)
    with pytest.raises(DataError, match=r'dtype = "bfloat16" makes them 8\d KiB'):
        LanguageModel.from_pretrained(tmp_path / "small")
    LanguageModel.from_pretrained(tmp_path / "small", dtype=torch.bfloat16)
    monkeypatch.setattr(sizes, "memory_free", lambda: held.weights(torch.float32))
    LanguageModel.from_pretrained(tmp_path / "small")


def test_what_nothing_is_known_of_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUGE))
    monkeypatch.setattr(sizes, "memory_free", lambda: None)
    require_room(tmp_path, None)
    assert loading.require_room is require_room


def groups(root: Path, **files: str) -> None:
    for name, content in files.items():
        place = root / name.replace("_IN_", "/").replace("_DOT_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def test_memory_is_what_the_machine_and_the_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, own, root = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\nSwapFree:  96 kB\nHugePages_Total:  0\n")
    own.write_text("0::/job/step\n")
    for name, place in (("_MEMINFO", meminfo), ("_OWN_GROUPS", own), ("_CGROUPS", root)):
        monkeypatch.setattr(sizes, name, place)
    assert memory_free() == 4096 * 1024
    for group, limit in (("job/step", "max"), ("job", "1000000")):  # that of the job around it counts
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "memory.max").write_text(f"{limit}\n")
        (root / group / "memory.current").write_text("300000\n")
        (root / group / "memory.stat").write_text("anon 200000\ninactive_file 100000\n")
    assert memory_free() == 1_000_000 - 300_000 + 100_000
    own.write_text("4:cpu,memory:/there\n1:cpu:/\n")
    (root / "memory").mkdir()
    (root / "memory" / "memory.limit_in_bytes").write_text("500000")  # of a container, whose path is not to be seen
    (root / "memory" / "memory.usage_in_bytes").write_text("499000")
    (root / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    assert memory_free() == 1000
    own.unlink()
    meminfo.write_text("nonsense")
    assert memory_free() is None or memory_free() > 10**8  # what there is at all
