"""llama.cpp's own server writes for evaluations and best-of-n: `[policy] writer = "server"` against a server of others.

    make server-writer       # compiles llama.cpp (ten minutes) unless it is there, and runs this
    python tests/engines/llama_cpp_writes.py FOLDER_OF_SMOLLM2 FOLDER_OF_LLAMA_CPP [smollm2-q8_0.gguf]

The server and the run have SmolLM2-135M-Instruct in float32: so the log-probabilities that are stated are the server's
own, and greedy texts the run's own. (In 8 bits the server is another writer: it rounds activations as well, by which
the likeliest first word of an answer changes here and there.) Ends with `N of N hold`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "judge"))
from llama_cpp import wait_for

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.policies.low_precision import writing_exactly

QUESTIONS = ["What is the capital of France?", "Name a yellow fruit.", "What is two plus two?", "Say hello."]
TEXTS = 32  # by which the likelihood of what each side writes is compared
held: list[bool] = []


def holds(what: str, true: bool, seen: object = "") -> None:
    held.append(bool(true))
    print(f"{'holds' if true else 'FAILS'}  {what}  {seen}", flush=True)


def experiment(folder: Path, model: Path, url: str, agent: dict[str, object]) -> dict[str, object]:
    asked = [{"messages": [{"role": "user", "content": it}]} for it in QUESTIONS]  # in the model's own template
    (folder / "questions.jsonl").write_text("".join(json.dumps(it) + "\n" for it in asked))
    return {
        "task": {"name": "file", "path": str(folder / "questions.jsonl")},
        "policy": {"model": str(model), "writer": "server", "server": {"url": url, "model": "smollm2"}},
        "environment": {"num_envs": 4, "max_new_tokens": 24, "max_prompt_tokens": 64},
        "rewards": {"length": {"target": 16}},
        "agent": agent,
        "evaluation": {"prompts": 4},
    }


def measure(folder: Path, model: Path, url: str) -> None:
    one = rlhf_env.run(experiment(folder, model, url, {"name": "reference"}))
    best = rlhf_env.run(experiment(folder, model, url, {"name": "best_of_n", "n": 16}))
    for sample in best.evaluation.samples:
        print("      ", json.dumps(sample["response"])[:100])
    objectives = [run.evaluation.metrics["objective"] for run in (one, best)]
    holds("the best of 16 earn more than one", objectives[1] > objectives[0], np.round(objectives, 3).tolist())
    again = rlhf_env.run(experiment(folder, model, url, {"name": "best_of_n", "n": 16}))
    print("       the same again:", again.evaluation.metrics["objective"] == objectives[1])
    greedy = {
        **experiment(folder, model, url, {"name": "reference"}),
        "evaluation": {"prompts": 4, "decoding": {"top_k": 1}},
    }
    theirs = rlhf_env.run(greedy)
    greedy["policy"] = {"model": str(model)}
    ours = rlhf_env.run(greedy)
    texts = [[sample["response"] for sample in run.evaluation.samples] for run in (theirs, ours)]
    same = [len(a) > 0 and a == b for a, b in zip(*texts, strict=True)]
    holds("greedily, the texts are those of the run's own model", sum(same) >= 3, texts)
    means = []
    for served in (True, False):
        table = experiment(folder, model, url, {"name": "reference"})
        table["environment"] = {**table["environment"], "num_envs": TEXTS}  # type: ignore[dict-item]
        if not served:
            table["policy"] = {"model": str(model)}
        workplace = rlhf_env.build(rlhf_env.Experiment.from_table(table))
        with writing_exactly(workplace.setup.policy):
            rollout = workplace.source.next(workplace.agent)
        means.append(float(rollout.logprobs.sum() / rollout.actions.sum()))
    said = "{:.2f} and {:.2f} nats a token".format(*means)
    holds(
        "the server's texts are as likely to the run's model as its own are, to a nat",
        abs(means[0] - means[1]) < 0.5,
        said,
    )


def main() -> None:
    model, llama = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    weights = llama / (sys.argv[3] if len(sys.argv) > 3 else "smollm2-f32.gguf")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        llama / "llama-server",
        "--model",
        weights,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, "--ctx-size", "2048", "--threads", "1"], stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/v1", server)
            measure(Path(folder), model, f"http://127.0.0.1:{port}/v1")
        finally:
            server.terminate()
            server.wait()
        gone = experiment(Path(folder), model, f"http://127.0.0.1:{port}/v1", {"name": "reference"})
        gone["policy"]["server"]["attempts"] = 1  # type: ignore[index]
        try:
            rlhf_env.run(gone, Path(folder) / "run")
            said = ""
        except ConfigError as error:
            said = str(error)
        holds("a server that is not there is said in one line, and nothing is written", "Connection" in said, said)
        holds("... no run folder", not (Path(folder) / "run").exists())
    print(f"{sum(held)} of {len(held)} hold")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
