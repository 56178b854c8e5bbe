"""Scoring without a batch's logits: the same numbers and gradients as autograd through all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_env.policies import LanguageModel, Sampling, lm_head, tiny_language_model
from rlhf_env.policies.lm_head import LinearHead, linear_head, score_logits

EXACT = 1e-12
PLACES, WORDS, WIDTH = 11, 7, 5


def parts(bias: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """States, weight, bias in float64, and the target tokens."""
    generator = torch.Generator().manual_seed(0)
    states, weight, offset = (
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape in ((PLACES, WIDTH), (WORDS, WIDTH), (WORDS,))
    )
    return states, weight, offset if bias else None, torch.randint(WORDS, (PLACES,), generator=generator)


def small(family: str, temperature: float = 1.0, **settings: Any) -> LanguageModel:
    """One layer in float64, by the model's own code: the trunk's norms would round otherwise."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"vocab_size": 50, "initializer_range": 0.5, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(family, **shape, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    return LanguageModel(model, end_id=1, sampling=Sampling(temperature=temperature), fused=False)


@pytest.fixture(params=[(2**22, 2**24), (3 * WORDS, 0), (3 * WORDS, 4 * WORDS), (1, 2**24)])
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once and kept; in threes and nothing kept; some kept and others made again; one place at a time."""
    monkeypatch.setattr(lm_head, "_LOGITS_AT_ONCE", request.param[0])
    monkeypatch.setattr(lm_head, "LOGITS_KEPT", request.param[1])


KINDS = [(True, None, 1.0, 1.0), (False, None, 1.7, 0.25), (True, 2.0, 1.0, 3.0), (False, 2.0, 0.6, 1.0)]


@pytest.mark.usefixtures("limits")
class TestScore:
    @pytest.mark.parametrize(("bias", "soft_cap", "temperature", "scale"), KINDS)
    @pytest.mark.parametrize("asked", ["log-probability", "entropy", "both"])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_against_autograd_over_all_logits(
        self, bias: bool, soft_cap: float | None, temperature: float, scale: float, asked: str, frozen: bool
    ) -> None:
        """`frozen`: below adapters, the head does not learn."""
        states, weight, offset, targets = parts(bias)
        if frozen:
            weight, offset = weight.detach(), None if offset is None else offset.detach()
        inputs = [tensor for tensor in (states, weight, offset) if tensor is not None and tensor.requires_grad]
        logits = scale * (states @ weight.T + (0.0 if offset is None else offset))
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        distribution = torch.distributions.Categorical(logits=logits / temperature)
        expected = distribution.log_prob(targets), distribution.entropy()
        answer = LinearHead(weight, offset, soft_cap, scale).score(states, targets, temperature)
        for ours, theirs in zip(answer, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)

        weights = torch.linspace(-1.0, 2.0, PLACES, dtype=torch.float64)
        sides = {"log-probability": (0,), "entropy": (1,), "both": (0, 1)}[asked]
        for ours, theirs in zip(
            torch.autograd.grad(sum((weights ** (1 + i) * answer[i]).sum() for i in sides), inputs),
            torch.autograd.grad(sum((weights ** (1 + i) * expected[i]).sum() for i in sides), inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)

    @pytest.mark.parametrize(("bias", "soft_cap", "temperature", "scale"), KINDS)
    def test_gradcheck(self, bias: bool, soft_cap: float | None, temperature: float, scale: float) -> None:
        states, weight, offset, targets = parts(bias)

        def score(states: Tensor, weight: Tensor, *offset: Tensor) -> tuple[Tensor, Tensor]:
            return LinearHead(weight, *(offset or (None,)), soft_cap, scale).score(states, targets, temperature)

        inputs = tuple(tensor for tensor in (states, weight, offset) if tensor is not None)
        assert torch.autograd.gradcheck(score, inputs, atol=1e-8)

    @pytest.mark.parametrize(("bias", "soft_cap", "temperature", "scale"), KINDS)
    @pytest.mark.parametrize("asked", ["log-probability", "entropy", "both"])
    def test_of_a_head_that_does_not_train(
        self, bias: bool, soft_cap: float | None, temperature: float, scale: float, asked: str
    ) -> None:
        """Below adapters: the gradient of the states is the same, whichever way it is computed."""
        states, weight, offset, targets = parts(bias)
        frozen = weight.detach(), None if offset is None else offset.detach()
        weights = torch.linspace(-1.0, 2.0, PLACES, dtype=torch.float64)
        sides = {"log-probability": (0,), "entropy": (1,), "both": (0, 1)}[asked]
        gradients = []
        for head in (LinearHead(weight, offset, soft_cap, scale), LinearHead(*frozen, soft_cap, scale)):
            answer = head.score(states, targets, temperature)
            gradients += torch.autograd.grad(sum((weights ** (1 + i) * answer[i]).sum() for i in sides), states)
        torch.testing.assert_close(*gradients, rtol=0, atol=EXACT)

    def test_a_certain_token_has_entropy_and_gradient_zero(self) -> None:
        states, weight, offset, _ = parts(scale=1e4)
        targets = (states @ weight.T + offset).argmax(-1)
        logprobs, entropy = LinearHead(weight, offset, None).score(states, targets, 1.0)
        assert not logprobs.any() and not entropy.any()
        (logprobs.sum() + entropy.sum()).backward()
        assert not states.grad.any() and not weight.grad.any()

    @pytest.mark.parametrize("asked", ["log-probability", "entropy"])
    def test_words_that_never_come_count_for_nothing(self, asked: str) -> None:
        """A bias of -inf, as people suppress tokens: the numbers are those of a head without these words."""
        states, weight, offset, targets = parts()
        never = torch.tensor([0, 1, 2])  # in threes: a whole block
        targets = targets.clamp(min=3)
        ruled_out = offset.detach().index_fill(0, never, -torch.inf).requires_grad_()  # type: ignore[union-attr]
        which = ["log-probability", "entropy"].index(asked)
        found = LinearHead(weight, ruled_out, None).score(states, targets, 1.0)[which]
        fewer = LinearHead(weight[3:], offset[3:], None).score(states, targets - 3, 1.0)[which]  # type: ignore[index]
        torch.testing.assert_close(found, fewer, rtol=0, atol=EXACT)
        logits = states @ weight.T + ruled_out
        torch.testing.assert_close(found, score_logits(logits, targets, 1.0)[which], rtol=0, atol=EXACT)
        gradients = torch.autograd.grad(found.sum(), [states, weight], retain_graph=True)
        expected = torch.autograd.grad(fewer.sum(), [states, weight])
        torch.testing.assert_close(gradients, expected, rtol=0, atol=EXACT)

    def test_without_any_token_the_gradient_is_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And not whatever is in memory: a micro-batch may hold nothing but prompts."""
        monkeypatch.setattr(torch, "empty_like", lambda like, **_: torch.full_like(like, torch.nan))
        states, weight, offset, targets = parts()
        logprobs, _ = LinearHead(weight, offset, None).score(states[:0], targets[:0], 1.0)
        for gradient in torch.autograd.grad(logprobs.sum(), [weight, offset]):  # type: ignore[list-item]
            assert not gradient.any()

    def test_gradient_only_for_what_learns_and_twice_the_same(self) -> None:
        states, weight, offset, targets = parts()
        weight.requires_grad_(False)
        logprobs, _ = LinearHead(weight, offset, None).score(states, targets, 1.0)
        first = torch.autograd.grad(logprobs.sum(), (states, offset), retain_graph=True)
        for one, other in zip(first, torch.autograd.grad(logprobs.sum(), (states, offset)), strict=True):
            assert torch.equal(one, other)
        assert weight.grad is None


class Largest(TorchDispatchMode):
    """The most numbers in one tensor that anything makes inside."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return answer


def texts() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(50, (6, 12), generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(6, 12, dtype=torch.bool)
    return tokens, everywhere, everywhere.cumsum(1) > 4


def through_its_own_head(policy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor]]:
    """What `evaluate` says when the model's own code makes the logits, and the gradient of all it says."""
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_env.policies.language_model.linear_head", lambda _model: None)
        return with_gradient(policy)


def with_gradient(policy: LanguageModel) -> tuple[Tensor, list[Tensor]]:
    answer = policy.evaluate(*texts())
    said = torch.stack([answer.logprobs, answer.entropy])
    learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return said.detach(), list(torch.autograd.grad((said * said.detach()).sum() + answer.hidden.sum(), learning))


def assert_same(some: tuple[Tensor, list[Tensor]], others: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(some[0], others[0], rtol=0, atol=1e-10)
    for one, other in zip(some[1], others[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, float(other.abs().max())))


class TestPolicies:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2", "gemma3"])
    @pytest.mark.parametrize("chunk", [2**22, 150])
    def test_like_the_models_own_head(self, family: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPT-2 and Gemma tie the head to the embeddings; Gemma 2 caps its logits, at 30."""
        monkeypatch.setattr(lm_head, "_LOGITS_AT_ONCE", chunk)
        policy = tiny_language_model(
            family,
            vocab_size=50,
            hidden_size=16,
            heads=2,
            init_std=1.0,
            sampling=Sampling(temperature=1.3),
            fused=False,  # the trunk's float32 norms would round otherwise on the other way
        )
        assert policy._linear_head() is not None
        assert (linear_head(policy.model).soft_cap is not None) == (family == "gemma2")
        assert_same(with_gradient(policy), through_its_own_head(policy, monkeypatch))

    def test_no_batch_of_logits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """48 places and 2,000 words: 96,000 logits, of which there are never more than the limits say."""
        policy = tiny_language_model(vocab_size=2000, hidden_size=16, heads=2)
        monkeypatch.setattr(lm_head, "_LOGITS_AT_ONCE", 10_000)
        monkeypatch.setattr(lm_head, "LOGITS_KEPT", 20_000)
        with Largest() as own:
            through_its_own_head(policy, monkeypatch)
        with Largest() as ours:
            with_gradient(policy)
        assert own.numbers == 96_000 and ours.numbers == policy.model.lm_head.weight.numel() == 32_000

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize(("family", "setting"), [("granite", "logits_scaling"), ("cohere", "logit_scale")])
    def test_logits_that_are_scaled(
        self, family: str, setting: str, temperature: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = small(family, temperature, **{setting: 4.0})
        head = policy._linear_head()
        assert head is not None and head.scale == {"logits_scaling": 0.25, "logit_scale": 4.0}[setting]
        assert_same(with_gradient(policy), through_its_own_head(policy, monkeypatch))
        monkeypatch.setattr(lm_head, "LOGITS_KEPT", 0)
        assert_same(with_gradient(policy), through_its_own_head(policy, monkeypatch))

    @pytest.mark.parametrize("setting", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
    def test_logits_that_are_not_what_the_configuration_says(
        self, setting: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Llama takes no notice of settings of other families: neither does its head, nor what it writes."""
        policy, plain = small("llama", **{setting: 4.0}), small("llama")
        assert linear_head(policy.model) is not None and policy._linear_head() is None
        assert_same(with_gradient(policy), through_its_own_head(policy, monkeypatch))
        asked = {"input_ids": np.full((2, 3), 7), "attention_mask": np.ones((2, 3), bool)}
        np.testing.assert_array_equal(policy.write(asked, 6).logprobs, plain.write(asked, 6).logprobs)

    def test_an_adapter_on_the_head_learns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It adds nothing at first, so that only its type tells it from a plain head."""

        class Adapted(nn.Linear):
            def forward(self, states: Tensor) -> Tensor:
                return super().forward(states) + states @ self.down @ self.up

        policy = tiny_language_model(vocab_size=50, hidden_size=16, heads=2)
        head = policy.model.lm_head
        assert policy._linear_head() is not None
        adapted = Adapted(16, 50, bias=False).double()
        adapted.weight = head.weight
        adapted.down = nn.Parameter(torch.ones(16, 2, dtype=torch.float64))
        adapted.up = nn.Parameter(torch.zeros(2, 50, dtype=torch.float64))
        policy.model.lm_head = adapted
        policy.evaluate(*texts()).logprobs.sum().backward()
        assert adapted.up.grad.abs().max() > 0

    def test_a_hook_on_the_head_is_heard(self) -> None:
        policy = tiny_language_model(vocab_size=50, hidden_size=16, heads=2, init_std=0.5)
        before = policy.evaluate(*texts()).logprobs
        policy.model.lm_head.register_forward_hook(lambda _module, _inputs, output: 2.0 * output)
        assert (policy.evaluate(*texts()).logprobs - before).abs().max() > 0.1

    def test_new_weights_are_the_ones_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = tiny_language_model(vocab_size=50, hidden_size=16, heads=2)
        policy.evaluate(*texts())
        policy.model.lm_head.weight = nn.Parameter(policy.model.lm_head.weight.detach() + torch.eye(50, 16))
        assert_same(with_gradient(policy), through_its_own_head(policy, monkeypatch))


@pytest.mark.parametrize("counts", [False, True], ids=["listed", "counted"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_to_try_the_head_one_layer_is_enough(family: Any, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others read all their weights; and they are there again. A family may count on all of them."""
    policy = tiny_language_model(family, vocab_size=30, init_std=0.3)
    trunk = policy.model.base_model
    layers = trunk.h if family == "gpt2" else trunk.layers
    read: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: read.append(number))
    if counts:
        forward = type(trunk).forward

        def counting(self: Any, *args: Any, **inputs: Any) -> Any:
            assert len(self.h if family == "gpt2" else self.layers) == len(layers)
            return forward(self, *args, **inputs)

        monkeypatch.setattr(type(trunk), "forward", counting)
    head = linear_head(policy.model)
    assert head is not None and lm_head.gives_the_logits(head, policy.model)
    assert read == (list(range(len(layers))) if counts else [0]) and len(layers) > 1
    assert (trunk.h if family == "gpt2" else trunk.layers) is layers
