"""Bugs in the agents' own files."""

from __future__ import annotations

from bugs.mutant import Mutant

MUTANTS = (
    Mutant(
        "N12",
        "dropout stays on in PPO's gradient steps",
        "agents/rlhf_agents/ppo.py",
        "        self.policy.eval()  # with dropout",
        "        self.policy.train()  # with dropout",
        "tests/agents/test_ppo.py",
    ),
    Mutant(
        "N34",
        "every micro-batch is normalised by itself (SFT)",
        "rlhf_env/learning/losses/steps.py",
        'weighted_sum(-refined(logprobs), part.extras["weight"])',
        'weighted_sum(-refined(logprobs), token_weights(part.actions, "token-mean"))',
        "tests/agents/test_sft.py",
    ),
    Mutant(
        "N20",
        "k1 in the loss is accepted",
        "agents/rlhf_agents/grpo.py",
        '            if self.kl_in_loss == "k1":\n',
        '            if self.kl_in_loss == "none":\n',
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N32",
        "the KL penalty is paid in the reward and a second time in the loss",
        "agents/rlhf_agents/grpo.py",
        "rollout.returns(without=() if self.config.kl_in_loss is None else self.setup.reward.kl_names)",
        "rollout.returns()",
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N39",
        "prompt tokens are in DPO's sums",
        "agents/rlhf_agents/dpo.py",
        "scores = self.policy.evaluate(part.tokens, part.mask, part.actions)",
        "scores = self.policy.evaluate(part.tokens, part.mask, part.mask & (part.mask.cumsum(1) > 1))",
        "tests/agents/test_dpo.py",
    ),
    Mutant(
        "DEV",
        "what DPO knows of its pairs stays on the processor",
        "agents/rlhf_agents/dpo.py",
        "local(rollout), local(wrong), local(weight), local(margin)",
        "local(rollout), wrong, weight, margin",
        "tests/devices/test_agents.py",
    ),
    Mutant(
        "KTO",
        "the reference point may fall below zero",
        "agents/rlhf_agents/kto.py",
        "        return torch.cat(ratios).mean().clamp(min=0.0)\n",
        "        return torch.cat(ratios).mean()\n",
        "tests/agents/test_kto.py",
    ),
)
