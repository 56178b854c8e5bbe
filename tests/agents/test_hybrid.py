"""Hybrid training: its gradient in each way, that it learns both, what comes out of a run, that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rlhf_agents.hybrid import Hybrid

import rlhf_env
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.offline import load_preferences, pair_episode
from rlhf_env.feedback.reward_models.scorecard import scorecard_of
from rlhf_env.learning import checkpoints
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import demonstrations, preference_pairs

HERE = Path(__file__).parent
PAIRS, ANSWERS = str(HERE / "pairs.jsonl"), str(HERE / "answers.jsonl")
WAYS = ("shared", "head", "separate")


def hybrid(setup: Any, **settings: Any) -> Hybrid:
    given = {"preferences": PAIRS, "step_tokens": 80, "held_out": 0.0, "optimization": Optimization(lr=3e-3)}
    agent = Hybrid(setup, Hybrid.Config(**{**given, **settings}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # at a head of 0 no pair moves a trunk
        agent.reward_head.copy_(torch.randn(agent.reward_head.shape, generator=generator, dtype=torch.float64))
    return agent


def experiment(**settings: Any) -> dict[str, Any]:
    lora = {"lora": {"rank": 2}} if settings.get("way") == "adapters" else {}
    return {
        "policy": {"model": "tiny", "tokenizer": "alphabet:ab:=", "dtype": "float64", **lora},
        "task": {"name": "file", "path": ANSWERS},
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "agent": {"name": "sft+rm", "preferences": PAIRS, "step_tokens": 60, "lr": 1e-2, "held_out": 0.2, **settings},
        "budget": {"gradient_tokens": 200},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
    }


def flat(gradients: Any, like: list[torch.Tensor]) -> torch.Tensor:
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]
    return torch.cat([gradient.flatten() for gradient in filled])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", [{}, {"micro_batch_size": 2}])
def test_the_gradient_is_the_sum_of_both_losses(make_world, make_episode, way: str, limit: dict[str, int]) -> None:
    """In float64, against plain forward passes of the transformers model, text by text: to 1e-10, in each way."""
    world = make_world()
    agent = hybrid(world.setup, way=way, reward_coefficient=0.7, optimization=Optimization(lr=3e-3, **limit))
    given = [make_episode([0, 2], [1] * n + [4]) for n in (3, 1, 2)]
    pairs = agent.pairs.next(agent)
    agent.pairs.load_state_dict({"place": 0})
    assert len(pairs) >= 4 and len(set(pairs.lengths.tolist())) > 1

    model, scorer = agent.policy.model, agent.trunk.model
    terms = []
    for episode in given:
        logprobs = model(torch.from_numpy(episode.ids)[None]).logits[0].log_softmax(-1)
        terms += [-logprobs[t - 1, episode.ids[t]] for t in range(2, len(episode.ids))]
    likelihood = torch.stack(terms).mean()
    scores = []
    for episode in pairs.episodes:
        states = scorer.base_model(torch.from_numpy(episode.ids)[None]).last_hidden_state[0]
        states = states.detach() if way == "head" else states
        scores.append(states[-1] @ agent.reward_head)
    compared = torch.stack([-F.logsigmoid(a - b) for a, b in zip(scores[0::2], scores[1::2], strict=True)]).mean()

    trained = [*agent.policy.parameters(), *(agent.trunk.parameters() if way == "separate" else ()), agent.reward_head]
    expected = flat(
        torch.autograd.grad(likelihood + 0.7 * compared, trained, retain_graph=True, allow_unused=True), trained
    )
    of_pairs = flat(torch.autograd.grad(0.7 * compared, trained, allow_unused=True), trained)
    seen: list[torch.Tensor] = []
    step = agent.optimizer.step

    def look() -> float:
        seen.append(flat([p.grad for p in trained], trained))
        return float(step())

    agent.optimizer.step = look  # type: ignore[method-assign]
    metrics = agent.update(demonstrations(given, pad_id=5))
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-10)
    assert abs(metrics["loss"] - float(likelihood.detach())) < 1e-12
    assert abs(metrics["reward_loss"] - float(compared.detach())) < 1e-12
    moved = of_pairs[: sum(p.numel() for p in agent.policy.parameters())].abs().max() > 1e-6
    assert bool(moved) == (way == "shared"), "pairs move the policy's trunk where it is shared, and there only"


def test_tokens_are_mixed_by_the_share_and_all_are_counted(make_world, make_episode) -> None:
    for share in (0.25, 0.75):
        world = make_world()
        agent = hybrid(world.setup, demonstration_share=share, step_tokens=160)
        assert agent.demonstrated.pack_tokens == round(160 * share)
        given = [make_episode([0, 2], [1] * 6 + [4])] * round(160 * share / 9)
        rollout = demonstrations(given, pad_id=5)
        metrics = agent.update(rollout)
        assert abs(metrics["demonstration_share"] - share) < 0.1
        spent = world.setup.spending
        assert spent.gradient_tokens == round(int(rollout.mask.sum()) / metrics["demonstration_share"])
        assert (spent.gradient_steps, spent.preference_labels) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_both(make_world, make_episode, way: str) -> None:
    agent = hybrid(make_world().setup, way=way, optimization=Optimization(lr=1e-2))
    given = demonstrations([make_episode([0, 2], [0] * 6)] * 4, pad_id=5)
    rows = [agent.update(given) for _ in range(40)]
    assert rows[-1]["perplexity"] < 1.3
    early, late = ([row["reward_loss"] for row in part] for part in (rows[:5], rows[-5:]))
    assert np.mean(late) < np.mean(early) - 0.2
    if way != "head":  # that of a trunk which never saw a pair learns slowly
        assert np.mean([row["accuracy"] for row in rows[-5:]]) > 0.9 and np.mean(late) < 0.4


@pytest.mark.parametrize("way", [*WAYS, "adapters"])
def test_a_run_is_a_policy_and_a_reward_model(way: str, tmp_path: Path) -> None:
    """Scores of the reward model are the agent's own, to 1e-10, on the scale of the scores it saw."""
    if way == "adapters":
        pytest.importorskip("peft")
    run = rlhf_env.run(experiment(way=way), tmp_path / "run")
    assert 0.0 <= run.evaluation.metrics["preference_accuracy"] <= 1.0
    assert run.evaluation.metrics["perplexity"] > 1.0
    assert {"eval/preference_accuracy", "eval/perplexity"} <= run.metrics[0].keys()
    assert {"train/reward_loss", "train/accuracy", "train/demonstration_share"} <= run.metrics[1].keys()
    agent: Any = run.agent
    scorer = rlhf_env.load_scorer(tmp_path / "run")
    tokenizer = load_tokenizer("alphabet:ab:=")
    pairs = load_preferences(PAIRS)
    sides = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    episodes = [pair_episode(prompt, side, tokenizer) for prompt, side in sides]
    rollout = preference_pairs(episodes[0::2], episodes[1::2], pad_id=run.workplace.setup.tokenizer.pad_id)
    own = agent.scores(rollout).detach().numpy()
    scale = agent.state_dict()["reward_scale"]
    np.testing.assert_allclose(scorer.score(episodes), (own - scale["mean"]) / scale["std"], rtol=0, atol=1e-10)
    assert np.ptp(own) > 1e-3
    again = rlhf_env.load_scorer(tmp_path / "run")  # of the folder that was made
    assert again.score_responses(sides).tolist() == scorer.score(episodes).tolist()
    assert scorecard_of(tmp_path / "run", PAIRS).pairs == 10

    further = {
        **experiment(),
        "policy": {"model": str(tmp_path / "run"), "dtype": "float64"},
        "task": {"name": "prompts", "prompts": ["a:", "b:"]},
        "rewards": {"bradley_terry": {"weight": 1.0, "model": str(tmp_path / "run")}, "kl": 0.1},
        "agent": {"name": "rloo"},
        "budget": {"updates": 1},
    }
    started = rlhf_env.run(further)
    before = started.workplace.setup.reference.response_logprobs(episodes)
    for one, other in zip(before, run.policy.response_logprobs(episodes), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["separate"])
def test_a_run_that_was_cut_ends_in_the_same_bits(way: str, tmp_path: Path) -> None:
    whole = rlhf_env.run(experiment(way=way), tmp_path / "whole")
    rlhf_env.run({**experiment(way=way), "budget": {"gradient_tokens": 100}}, tmp_path / "cut")
    text = (tmp_path / "whole" / "experiment.toml").read_text()
    resumed = rlhf_env.run({**experiment(way=way)}, tmp_path / "cut", resume=True)
    assert text == (tmp_path / "cut" / "experiment.toml").read_text()
    states = []
    for run in (whole, resumed):
        newest = checkpoints.latest(Path(str(run.folder)) / "checkpoints")
        assert newest is not None
        states.append((newest / "tensors.safetensors").read_bytes())
        assert run.spending.gradient_tokens == whole.spending.gradient_tokens
    assert states[0] == states[1]


def test_other_runs_are_no_reward_models(tmp_path: Path) -> None:
    table = {**experiment(), "agent": {"name": "sft"}, "budget": {"updates": 1}}
    rlhf_env.run(table, tmp_path / "run")
    with pytest.raises(DataError, match="is a run, whose model writes texts, and not a reward model"):
        rlhf_env.load_scorer(tmp_path / "run")


def test_what_it_refuses(make_world, make_episode, tmp_path: Path) -> None:
    pair = preference_pairs([make_episode([0, 2], [1, 4])], [make_episode([0, 2], [0, 4])], pad_id=5)
    with pytest.raises(DataError, match="name the file of pairs as `preferences`"):
        hybrid(make_world().setup).update(pair)
    with pytest.raises(DataError, match="none of the texts has a token"):
        hybrid(make_world().setup).update(demonstrations([make_episode([0, 2], [])], pad_id=5))
    with pytest.raises(ConfigError, match=r"needs \[policy.lora\]"):
        hybrid(make_world().setup, way="adapters")
    with pytest.raises(ConfigError, match="leave no token for one of both kinds"):
        Hybrid.Config(preferences=PAIRS, step_tokens=1)
    with pytest.raises(ConfigError, match="'every' marks answers"):
        Hybrid.Config(preferences=PAIRS, turns="every", loss_on="all")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a:", "chosen": "a" * 40, "rejected": "b"}) + "\n")
    with pytest.raises(DataError, match="43 tokens"):
        hybrid(make_world().setup, preferences=str(long))
    with pytest.raises(DataError, match="leaves no pair to learn from"):
        long.write_text(json.dumps({"prompt": "a:", "chosen": "a", "rejected": "b"}) + "\n")
        hybrid(make_world().setup, preferences=str(long), held_out=0.999)


def test_a_context_is_filled_to_the_last_token(make_world, tmp_path: Path) -> None:
    """A score reads every token of a text: 32 fit into a context of 32, and 33 do not."""
    for length, fits in ((29, True), (30, False)):
        file = tmp_path / f"{length}.jsonl"
        file.write_text(json.dumps({"prompt": "a:", "chosen": "a" * length, "rejected": "b"}) + "\n")
        if fits:
            agent = hybrid(make_world().setup, preferences=str(file), step_tokens=400)
            pairs = agent.pairs.next(agent)
            assert int(pairs.lengths.max()) == 32 and agent.scores(pairs).isfinite().all()
        else:
            with pytest.raises(DataError, match="33 tokens"):
                hybrid(make_world().setup, preferences=str(file))
