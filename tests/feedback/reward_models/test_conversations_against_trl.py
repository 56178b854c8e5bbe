"""Conversations are scored on the tokens that TRL's RewardTrainer makes of them, with its own model's numbers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.file_task import File
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.offline import load_preferences
from rlhf_env.feedback.reward_models.classifier import SequenceClassifier
from rlhf_env.feedback.store.store import PreferenceStore

sys.path.insert(0, str(Path(__file__).parents[2]))
from chat_tokenizers import CHATML, save_chat_tokenizer

# One that TRL's tokens end differently from: what closes an answer is no end token, and the text is trimmed.
TRIMS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# And one that writes tools and calls of them.
CALLS = (
    "{{ tools[0].function.name if tools }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>{% endfor %}"
)
# SmolLM2-Instruct's own, whose padding token is its end token; padded on the left here, as people do who generate.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "trims": TRIMS, "calls": CALLS, "smollm2": SMOLLM2}


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def asked(i: int) -> list[dict[str, Any]]:
    question = {"role": "user", "content": f" q{i}?"}
    if i % 3 == 0:
        return [question]
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    if i % 6 == 5:
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": i}}}
        return [question, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    return [*before, question] if i % 3 == 1 else [{"role": "system", "content": "Be brief."}, question]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture(params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small random classification model with one of the templates."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    pad = 260 if request.param == "smollm2" else 258
    config = AutoConfig.for_model(
        "llama", vocab_size=262, num_labels=1, pad_token_id=pad, eos_token_id=260, bos_token_id=256, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_config(config)
    made.save_pretrained(tmp_path / "model")
    folder = save_chat_tokenizer(tmp_path / "model", TEMPLATES[request.param], begins=request.param != "smollm2")
    if request.param == "smollm2":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"pad_token": "<|im_end|>", "bos_token": "<|im_start|>", "padding_side": "left"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_scores_of_conversations_are_trls(model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    rows = [
        {
            "prompt": asked(i),
            "chosen": said("yes " + "!" * (i % 4)),
            "rejected": said("no" + "." * (i % 5)),
            "tools": json.dumps(TOOLS),
        }
        for i in range(24)
    ]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model),
        args=RewardConfig(
            str(tmp_path / "out"),
            num_train_epochs=2,
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_preferences(file)
    with PreferenceStore(tmp_path / "s.db") as store:
        store.add(pairs)
        stored = {(it.prompt.text, it.chosen.text): it for it in store.preferences()}
    ours = SequenceClassifier(tmp_path / "trained")
    theirs = trainer.model.eval()
    for side in ("chosen", "rejected"):
        ids = [list(tokens) for tokens in trainer.train_dataset[f"{side}_ids"]]
        with torch.no_grad():
            expected = [float(theirs(input_ids=torch.tensor([it])).logits) for it in ids]
        assert len({round(it, 6) for it in expected}) > 3, "the scores tell texts apart"
        again = [stored[pair.prompt.text, pair.chosen.text] for pair in pairs]
        for read in (pairs, again):
            scores = ours.score_responses([(pair.prompt, getattr(pair, side)) for pair in read])
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
            assert ours.lengths([(pair.prompt, getattr(pair, side)) for pair in read]) == [len(it) for it in ids]


def test_whoever_asked_the_reward_model_reads_its_own_template(model: Path, tmp_path: Path) -> None:
    """The policy's template is another one; an answer that was cut short is not closed."""
    other = save_chat_tokenizer(tmp_path / "policy", "{% for m in messages %}({{ m.content }}){% endfor %}")
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"messages": asked(2), "tools": TOOLS}))
    scorer = SequenceClassifier(model)
    own: Any = scorer._tokenizer
    whole = own.apply_chat_template([*asked(2), *said("yes!")], tools=TOOLS, tokenize=True, return_dict=False)
    for template in ("own", str(other)):
        prompt = File(str(file), chat_template=template).prompt(0, {})
        for reason in ("stop", None):
            response = Response("yes!", Author("dataset", "d"), finish_reason=reason)  # type: ignore[arg-type]
            assert scorer._read([(prompt, response)])[0].tolist() == whole
        cut = Response("yes", Author("dataset", "d"), finish_reason="length")
        text = own.decode(scorer._read([(prompt, cut)])[0])
        assert text.endswith("yes") and text == own.decode(whole)[: len(text)]
