"""The table policy: a softmax in every state, and a `Policy` like any other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Enumerable
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies import Policy, ResponseTree, Sampling, TabularPolicy, ValueHead
from rlhf_env.types import Episode, Observation, Prompt

SYMBOLS, LONGEST, END, PAD = 4, 3, 4, 5


def table(**changes: Any) -> TabularPolicy:
    """Four symbols and the end, with opinions; the prompt is two symbols long."""
    return TabularPolicy(SYMBOLS, LONGEST, **{"prompt": (0, 2), "init_std": 1.5, "seed": 3, **changes})


def ids_of(response: str) -> list[int]:
    ids = ["abcd".index(symbol) for symbol in response]
    return ids if len(ids) == LONGEST else [*ids, END]


def all_episodes() -> list[Episode]:
    return [
        Episode(Prompt("p", "ac"), np.array([0, 2]), text, np.array(ids), "stop", np.ones(len(ids), bool))
        for text, ids in ((text, ids_of(text)) for text in Enumerable().responses)
    ]


def batch(texts: list[list[int]], left: int = 0, right: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompt and response of each row, padded on both sides with nonsense; the response is asked for."""
    width = max(map(len, texts)) + 2
    tokens, mask = torch.full((len(texts), left + width + right), 77), torch.zeros(len(texts), left + width + right)
    for row, text in enumerate(texts):
        tokens[row, left : left + 2 + len(text)], mask[row, left : left + 2 + len(text)] = (
            torch.tensor([0, 2, *text]),
            1,
        )
    where = mask.bool().clone()
    where[:, : left + 2] = False
    return tokens, mask.bool(), where


def observation(texts: list[list[int]], width: int = 5) -> Observation:
    ids, mask = np.full((len(texts), width), PAD), np.zeros((len(texts), width), np.int8)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


class TestTree:
    @pytest.mark.parametrize(("symbols", "longest", "responses"), [(4, 3, 85), (1, 5, 6), (3, 1, 4), (2, 4, 31)])
    def test_numbers_are_those_of_the_task(self, symbols: int, longest: int, responses: int) -> None:
        tree, task = ResponseTree(symbols, longest), Enumerable("abcd"[:symbols], longest)
        assert tree.responses == len(task.responses) == responses
        assert tree.states == sum(len(text) < longest for text in task.responses)
        decode = AlphabetTokenizer(task.symbols).decode
        state, token = tree.choices
        for number, text in enumerate(task.responses):
            said = token[number][tree.mask[number]].tolist()
            assert decode(said) == text
            assert (said[-1] == symbols) == (len(text) < longest)  # at the limit there is no end token
            before = [task.responses[i] for i in state[number][tree.mask[number]].tolist()]
            assert before == [text[:length] for length in range(len(said))]

    @pytest.mark.parametrize(("symbols", "longest"), [(0, 3), (4, 0)])
    def test_nothing_to_write_is_refused(self, symbols: int, longest: int) -> None:
        with pytest.raises(ConfigError, match="symbols and longest >= 1"):
            ResponseTree(symbols, longest)


class TestEvaluate:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
    def test_it_is_the_softmax_of_the_state(self, temperature: float) -> None:
        policy = table(sampling=Sampling(temperature=temperature))
        responses = Enumerable().responses
        rows = [ids_of(text) for text in responses]
        answer = policy.evaluate(*batch(rows))
        logits = policy.logits.detach().numpy() / temperature
        for row, (text, ids) in enumerate(zip(responses, rows, strict=True)):
            for place, token in enumerate(ids):
                weights = np.exp(logits[responses.index(text[:place])])
                p = weights / weights.sum()
                assert abs(answer.logprobs[row, 2 + place].item() - np.log(p[token])) <= 1e-12
                assert abs(answer.entropy[row, 2 + place].item() + p @ np.log(p)) <= 1e-12
        assert abs(answer.logprobs.sum(1).exp().sum().item() - 1.0) <= 1e-12  # 85 responses and nothing else
        assert not answer.logprobs[:, :2].any() and not answer.entropy[:, :2].any()

    def test_padding_has_probability_zero(self) -> None:
        chances = [table().evaluate(*batch([[1, token]])).logprobs[0, 3].exp().item() for token in range(6)]
        assert chances[PAD] == 0.0
        assert abs(sum(chances) - 1.0) <= 1e-12

    @pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 4), (2, 1)])
    def test_padding_around_a_text_changes_nothing(self, left: int, right: int) -> None:
        rows = [ids_of(text) for text in ("", "d", "ba", "cab")]
        plain, padded = table().evaluate(*batch(rows)), table().evaluate(*batch(rows, left, right))
        for one, other in zip(plain, padded, strict=True):
            assert torch.equal(one, other[:, left : left + 5])
            assert not other[:, :left].any()
        assert not padded.hidden[:, left + 6 :].any()

    def test_hidden_is_the_state(self) -> None:
        """Also at the first padding place; where nothing is left to choose, it is none."""
        texts = [[], [2], [2, 1], [2, 1, 0], [END]]
        tokens, mask, where = batch(texts, right=2)
        hidden = table().evaluate(tokens, mask, torch.zeros_like(where)).hidden
        assert hidden.shape == (5, 7, 21) and hidden.dtype == torch.float64
        responses = Enumerable().responses
        told = {"": responses.index(""), "c": responses.index("c"), "cb": responses.index("cb")}
        expected = torch.zeros(5, 7, 21, dtype=torch.float64)
        for row, prefixes in enumerate([[""], ["", "c"], ["", "c", "cb"], ["", "c", "cb"], [""]]):
            for place, prefix in enumerate(prefixes):
                expected[row, 2 + place, told[prefix]] = 1.0
        assert torch.equal(hidden, expected)

    def test_a_value_head_is_a_table_of_values(self) -> None:
        policy = table()
        head = ValueHead(policy.hidden_size, dtype=torch.float64)
        with torch.no_grad():
            head.weight.copy_(torch.arange(21.0))
        tokens, mask, where = batch([ids_of("ba")])
        assert head(policy.evaluate(tokens, mask, where).hidden)[0, 2:].tolist() == [0.0, 2.0, 9.0]  # "", "b", "ba"

    def test_gradient_only_where_asked(self) -> None:
        policy = table()
        tokens, mask, where = batch([ids_of("ba"), ids_of("")])
        where[0, 2] = where[0, 4] = where[1, 2] = False
        policy.evaluate(tokens, mask, where).logprobs.sum().backward()
        assert policy.logits.grad is not None
        assert policy.logits.grad.any(1).nonzero().flatten().tolist() == [2]  # the state "b"

    def test_what_no_state_chooses_is_refused(self) -> None:
        for text, place in (([END, 1], 3), ([1, 2, 3, END], 5), ([1, PAD, 1], 4), ([1], 1)):
            tokens, mask, where = batch([text])
            where[:] = torch.arange(where.shape[1]) == place
            with pytest.raises(ConfigError, match="this table never draws"):
                table().evaluate(tokens, mask, where)
        tokens, mask, where = batch([[1], [1, 2]])
        with pytest.raises(ConfigError, match="outside the text"):
            table().evaluate(tokens, mask, where | True)

    def test_another_prompt_is_refused(self) -> None:
        tokens, mask, where = batch([[1], [1]])
        tokens[1, 1] = 3
        with pytest.raises(DataError, match=r"row 1: this table answers the prompt \[0, 2\]"):
            table().evaluate(tokens, mask, where)


class TestWrite:
    @pytest.mark.parametrize("temperature", [0.7, 1.0, 1.7])
    def test_stated_logprobs_are_those_of_what_was_written(self, temperature: float) -> None:
        policy = table(sampling=Sampling(temperature=temperature))
        written = policy.write(observation([[0, 2]] * 50), LONGEST)
        rows = [row[row < policy.vocab_size].tolist() for row in written.tokens]
        answer = policy.evaluate(*batch(rows)).logprobs[:, 2:]
        np.testing.assert_allclose(written.logprobs[:, : answer.shape[1]], answer.tolist(), rtol=0, atol=1e-12)
        for row in rows:
            assert (row[-1] == END) == (len(row) < LONGEST or END in row) and END not in row[:-1] and PAD not in row

    def test_responses_are_drawn_as_often_as_they_should(self) -> None:
        """Chi-square over all 85 (mean 84, standard deviation 13)."""
        policy, count = table(init_std=0.5), 20_000
        written = policy.write(observation([[0, 2]] * count), LONGEST)
        texts = [AlphabetTokenizer("abcd").decode(row.tolist()) for row in written.tokens]
        expected = count * np.exp([row.sum() for row in policy.response_logprobs(all_episodes())])
        seen = np.array([texts.count(text) for text in Enumerable().responses])
        assert ((seen - expected) ** 2 / expected).sum() < 84 + 4 * 13

    @pytest.mark.parametrize("step", [1, 2])
    def test_token_by_token_equals_a_whole_response(self, step: int) -> None:
        policy = table()
        policy.reseed(0)
        whole = policy.write(observation([[0, 2]] * 40), 4)
        policy.reseed(0)
        texts: list[list[int]] = [[0, 2]] * 40
        pieces = []
        for _ in range(4 // step):
            pieces.append(policy.write(observation(texts, 7), step))
            texts = [text + row[row < 6].tolist() for text, row in zip(texts, pieces[-1].tokens, strict=True)]
        np.testing.assert_array_equal(np.hstack([piece.tokens for piece in pieces]), whole.tokens)
        np.testing.assert_array_equal(np.hstack([piece.logprobs for piece in pieces]), whole.logprobs)
        assert (whole.tokens[:, 3] == 6).all()  # beyond the longest response nothing is written

    def test_rows_not_asked_and_finished_rows_are_given_nothing(self) -> None:
        texts = observation([[0, 2], [0, 2], [0, 2, END], [0, 2, 1, 1, 1]])
        written = table().write({**texts, "writing": np.array([True, False, True, True])}, 2)
        assert (written.tokens[0] < 6).any()
        assert (written.tokens[1:] == 6).all() and not written.logprobs[1:].any()

    def test_batch_mates_change_nothing(self) -> None:
        together = table().write(observation([[0, 2]] * 6), LONGEST)
        alone = table().write(observation([[0, 2]] * 6), LONGEST, np.arange(6) == 4)
        np.testing.assert_array_equal(alone.tokens[4], together.tokens[4])
        assert (alone.tokens[:4] == 6).all()

    def test_greedy_text(self) -> None:
        policy = table(sampling=Sampling(top_k=1))
        assert len(np.unique(policy.write(observation([[0, 2]] * 9), LONGEST).tokens, axis=0)) == 1

    def test_bad_observations(self) -> None:
        wrong = observation([[0, 2]])
        wrong["attention_mask"][0, 0] = 0
        with pytest.raises(ConfigError, match="padded on the right"):
            table().write(wrong, 1)
        with pytest.raises(DataError, match="answers the prompt"):
            table().write(observation([[1, 2]]), 1)

    def test_global_generators_stay_as_they_were(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - it is what is tested
        table().write(observation([[0, 2]] * 5), 3)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_response_logprobs() -> None:
    policy: Policy = table()
    episodes = all_episodes()
    partly = Episode(
        Prompt("p", ""), np.array([0, 2]), "b", np.array([1, END]), "stop", np.array([True, False])
    )  # the environment ended it
    answers = policy.response_logprobs([*episodes, partly])
    assert [len(answer) for answer in answers] == [len(ids_of(text)) for text in Enumerable().responses] + [2]
    assert abs(sum(np.exp(answer.sum()) for answer in answers[:-1]) - 1.0) <= 1e-12
    assert answers[-1].tolist() == [answers[2][0], 0.0]
    assert policy.response_logprobs([]) == []


def test_state_and_stream_survive_json() -> None:
    policy, other = table(), table(seed=8)
    policy.write(observation([[0, 2]]), 2)
    other.load_state_dict({name: value.clone() for name, value in policy.state_dict().items()})
    other.load_sampling_state(json.loads(json.dumps(policy.sampling_state())))
    texts = observation([[0, 2]] * 9)
    np.testing.assert_array_equal(policy.write(texts, 3).tokens, other.write(texts, 3).tokens)
    policy.reseed(1)
    first = policy.write(texts, 3).tokens
    policy.reseed(1)
    np.testing.assert_array_equal(policy.write(texts, 3).tokens, first)


def test_a_frozen_copy_is_independent() -> None:
    policy = table()
    frozen = policy.frozen_copy()
    before = frozen.response_logprobs(all_episodes())
    with torch.no_grad():
        policy.logits.zero_()
    assert all(map(np.array_equal, before, frozen.response_logprobs(all_episodes())))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_construction() -> None:
    policy = table()
    assert (policy.vocab_size, policy.end_id, policy.pad_id, policy.hidden_size) == (6, END, PAD, 21)
    assert torch.equal(policy.logits, table().logits) and not torch.equal(policy.logits, table(seed=4).logits)
    single = table(dtype=torch.float32)
    assert single.dtype == single.evaluate(*batch([[1, END]])).logprobs.dtype == torch.float32
    for prompt in ((), (4,)):
        with pytest.raises(ConfigError, match=r"prompt: one or more of the symbols 0\.\.3"):
            table(prompt=prompt)
