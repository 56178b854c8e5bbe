"""The whole loop by hand: reset, act, step, update. No agent, no `collect`, no `train`; nothing is hidden.

    python examples/loop_by_hand.py

A small random language model learns to say its prompt back ("ab=" asks for "ab") by REINFORCE: eight responses to one
prompt are each other's baseline, and what was better than their mean becomes likelier. Whatever else an agent does
(clipping, values, KL) refines the six lines of the update.
"""

import torch

from rlhf_env import Rollout, TextVectorEnv, finished, tiny_language_model

GROUP, UPDATES = 8, 100

torch.set_num_threads(1)  # such a small model gains nothing from more
env = TextVectorEnv(
    num_envs=64,
    task={"name": "echo", "length": 2},
    tokenizer="alphabet:ab=",
    max_new_tokens=4,
    max_prompt_tokens=4,
    autoreset_mode="Disabled",
)
words = env.tokenizer
policy = tiny_language_model(
    vocab_size=words.vocab_size, end_id=words.end_id, pad_id=words.pad_id, dtype=torch.float32, init_std=0.1
)
optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)

for update in range(1, UPDATES + 1):
    # Reset: 64 texts begin. Eight neighbours share a prompt.
    observation, _ = env.reset(seed=update, options={"group_size": GROUP})

    # Act and step, one token at a time, until every text has ended.
    ended = {}
    while len(ended) < env.num_envs:
        tokens = policy.write({**observation, "writing": env.writing}, 1).tokens[:, 0]
        observation, _, _, _, infos = env.step(tokens)
        ended |= {row: (episode, score) for row, episode, score in finished(infos)}

    # Update: make likelier what was better than the mean of its group.
    episodes, scores = zip(*(ended[row] for row in range(env.num_envs)), strict=True)
    rollout = Rollout.from_episodes(episodes, scores, pad_id=words.pad_id, group_size=GROUP)
    rewards = rollout.returns().reshape(-1, GROUP)
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
    seen = policy.evaluate(rollout.tokens, rollout.mask, rollout.actions)
    gained = (advantages[:, None] * seen.logprobs + 0.03 * seen.entropy).sum()  # entropy: keep trying others
    optimizer.zero_grad()
    (-gained / len(rollout)).backward()
    optimizer.step()

    if update == 1 or update % 10 == 0:
        said = "  ".join(f"{e.prompt.text}{e.response:4}" for e in episodes[:: 2 * GROUP])
        print(f"update {update:3}  reward {rewards.mean():.2f} {'█' * round(20 * float(rewards.mean())):20}  {said}")
