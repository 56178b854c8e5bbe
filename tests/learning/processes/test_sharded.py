"""A model divided among two processes (`[engine] shard`) computes, writes, learns and is saved as an undivided one."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.fsdp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.processes import started
from faults.resume_matrix import timeless

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.launched import asks_for_shards, launched
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.processes import current
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.sharding import shard
from rlhf_env.learning.shards import has_shards, made_whole, part_of
from rlhf_env.learning.workplace import build
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import add_adapter
from rlhf_env.policies.tiny import tiny_language_model

from .pool import REWARDS, TOY, UPDATES, Notes, assert_one_line, commands, rank, several, tensors_of, trained
from .test_same_as_one import close

# ---------------------------------------------------------------- the model by itself

TEXTS = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 6, 7, 0], [3, 3, 4, 0, 0], [5, 1, 0, 0, 0], [2, 6, 6, 1, 3]])
LENGTHS = torch.tensor([5, 4, 3, 2, 5])


def model(kind: str) -> LanguageModel:
    """A model of 9 words; what is said after a family's name changes it."""
    family, _, more = kind.partition(", ")
    made = tiny_language_model(
        family,  # type: ignore[arg-type]
        vocab_size=9,
        hidden_size=8,
        heads=2,
        init_std=0.3,
        end_id=0,
        dtype=torch.bfloat16 if more == "bfloat16" else torch.float64,
        fused=more != "by its own code",
        gradient_checkpointing=more == "layers computed again",
    )
    if more == "untied":
        made.model.lm_head.weight = torch.nn.Parameter(made.model.lm_head.weight.detach().clone() * 0.5)
    if more == "adapters":
        add_adapter(made.model, Lora(rank=2), seed=0)
        with torch.no_grad():  # otherwise half of the gradient is 0
            for name, weight in made.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight))
    return made


def learned(policy: LanguageModel, reference: LanguageModel, engine: Engine) -> dict[str, Any]:
    """What two gradient steps see and leave, with what is written and read before and after."""
    optimizer = engine.optimizer(policy.parameters(), Optimization(lr=0.01, micro_batch_size=2))
    found: dict[str, Any] = {}
    mask = torch.arange(5) < LENGTHS[:, None]
    where = mask & (torch.arange(5) > 0)
    prompts = {"input_ids": TEXTS[:, :2].numpy(), "attention_mask": np.ones((5, 2), np.int8)}
    for step in (0, 1):
        policy.reseed(7)
        written = policy.write(prompts, 4)  # type: ignore[arg-type]
        found |= {f"tokens {step}": written.tokens, f"stated {step}": written.logprobs}
        with torch.no_grad():
            found[f"read {step}"] = policy.evaluate(TEXTS, mask, where).logprobs
            found[f"reference {step}"] = reference.evaluate(TEXTS, mask, where).logprobs
        sums = {"loss": 0.0}
        for rows in optimizer.rows(LENGTHS):
            scores = policy.evaluate(TEXTS[rows], mask[rows], where[rows])
            loss = scores.logprobs.sum() + 0.1 * scores.entropy.sum() + 0.01 * scores.hidden.float().square().sum()
            sums["loss"] += float(loss.detach())
            optimizer.backward(loss)
        found[f"loss {step}"] = optimizer.summed(sums)["loss"]
        found[f"norm {step}"] = optimizer.step()
    state = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
    found["state"] = made_whole(state, keep=True) if has_shards(state) else copy.deepcopy(state)
    return found


KINDS = (
    *("gpt2", "gemma4"),  # GPT-2's embedding is its head; Gemma's layers read keys of others
    *("gpt2, adapters", "llama, bfloat16", "llama, layers computed again", "gpt2, by its own code"),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Any, Any]]]:
    """By kind of model, what one process finds undivided, and what the first of two finds that divide it."""
    place = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        model(kind)  # imports what processes then have

    def work() -> None:
        torch.set_num_threads(1)
        for kind in KINDS:
            policy = model(kind)
            reference = policy.frozen_copy()
            policy.together = reference.together = current()
            if current().size > 1:
                whole = sum(part_of(weight).numel() for weight in policy.parameters())
                shard(policy, reference, current())
                parts = sum(part_of(weight).numel() for weight in policy.parameters())
                assert parts < 0.6 * whole, (kind, parts, whole)
            found = learned(policy, reference, Engine(processes=current()))
            torch.save(found, place / f"{kind}-{current().size}-{rank()}")

    for size in (1, 2):
        for ended in several(size, work):
            assert ended.status == 0, ended
    yield {
        kind: tuple(torch.load(place / f"{kind}-{size}-0", weights_only=False) for size in (1, 2))  # type: ignore[misc]
        for kind in KINDS
    }
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divided_model_computes_and_learns_as_a_whole_one(both: Mapping[str, tuple[Any, Any]], kind: str) -> None:
    whole, divided = both[kind]
    assert whole.keys() == divided.keys()
    if kind.endswith("bfloat16"):  # rounding draws other tokens later on
        assert divided["norm 0"] == pytest.approx(whole["norm 0"], rel=0.02)
        return
    assert np.array_equal(whole["tokens 0"], divided["tokens 0"]) and np.array_equal(
        whole["tokens 1"], divided["tokens 1"]
    )
    within = 1e-6 if kind.startswith(("llama", "gemma", "qwen")) else 1e-10  # their norms are in float32
    for name, value in flat(whole):
        found = torch.as_tensor(dict(flat(divided))[name])
        torch.testing.assert_close(found, torch.as_tensor(value), rtol=within, atol=within, msg=f"{kind}: {name}")


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flat(item, f"{path}/{name}")
    else:
        yield path, value


# ---------------------------------------------------------------- whole runs

# A penalty with a controller, a reward with a memory; a second model that learns; one that is asked for whole
# distributions. (Where all texts of a group earn the same, what is learned is rounding: "curriculum around replay
# around ppo" has such an update, and is not compared.)
RUNS = ("grpo, novelty", "ppo, separate value model", "distill, the best of two")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each of RUNS in one process, and divided among two; and the first of them gone on with, from the checkpoint on
    the way that one kind left, by the other."""
    place = tmp_path_factory.mktemp("runs")
    build(Experiment(policy=PolicySettings(tokenizer="alphabet:ab")))  # imports what processes then have

    def done(size: int, folder: str, cases: Sequence[str], *, resume: bool = False) -> None:
        def work() -> None:
            torch.set_num_threads(1)
            for case in cases:
                trained(case, place / folder / case, Notes(), shard=size > 1, resume=resume)

        for ended in several(size, work):
            assert ended.status == 0, ended

    done(1, "whole", RUNS)
    done(2, "divided", RUNS)
    for size, begun, folder in ((2, "whole", "then divided"), (1, "divided", "then whole")):
        shutil.copytree(place / begun / RUNS[0], place / folder / RUNS[0])
        shutil.rmtree(place / folder / RUNS[0] / "run" / "checkpoints" / f"step-{UPDATES:08}")
        done(size, folder, RUNS[:1], resume=True)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize(
    ("folder", "case"),
    [*(("divided", case) for case in RUNS), *((folder, RUNS[0]) for folder in ("then divided", "then whole"))],
)
def test_a_run_that_was_divided_is_the_run_of_one_process(runs: Path, folder: str, case: str) -> None:
    """Every logged number, and every tensor of the checkpoint, which holds whole ones."""
    alone, divided = ([timeless(row) for row in read_metrics(runs / name / case / "run")] for name in ("whole", folder))
    assert len(alone) == len(divided) == UPDATES + 1 and close(alone, divided)
    expected, found = tensors_of(runs / "whole" / case), tensors_of(runs / folder / case)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10, msg=name)


# ---------------------------------------------------------------- what cannot be

SHARDED = TOY.replace("100_000", "1") + REWARDS + "engine = { shard = true }\n"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (SHARDED.replace('"reinforce"', '"sb3"'), "shard = true: sb3 learns with Stable-Baselines3's own optimizer"),
        (SHARDED.replace('"reinforce"', '"options"'), "shard = true: options has a model for each option"),
        (
            SHARDED.replace("tokenizer =", 'model = "table", tokenizer ='),
            "shard = true: a table of logits has no layers",
        ),
        (SHARDED.replace("true", "1"), "shard must be true or false"),
    ],
)
def test_what_cannot_be_divided_is_one_line(toy: Path, file: str, words: str) -> None:
    (toy / "toy.toml").write_text(file, encoding="utf-8")
    assert_one_line([one.wait() for one in commands(*["train toy.toml --out run"] * 2)], 2, "toy.toml, line ", words)
    assert sorted(it.name for it in toy.iterdir()) == ["toy.toml"]


def test_one_process_is_told_how_to_start_several(toy: Path) -> None:
    (toy / "toy.toml").write_text(SHARDED, encoding="utf-8")
    assert_one_line([started("train", "toy.toml").wait()], 2, "this is one", "torchrun --nproc-per-node 2")
    assert started("check", "toy.toml").wait().status == 0  # where a file is looked at, there may be one


def test_processes_that_divide_a_model_and_others_are_told_apart(toy: Path) -> None:
    (toy / "toy.toml").write_text(SHARDED, encoding="utf-8")
    (toy / "whole.toml").write_text(SHARDED.replace("true", "false"), encoding="utf-8")
    ended = [one.wait() for one in commands("train toy.toml --out run", "train whole.toml --out run")]
    assert_one_line(ended, 2, "process 1 has another [engine] shard than process 0: false, and there true")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1, and rlhf-env shards by FSDP 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_what_accelerate_is_configured_for_and_is_not_done_is_refused(said: Mapping[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launched(said)
        asks_for_shards(said)
    assert words in str(refused.value)


def test_fsdp_2_of_accelerates_configuration_is_shard() -> None:
    assert asks_for_shards({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    assert not asks_for_shards({})
