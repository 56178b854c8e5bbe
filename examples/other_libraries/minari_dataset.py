# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "minari[create,hdf5]==0.5.4"]
# ///
"""Minari records random texts; a network learns from the best of the data set, read back, in the environment it names.

    python examples/other_libraries/run.py minari_dataset

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. Infos are recorded by a callback that
always has the same keys: Minari takes no others, and ours say different things at the beginning and the end of a text.
"""

import os
import tempfile

import gymnasium as gym
import minari
import torch
from minari.data_collector.callbacks import StepDataCallback

import rlhf_env  # noqa: F401  # importing it registers the environments


class WhyItEnded(StepDataCallback):
    """Of the info: why the text ended, and how long it was (0 while it is written)."""

    def __call__(self, env, **transition):
        data = super().__call__(env, **transition)
        info = data["info"]
        data["info"] = {
            "finish_reason": info.get("finish_reason", ""),
            "response_length": info.get("response_length", 0),
        }
        return data


def record(texts: int) -> None:
    """Random texts, as the data set `echo/random-v0`."""
    env = gym.make(
        "rlhf_env/Token-v0",
        task={"name": "echo", "length": 2},
        tokenizer="alphabet:ab=",
        max_new_tokens=3,
        max_prompt_tokens=3,
    )
    recorder = minari.DataCollector(env, step_data_callback=WhyItEnded, record_infos=True)
    recorder.action_space.seed(0)
    for seed in range(texts):  # without a seed, Minari draws one from the system at every reset
        recorder.reset(seed=seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = recorder.step(recorder.action_space.sample())
            ended = terminated or truncated
    recorder.create_dataset(
        "echo/random-v0",
        eval_env=env.spec,
        algorithm_name="random",
        description="Random texts of the task echo",
        author="rlhf-env",
        author_email="nobody@example.org",
        code_permalink="https://example.org",
    )
    recorder.close()


def places(observation: dict, vocabulary: int) -> torch.Tensor:
    """Ids and mask of texts, one-hot: float[N, L * vocabulary]."""
    ids, mask = torch.as_tensor(observation["input_ids"]), torch.as_tensor(observation["attention_mask"])
    return (torch.nn.functional.one_hot(ids, vocabulary) * mask[..., None]).flatten(-2).float()


def mean_return(env: gym.Env, network: torch.nn.Module) -> float:
    """Of 40 greedy texts."""
    total = 0.0
    for seed in range(40):
        observation, ended = env.reset(seed=10_000 + seed)[0], False
        while not ended:
            scores = network(places(observation, int(env.action_space.n)))
            observation, reward, terminated, truncated, _ = env.step(int(scores.argmax()))
            total, ended = total + reward, terminated or truncated
    return total / 40


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    record(texts=1_500)
    dataset = minari.load_dataset("echo/random-v0")
    ends = [episode.infos["finish_reason"][-1] for episode in dataset]
    stopped = ends.count(b"stop")  # HDF5 gives texts back as bytes
    print(f"read back {dataset.total_episodes} texts, {dataset.total_steps} steps; {stopped} have an end token")
    env = dataset.recover_environment(eval_env=True)
    vocabulary, length = int(env.action_space.n), env.observation_space["input_ids"].shape[0]
    network = torch.nn.Sequential(
        torch.nn.Linear(vocabulary * length, 64), torch.nn.Tanh(), torch.nn.Linear(64, vocabulary)
    )
    print(f"before  return {mean_return(env, network):.2f}")
    best = dataset.filter_episodes(lambda episode: episode.rewards.sum() == 1.0)
    seen = torch.cat([places(episode.observations, vocabulary)[:-1] for episode in best])
    taken = torch.cat([torch.as_tensor(episode.actions) for episode in best])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(seen), taken).backward()
        optimizer.step()
    print(f"after   return {mean_return(env, network):.2f}  ({best.total_episodes} texts to learn from)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # else Minari's own folder, ~/.minari
        os.environ["MINARI_DATASETS_PATH"] = folder
        main()
