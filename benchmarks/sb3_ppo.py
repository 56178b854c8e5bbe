"""PPO on the token view, 32 rows x 64 tokens, 4 epochs x 4 minibatches, beside Stable-Baselines3's on the same network.

    python benchmarks/sb3_ppo.py [--tokens 64] [--rounds 1]

Theirs makes each token a sample, and reads the whole text before it for each; ours reads each text once. One of their
turns takes a minute or two. Both write for themselves, so that what is compared is processor time a token; that both
were given the same texts would show nothing, for they draw their minibatches differently.
"""

from __future__ import annotations

import argparse

import side_by_side as bench
import torch
from rlhf_agents.ppo import PPO
from rlhf_agents.sb3 import LanguageModelPolicy, TextVecEnv

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Optimization

ROWS, EPOCHS, MINIBATCHES, AT_LEAST = 32, 4, 4, 30.0


def liked(completion_ids: list[list[int]], **_others: object) -> list[float]:
    """A reward that costs nothing."""
    return [float(sum(ids) % 11) for ids in completion_ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=bench.ANSWER, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each side (default: %(default)s)")
    given = parser.parse_args()
    bench.heading()
    compare(given.tokens, given.rounds)


def compare(tokens: int, rounds: int) -> None:
    import stable_baselines3 as sb3

    policy, other = bench.model("S"), bench.model("S")
    said = [bench.Words(2048).decode(it.prompt_ids.tolist()) for it in bench.texts(2048, ROWS)]
    mix = load_rewards({"liked": liked}, bench.Given(said))

    def environment(mode: str) -> TextVectorEnv:
        return TextVectorEnv(
            ROWS,
            task=bench.Given(said),
            reward=mix,
            tokenizer=bench.Words(2048),
            max_new_tokens=tokens,
            max_prompt_tokens=bench.PROMPT,
            action_length=1,
            autoreset_mode=mode,
        )

    setup = Setup(
        policy=policy,
        reference=policy,
        tokenizer=bench.Words(2048),
        reward=mix,
        batch_size=ROWS,
        action_length=1,
        max_new_tokens=tokens,
        seed=0,
    )
    settings = PPO.Config(epochs=EPOCHS, minibatches=MINIBATCHES, optimization=Optimization(lr=1e-6, beta2=0.999))
    agent, env = PPO(setup, settings), environment("Disabled")
    theirs = sb3.PPO(
        LanguageModelPolicy,
        TextVecEnv(environment("Disabled")),
        policy_kwargs={"language_model": other},
        n_steps=tokens,
        batch_size=ROWS * tokens // MINIBATCHES,
        n_epochs=EPOCHS,
        learning_rate=1e-6,
        device="cpu",
    )
    torch.set_num_threads(1)

    def our_turn() -> float:
        written = collect(env, agent)
        agent.update(written)
        return float(written.actions.sum())

    def their_turn() -> float:
        before = theirs.num_timesteps
        theirs.learn(ROWS * tokens, reset_num_timesteps=False)
        return float(theirs.num_timesteps - before)

    name = f"Stable-Baselines3 PPO, S, {ROWS} x {tokens}, a token a step"
    bench.take_turns(name, our_turn, their_turn, rounds=rounds, at_least=AT_LEAST, warm_up=False)


if __name__ == "__main__":
    main()
