"""Reward models trained elsewhere: the score is that of transformers' own forward pass, whatever is in the batch."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.bradley_terry import BradleyTerry
from safetensors.torch import load_file

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import write_jsonl
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models.calibration import accuracy_with_interval
from rlhf_env.feedback.reward_models.classifier import SequenceClassifier
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Prompt

Make = Callable[..., Path]
PAD, END = 256, 257
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "bert": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}


@pytest.fixture
def make(tmp_path: Path, trunk: Path) -> Make:
    """A small random classification model in a folder, with the byte-level tokenizer of `trunk` or none."""

    def build(family: str, *, labels: int = 1, pad: int | None = PAD, tokenizer: bool = True) -> Path:
        from transformers import AutoConfig, AutoModelForSequenceClassification

        special = {"pad_token_id": pad, "eos_token_id": END, "bos_token_id": None, "initializer_range": 0.5}
        config = AutoConfig.for_model(family, vocab_size=258, num_labels=labels, **SIZES[family], **special)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(tmp_path / family)
        if tokenizer:
            for file in trunk.glob("tokenizer*"):
                shutil.copy(file, tmp_path / family)
        return tmp_path / family

    return build


def logit(folder: Path, text: str) -> float:
    """By transformers alone, one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return float(model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits)


EPISODES = [
    make_episode("How are you?", "Fine."),
    make_episode("Hi", "é 😀 and a longer answer", finish_reason="length"),
    make_episode("Say nothing.", ""),
    make_episode("a", "b"),
]
TEXTS = ["How are you?Fine.<end>", "Hié 😀 and a longer answer", "Say nothing.<end>", "ab<end>"]


@pytest.mark.parametrize(
    ("family", "pad"),
    [(family, pad) for family in SIZES for pad in (PAD, END, None) if (family, pad) != ("bert", None)],
)
def test_it_plugs_in_unchanged(family: str, pad: int | None, make: Make) -> None:  # N6: also where pad is the end token
    folder = make(family, pad=pad)
    reward = BradleyTerry(folder)
    expected = [logit(folder, text) for text in TEXTS]
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(reward(EPISODES), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(reward(EPISODES[::-1]), expected[::-1], rtol=0, atol=1e-5)
    assert reward([]).shape == (0,)


def test_batch_mates_change_nothing_in_float64(make: Make) -> None:
    model = SequenceClassifier(make("gpt2"), dtype=torch.float64)
    alone = np.concatenate([model.score([it]) for it in EPISODES])
    np.testing.assert_allclose(model.score(EPISODES), alone, rtol=0, atol=1e-10)
    assert model.score_members(EPISODES).shape == (1, 4)


def test_stored_responses_score_as_the_episodes_they_were(make: Make) -> None:
    model = SequenceClassifier(make("llama"))
    stored = [(it.prompt, Response.from_episode(it, Author("policy", "sft"))) for it in EPISODES]
    assert (model.score_responses(stored) == model.score(EPISODES)).all()


def test_without_a_tokenizer_ids_are_read_as_they_are(make: Make) -> None:
    model = SequenceClassifier(make("gpt2", tokenizer=False))
    ids = np.array([3, 1, 4], dtype=np.int64)
    episode = Episode(Prompt("p", "?"), ids[:1], "?", ids[1:], "length", np.ones(2, bool))
    with torch.no_grad():
        expected = model._model(input_ids=torch.from_numpy(ids)[None]).logits
    np.testing.assert_allclose(model.score([episode]), expected[0], rtol=0, atol=1e-6)
    outside = Episode(Prompt("p", "?"), ids[:1], "?", ids + 300, "length", np.ones(3, bool))
    with pytest.raises(DataError, match="save the tokenizer with the model"):
        model.score([outside])
    with pytest.raises(DataError, match="no token ids"):
        model.score_responses([(Prompt("p", "?"), Response("text", Author("human", "Zoë")))])


def test_what_is_no_reward_model_is_refused(make: Make, trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has 3 labels"):
        load_scorer(make("llama", labels=3))
    with pytest.raises(DataError, match=r"weights are missing.*not a sequence classification model"):
        load_scorer(trunk)  # a language model
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not a reward model"):
        load_scorer(tmp_path / "empty")
    with pytest.raises(DataError, match="nobody/nothing"):
        load_scorer("nobody/nothing")
    with pytest.raises(DataError, match="exceeds the context of 64"):
        load_scorer(make("gpt2")).score([make_episode("q", "a" * 64)])


def test_pickled_weights_are_not_read(make: Make) -> None:
    folder = make("gpt2")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError):
        load_scorer(folder)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_a_model_trained_by_trl_is_used_as_it_is(make: Make, tmp_path: Path) -> None:
    """TRL's RewardTrainer learns from our exported pairs; our reward scores what TRL saved as TRL scores it."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def pair(i: int) -> Preference:
        good, bad = (Response(text + "." * (i % 3), Author("human", "Zoë")) for text in ("yes", "no"))
        return Preference(Prompt(f"{i}", f"q{i}? "), good, bad, "ann")

    write_jsonl(tmp_path / "pairs.jsonl", [pair(i) for i in range(48)])
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, plain)))
    folder = make("llama")
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=RewardConfig(
            str(tmp_path / "out"),
            num_train_epochs=6,
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=load_dataset(
            "json", data_files=str(tmp_path / "plain.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    model = load_scorer(tmp_path / "trained")
    unseen = [pair(i) for i in range(48, 60)]
    sides = [[(it.prompt, getattr(it, side)) for it in unseen] for side in ("chosen", "rejected")]
    chosen, rejected = (model.score_responses(side) for side in sides)
    assert accuracy_with_interval(chosen, rejected).value == 1.0
    expected = [logit(tmp_path / "trained", f"{prompt.text}{it.text}<end>") for prompt, it in sides[0]]
    np.testing.assert_allclose(chosen, expected, rtol=0, atol=1e-5)
