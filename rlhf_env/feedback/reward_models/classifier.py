"""A reward model trained elsewhere: any sequence classification model of transformers with one label.

What TRL's RewardTrainer saves, and what most reward models of the hub are. Its own forward pass gives the score, so
that where the score is read (the last token, the first, a pooler) is as it was in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_env.envs.tokenizers import conversation_of, template_options
from rlhf_env.envs.transformers_tokenizer import quiet_transformers, render_chat
from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Response
from rlhf_env.feedback.reward_models.model import batches_of_like_length, distinct, padded_ids
from rlhf_env.learning.devices import find_device, placed
from rlhf_env.policies.end_tokens import end_ids_of_model, listed
from rlhf_env.policies.precision import as_float64
from rlhf_env.policies.untyped import HFModel
from rlhf_env.types import Episode, Float, Int, JsonView, Prompt

_ENDED = ("stop", "stop_string", "task", None)  # None: text that nobody cut short


class SequenceClassifier:
    """`score` is the logit of the model's one label, in log-odds for a model that was fitted to preferences.

    The model has its own tokenizer, so what it reads is text. A conversation is read as TRL's RewardTrainer reads it:
    in the model's own chat template, the response as its last message, and what the template writes behind that unless
    the response was cut short. Any other prompt, and every prompt of a model without a template, is one string with
    the response, and the end token follows where the response ended. In a folder without tokenizer files the token ids
    of the episodes are read as they are.
    """

    log_odds_per_point = 1.0
    members = 1

    def __init__(self, model: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.name = str(model)
        place = find_device(device)
        self._model = placed(_load(self.name, dtype), place)
        self._tokenizer = _load_tokenizer(self.name)
        config = self._model.config.get_text_config()
        own = None if self._tokenizer is None else self._tokenizer.eos_token_id
        self._ends = () if own is None else listed([own, *end_ids_of_model(self._model)])  # any may close a text
        self._pad: int | None = config.pad_token_id
        self._vocab_size = int(self._model.get_input_embeddings().weight.shape[0])
        self._context: int | None = getattr(config, "max_position_embeddings", None)

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B]. Raises DataError for a text that is empty or too long, or has ids outside the vocabulary."""
        if self._tokenizer is None:
            return self._scores([episode.ids for episode in episodes])
        return self._scores([self._encode(it.prompt, it.response, it.finish_reason) for it in episodes])

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        """float64[1, B]."""
        return self.score(episodes)[None]

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        """float64[B]."""
        return self._scores(self._read(responses))

    @property
    def context(self) -> int | None:
        return self._context

    def lengths(self, responses: Sequence[tuple[Prompt, Response]]) -> list[int]:
        return [len(ids) for ids in self._read(responses)]

    def _read(self, responses: Sequence[tuple[Prompt, Response]]) -> list[Int]:
        if self._tokenizer is None:
            return [response.episode(prompt).ids for prompt, response in responses]
        return [self._encode(prompt, it.text, it.finish_reason) for prompt, it in responses]

    def _encode(self, prompt: Prompt, response: str, finish_reason: str | None) -> Int:
        assert self._tokenizer is not None
        messages = conversation_of(prompt) or (prompt.messages if prompt.rendered else ())
        if messages and self._tokenizer.chat_template:
            return self._encode_conversation(prompt, messages, response, finish_reason)
        text = (
            (prompt.text + response).encode("utf-8", errors="replace").decode("utf-8")
        )  # lone surrogates: as elsewhere
        begin = self._tokenizer.bos_token
        written = prompt.rendered or (begin is not None and text.startswith(begin))  # the template wrote it
        ids = list(self._tokenizer(text, truncation=False, add_special_tokens=not written)["input_ids"])
        if self._ends and finish_reason in _ENDED and ids[-1:] not in [[end] for end in self._ends]:
            ids.append(self._ends[0])
        return np.array(ids, dtype=np.int64)

    def _encode_conversation(
        self, prompt: Prompt, messages: Sequence[JsonView], response: str, finish_reason: str | None
    ) -> Int:
        answered = [*messages, {"role": "assistant", "content": response}]
        try:
            text = render_chat(self._tokenizer, answered, template_options(prompt.meta), asks=False)
        except Exception as error:  # templates refuse conversations with exceptions of their own
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{prompt.id}: the chat template of reward model {self.name} refuses it: {said}") from error
        if finish_reason not in _ENDED and (said := response.strip()) in text:  # what closes an answer was not said
            text = text[: text.rindex(said) + len(said)]
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return np.array(self._tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"], dtype=np.int64)

    @torch.no_grad()
    def _scores(self, texts: Sequence[Int]) -> Float:
        for text in texts:
            self._check(text)
        texts, places = distinct(texts)
        scores = np.empty(len(texts), dtype=np.float64)
        # A model without a padding token cannot tell where a padded text ends: it reads one at a time.
        lengths = [len(text) for text in texts]
        alone = ([i] for i in range(len(texts)))
        for batch in alone if self._pad is None else batches_of_like_length(lengths):
            ids, ends = padded_ids([texts[i] for i in batch], self._pad or 0)
            mask = (torch.arange(ids.shape[1]) < ends[:, None]).long()
            device = self._model.device
            logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            scores[batch] = as_float64(logits[:, 0]).numpy()
        return scores[places]

    def _check(self, text: Int) -> None:
        if not len(text):
            raise DataError("a text without a token cannot be scored")
        if self._context is not None and len(text) > self._context:
            raise DataError(f"a text of {len(text)} tokens exceeds the context of {self._context} of {self.name}")
        if text.min() < 0 or text.max() >= self._vocab_size:
            raise DataError(
                f"a token id is outside the vocabulary of {self._vocab_size} of {self.name}, which has no tokenizer of "
                "its own: save the tokenizer with the model"
            )


def _load(name: str, dtype: torch.dtype) -> HFModel:
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # the library raises exceptions of many kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"reward model {name}: {said}") from error
    if report["missing_keys"]:  # they would be random numbers
        missing = min(report["missing_keys"])
        raise DataError(
            f"reward model {name}: weights are missing, {missing} among them: it is not a sequence classification "
            "model (fit a reward model on a language model with fit_reward_model)"
        )
    if model.config.num_labels != 1:
        raise DataError(f"reward model {name}: it has {model.config.num_labels} labels, and a reward is one number")
    return model.eval().requires_grad_(False)


def _load_tokenizer(name: str) -> HFModel:
    """The model's own tokenizer, or None when its folder has none."""
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not any(
        any(Path(name).glob(pattern)) for pattern in ("tokenizer*", "vocab.*", "*.model")
    ):
        return None
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # as above
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"tokenizer of reward model {name}: {said}") from error
