"""Hidden states by prefix tree, every distinct prefix once: the same states and gradients as the model's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_env.policies import LanguageModel, tiny_language_model, trunk
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.anatomy.rotary import rotary_table
from rlhf_env.policies.tiny import Family
from rlhf_env.policies.trunk import hidden_states, prefix_tree
from tests.policies.conftest import FAMILIES


def group_texts(vocab_size: int = 19, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Uneven texts [9, 17]: two prompts with several answers, one answer twice, one that is the start of another."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, vocab_size, 6), rng.integers(0, vocab_size, 3)
    rows = [np.append(first, rng.integers(0, vocab_size, n)) for n in (11, 4, 7)]
    rows += [np.append(second, rng.integers(0, vocab_size, n)) for n in (2, 9)]
    rows += [rows[1], rows[2][:9], rng.integers(0, vocab_size, 1), rng.integers(0, vocab_size, 14)]
    tokens = torch.zeros(len(rows), 17, dtype=torch.int64)
    mask = torch.zeros(len(rows), 17, dtype=torch.bool)
    for row, text in enumerate(rows):
        tokens[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), True
    return tokens, mask


class TestPrefixTree:
    def test_two_tokens_share_a_node_if_their_texts_are_equal_so_far(self) -> None:
        tokens, mask = group_texts()
        tree = prefix_tree(tokens, mask)
        beginnings = {
            (row, column): tuple(tokens[row, : column + 1].tolist()) for row, column in mask.nonzero().tolist()
        }
        node_of: dict[tuple[int, ...], int] = {}
        for (row, column), beginning in beginnings.items():
            node = int(tree.nodes[row, column])
            assert node_of.setdefault(beginning, node) == node
            assert (int(tree.tokens[node]), int(tree.positions[node])) == (beginning[-1], column)
        assert sorted(node_of.values()) == list(range(len(tree.tokens)))  # none twice, none unused

    def test_every_node_is_a_query_once(self) -> None:
        tree = prefix_tree(*group_texts())
        assert sum(bucket.count for bucket in tree.buckets) == len(tree.tokens)
        assert [bucket.start for bucket in tree.buckets] == np.cumsum([0] + [b.count for b in tree.buckets])[
            :-1
        ].tolist()

    def test_the_example_of_the_header(self) -> None:
        a, b, c, d, e, f, g = range(7)
        rows = [[a, b, c, d], [a, b, c, e, f], [a, b, g]]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
        tree = prefix_tree(tokens, torch.arange(5) < lengths[:, None])
        assert tree.nodes.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 4, 5], [0, 1, 6, 0, 0]]
        assert tree.tokens.tolist() == [a, b, c, d, e, f, g]
        assert [(b.start, b.count, b.key_nodes.tolist()) for b in tree.buckets] == [
            (0, 4, [0, 1, 2, 3]),
            (4, 2, [0, 1, 2, 4, 5]),
            (6, 1, [0, 1, 6]),
        ]

    def test_a_prompt_with_four_answers_is_there_once(self) -> None:
        tokens = torch.arange(32).reshape(4, 8)
        tokens[:, :5] = tokens[0, :5]
        tree = prefix_tree(tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert len(tree.tokens) == 5 + 4 * 3
        assert [(bucket.rows, bucket.count, bucket.query_nodes) for bucket in tree.buckets] == [
            (1, 8, None),
            (3, 9, None),
        ]


def scores_of(policy: LanguageModel) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probabilities and entropies, states, and the gradient of all of them."""
    tokens, mask = group_texts()
    answer = policy.evaluate(tokens, mask, mask & (torch.arange(17) > 2))
    numbers = torch.stack([answer.logprobs, answer.entropy])
    weights = torch.linspace(-1, 1, answer.hidden.numel(), dtype=numbers.dtype).view_as(answer.hidden)
    loss = (numbers * numbers.detach().sin()).sum() + (answer.hidden * weights).sum()
    return numbers.detach(), answer.hidden.detach(), list(torch.autograd.grad(loss, list(policy.parameters())))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_models_own_code(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of RMS norms pass through float32 in the library's modules, whatever the precision."""
    monkeypatch.setattr(trunk, "BUCKET_FILL", 0.8)  # many buckets
    changes = {"vocab_size": 19, "window": 5, "key_value_heads": None if family == "gpt2" else 2, "init_std": 0.5}
    ours, theirs = (scores_of(tiny_language_model(family, fused=fused, **changes)) for fused in (True, False))
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    tolerance = 1e-10 if family == "gpt2" else 1e-5
    for one, other in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def test_the_same_in_float32() -> None:
    """Its own norms instead of the modules'."""
    for family in ("llama", "gemma3"):
        changes = {"vocab_size": 19, "init_std": 0.1, "dtype": torch.float32}
        ours, theirs = (scores_of(tiny_language_model(family, fused=fused, **changes)) for fused in (True, False))
        torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
        for one, other in zip(ours[2], theirs[2], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_gradients_of_its_own_operations() -> None:
    stream = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(3, 2, 8, dtype=torch.float64, generator=stream, requires_grad=True) for _ in range(3))
    weight = torch.randn(8, dtype=torch.float64, generator=stream, requires_grad=True)
    angle = torch.randn(3, 2, dtype=torch.float64, generator=stream)
    assert torch.autograd.gradcheck(lambda *those: trunk._RMSNorm.apply(*those, 1e-3), (x, weight))
    for interleaved in (False, True):
        angles = angle.repeat_interleave(2, -1) if interleaved else torch.cat([angle, angle], -1)
        for head_size in (8, 4):  # of eight elements four are rotated
            table = rotary_table(angles.cos(), angles.sin(), head_size, interleaved=interleaved)
            assert torch.autograd.gradcheck(lambda x, table=table: trunk._Rotary.apply(x, table), (x[..., :head_size],))
    assert torch.autograd.gradcheck(trunk._SwiGLU.apply, (y, z))
    norm = torch.nn.RMSNorm(8, eps=1e-3, dtype=torch.float64)
    torch.testing.assert_close(trunk._RMSNorm.apply(x, norm.weight, 1e-3), norm(x), rtol=0, atol=1e-14)


def test_with_dropout_the_models_own_code_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, equal prefixes have different states: the model's own code reads them."""
    reads: list[int] = []
    monkeypatch.setattr(
        "rlhf_env.policies.language_model.hidden_states",
        lambda *inputs, **settings: reads.append(1) or hidden_states(*inputs, **settings),
    )
    for dropout, training, expected in ((0.1, True, 0), (0.1, False, 1), (0.0, True, 1)):
        for family in ("llama", "gpt2"):
            policy = tiny_language_model(family, vocab_size=19, dropout=dropout).train(training)
            reads.clear()  # those of the check at load
            scores_of(policy)
            assert len(reads) == expected


def test_keys_and_values_are_those_of_the_cache() -> None:
    from transformers.cache_utils import DynamicCache

    policy = tiny_language_model("qwen3", vocab_size=19, init_std=0.5)
    tokens, mask = group_texts()
    anatomy = anatomy_of(policy.model)
    assert anatomy is not None
    tree = prefix_tree(tokens, mask)
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        hidden_states(anatomy, tree, take=lambda number, *states: kept.insert(number, states))
        cache = DynamicCache()
        policy.model(input_ids=tokens, past_key_values=cache)
    for layer, (keys, values) in zip(cache.layers, kept, strict=True):
        for ours, theirs in ((keys, layer.keys), (values, layer.values)):
            difference = ours[tree.nodes].transpose(1, 2) - theirs
            assert float((difference * mask[:, None, :, None]).abs().max()) < 1e-10
