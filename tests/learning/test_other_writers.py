"""`[policy] writer = "vllm"` in an experiment: who starts the engine and when, what is logged, and what stops a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import rlhf_env
from rlhf_env import Experiment, build
from rlhf_env.errors import ConfigError, WriterFailed
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.policies.vllm_writer import VllmWriter

sys.path.insert(0, str(Path(__file__).parents[1]))
from policies.standing_vllm import LLM, stand_in


def experiment(agent: str = "grpo", policy: dict[str, Any] | None = None, **more: Any) -> Experiment:
    return Experiment.from_table(
        {
            "task": {"name": "echo", "length": 2},
            "policy": {"tokenizer": "alphabet:ab=", "writer": "vllm", **(policy or {})},
            "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "agent": {"name": agent},
            "budget": {"updates": 2},
            "evaluation": {"prompts": 4},
            **more,
        }
    )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    return stand_in(monkeypatch)


def test_its_texts_are_learned_from_and_its_distance_is_logged(engine: type[LLM], tmp_path: Path) -> None:
    run = rlhf_env.run(experiment(), tmp_path / "run")
    assert run.reason == "budget"
    (llm,) = engine.made
    assert llm.calls.count("reload_weights") == 2
    for row in read_metrics(tmp_path / "run")[1:]:
        assert 0 <= row["writer/kl"] < 1e-9
        assert row["writer/ess"] > 1 - 1e-5
        assert row["writer/ratio_p05"] <= row["writer/ratio_p50"] <= row["writer/ratio_p95"]
        assert "rollout/ess" not in row


def test_the_same_in_another_process_has_the_same_texts(engine: type[LLM], tmp_path: Path) -> None:
    whole = rlhf_env.run(experiment(budget={"updates": 3}), tmp_path / "whole").metrics
    rlhf_env.run(experiment(budget={"updates": 3}, checkpoint_every=1), tmp_path / "other")
    there = tmp_path / "other"
    for step in sorted((there / "checkpoints").iterdir())[2:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    resumed = rlhf_env.run(experiment(budget={"updates": 3}, checkpoint_every=1), there, resume=True).metrics
    assert [row["rollout/reward"] for row in resumed[1:]] == [row["rollout/reward"] for row in whole[1:]]
    assert len(engine.made) == 3


def test_a_run_stops_before_it_learns_from_texts_that_are_too_far(
    engine: type[LLM], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hand_over = VllmWriter._hand_over

    def at_first_alone(self: VllmWriter, policy: Any) -> None:
        if not LLM.made[-1].calls:
            hand_over(self, policy)

    monkeypatch.setattr(VllmWriter, "_hand_over", at_first_alone)
    wanted = experiment(policy={"vllm": {"max_kl": 1e-7}}, budget={"updates": 5})
    with pytest.raises(WriterFailed, match=r"^what vLLM wrote is \S+ nats per token away from the policy"):
        rlhf_env.run(wanted, tmp_path / "run")
    monkeypatch.setattr(VllmWriter, "_hand_over", hand_over)
    done = len(read_metrics(tmp_path / "run")) - 1
    assert 0 < done < 5
    resumed = rlhf_env.run(wanted, tmp_path / "run", resume=True)  # from where it had learned last
    assert resumed.update == 5


def test_who_does_not_learn_from_its_texts_starts_no_engine(engine: type[LLM], tmp_path: Path) -> None:
    run = rlhf_env.run(experiment("reference"))
    assert run.reason == "does not train"
    rlhf_env.run(experiment(budget={"updates": 1}), tmp_path / "run")
    assert len(engine.made) == 1
    _ = rlhf_env.load_run(tmp_path / "run").evaluation  # the policy itself is measured
    assert len(engine.made) == 1


@pytest.mark.parametrize(
    ("agent", "policy", "said"),
    [
        ("options", {}, "another engine would write, and options has no importance ratio"),
        ("grpo", {"writer_dtype": "auto"}, "leave one out"),
        ("grpo", {"lora": {"dora": True}}, "vLLM has no adapters with dora = true"),
        ("grpo", {"writer": None, "vllm": {}}, 'set writer = "vllm" beside it'),
        ("grpo", {"vllm": {"max_kl": 0}}, "max_kl must be above 0, got 0"),
        ("grpo", {"writer": "sglang"}, "writer must be one of 'vllm', 'server', got 'sglang'"),
    ],
)
def test_what_does_not_go_together(agent: str, policy: dict[str, Any], said: str) -> None:
    given = {key: value for key, value in {"writer": "vllm", **policy}.items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        table = {"tokenizer": "alphabet:ab=", **given}
        build(Experiment.from_table({**_plain(agent), "policy": table}))
    assert said in str(refused.value)
    assert len(refused.value.problems) == 1


def _plain(agent: str) -> dict[str, Any]:
    return {"task": {"name": "echo", "length": 2}, "agent": {"name": agent}, "environment": {"max_prompt_tokens": 4}}


def test_without_vllm_nothing_is_written_and_one_line_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"^vLLM is not installed here: pip install vllm, on a machine with a GPU; "):
        rlhf_env.run(experiment(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_that_its_context_cannot_hold_are_refused_at_the_start(engine: type[LLM]) -> None:
    long = {"num_envs": 4, "max_new_tokens": 500, "max_prompt_tokens": 13}
    with pytest.raises(ConfigError, match="= 513 tokens are more than the 512 that the model reads"):
        build(experiment(environment=long)).start_writer()
    assert not engine.made


def test_left_out_it_is_in_no_file() -> None:
    plain = Experiment.from_table({"policy": {"tokenizer": "alphabet:ab="}}).to_toml()
    assert "writer" not in plain
    assert "vllm" not in plain
    assert "[policy.vllm]\n" in experiment(policy={"vllm": {"cache_mb": 64}}).to_toml()


@pytest.mark.parametrize("policy", [{}, {"writer": "server", "server": {"url": "http://localhost:1/v1", "model": "m"}}])
def test_several_processes_are_refused(policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    workplace = build(experiment("grpo" if not policy else "reference", policy))
    monkeypatch.setattr(type(workplace.setup.engine.processes), "size", 2, raising=False)
    with pytest.raises(ConfigError, match="writes in one process, and a launcher has started several"):
        workplace.start_writer()
