"""Writing in 8 bits beside llama.cpp's server, which is what people write texts with on a laptop.

    make llama-cpp                                        compiles it: ten minutes, needs cmake and a C++ compiler
    OMP_NUM_THREADS=1 python benchmarks/llama_cpp.py      --rounds 3 --sides server decoding

SmolLM2-135M-Instruct, 32 texts of 32 + 128 tokens, sampled at temperature 1, the end token ignored, one thread. Ours is
`LanguageModel.write` with `writer_dtype = "int8"`, with the making of the copy in it. "server" is llama-server with 32
slots and the model in Q8_0: 32 requests at once, and the processor's time of its process, by the kernel's count, from
the first request to the last answer; our client's time does not count. It is started with several settings, each is
tried once and the quickest is kept, which is printed. "decoding" is llama-batched-bench: the same products and
attention without requests and without drawing a token, the processor's time of its process less that of one that
decodes a single token.

Both sides read the same prompts; before anything is measured, the most likely next tokens are compared. The sources are
those that the package llama-cpp-python brings, for this processor (-march=native). That package's own server writes one
text at a time, and is not measured. A turn of both sides takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUILT, MODEL = ROOT / "build" / "llama.cpp", ROOT / "build" / "smollm2"
GGUF = BUILT / "smollm2-q8_0.gguf"
ROWS, PROMPT, ANSWER = 32, 32, 128
AT_LEAST = {"server": 1.0, "decoding": None}
SAME_TOKENS = 0.7  # share of the prompts after which both sides think the same token the likeliest
SETTINGS: tuple[tuple[str, ...], ...] = (
    ("--flash-attn", "on", "--kv-unified"),
    ("--flash-attn", "on", "--no-kv-unified"),
    ("--flash-attn", "off", "--no-kv-unified"),
)
CONTEXT = ("--ctx-size", str(ROWS * 2 * (PROMPT + ANSWER)), "--threads", "1", "--threads-batch", "1")


class Server:
    """llama-server with a slot for every text."""

    def __init__(self, settings: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rsplit(":", 1)[1]
        command = [BUILT / "llama-server", "--model", GGUF, "--host", "127.0.0.1", "--port", port]
        self.process = subprocess.Popen(
            [*command, *CONTEXT, "--parallel", str(ROWS), "--no-cache-prompt", "--no-ui", *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"llama-server ended with status {self.process.returncode}")
            try:
                urllib.request.urlopen(f"{self.address}/health").close()
                return
            except OSError:
                time.sleep(0.2)
        sys.exit("llama-server does not answer")

    def complete(self, prompt: Sequence[int], tokens: int, temperature: float = 1.0) -> Any:
        wanted = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "temperature": temperature,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        request = urllib.request.Request(
            f"{self.address}/completion", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def write(self, prompts: Sequence[Sequence[int]]) -> float:
        """Processor seconds of all prompts at once."""
        begun = self.seconds()
        with ThreadPoolExecutor(len(prompts)) as at_once:
            answers = list(at_once.map(lambda prompt: self.complete(prompt, ANSWER), prompts))
        took = self.seconds() - begun
        assert {(it["tokens_evaluated"], it["tokens_predicted"]) for it in answers} == {(PROMPT, ANSWER)}, (
            "the server did not do the same"
        )
        return took

    def seconds(self) -> float:
        """The processor's time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def decoding(prompt: int = PROMPT, answer: int = ANSWER, rows: int = ROWS) -> float:
    """Processor seconds of llama-batched-bench."""
    sizes = ("-npp", str(prompt), "-ntg", str(answer), "-npl", str(rows))
    command = [BUILT / "llama-batched-bench", "--model", GGUF, *CONTEXT, "--flash-attn", "on", *sizes]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"llama-batched-bench ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", choices=AT_LEAST, default=list(AT_LEAST), help="(default: both)")
    given = parser.parse_args()
    programs = [BUILT / {"server": "llama-server", "decoding": "llama-batched-bench"}[side] for side in given.sides]
    missing = [it for it in (*programs, GGUF, MODEL) if not it.exists()]
    if missing:
        print(f"llama.cpp: not measured, there is no {missing[0].relative_to(ROOT)} (to compare: make llama-cpp)")
        return
    measure(given.rounds, given.sides)


def measure(rounds: int, sides: Sequence[str]) -> None:
    import roofline
    import torch
    from side_by_side import heading, line, timed
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    from written_side import without_end

    from rlhf_env.policies import LanguageModel

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    heading()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    end = model.generation_config.eos_token_id
    # Token ids that no instruct model has a meaning for stand at the beginning of the vocabulary.
    prompts = np.random.default_rng(0).integers(100, model.config.vocab_size, (ROWS, PROMPT))
    with torch.inference_mode():
        likeliest = model(torch.from_numpy(prompts), logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
    policy = LanguageModel(without_end(model, end), writer_dtype="int8")
    if not policy.copy_writes:
        print("llama.cpp: not measured, this processor has no instructions for a copy in 8 bits")
        return

    def ours() -> float:
        written = policy.write({"input_ids": prompts, "attention_mask": np.ones_like(prompts)}, ANSWER)
        policy.forget()
        return float((written.tokens < policy.vocab_size).sum())

    shape = roofline.Shape.of(model.config)
    assert ours() == ROWS * ANSWER, "ours did not do the same"
    floor = roofline.writing(shape, "int8", [ANSWER] * ROWS, prompt=PROMPT)
    for side in sides:
        took = []
        if side == "server":
            server = kept(prompts, likeliest)
            took = [(timed(ours)[0], server.write(prompts.tolist())) for _ in range(rounds)]
            server.end()
        else:
            little = decoding(1, 1, 1)
            took = [(timed(ours)[0], decoding() - little) for _ in range(rounds)]
        line(
            f"llama.cpp, {side}, Q8_0: SmolLM2-135M, {ROWS} x ({PROMPT} + {ANSWER})",
            [other / mine for mine, other in took],
            AT_LEAST[side],
            [floor / mine for mine, _ in took],
        )
        tokens = ROWS * ANSWER
        each = [f"{tokens / sorted(column)[rounds // 2]:.0f}" for column in zip(*took, strict=True)]
        print(f"    tokens per processor second: {each[0]} ours, {each[1]} theirs", flush=True)


def kept(prompts: Any, likeliest: Sequence[int]) -> Server:
    """The server with the settings that took least, after a look at what it says."""
    took: list[float] = []
    for settings in SETTINGS:
        server = Server(settings)
        said = [server.complete(prompt, 1, temperature=0.0)["tokens"][0] for prompt in prompts.tolist()]
        same = float(np.mean(np.array(said) == np.array(likeliest)))
        assert same >= SAME_TOKENS, f"the sides are of different models: the same token after {same:.0%} of the prompts"
        took.append(server.write(prompts.tolist()))
        server.end()
    best = took.index(min(took))
    for index, (seconds, settings) in enumerate(zip(took, SETTINGS, strict=True)):
        print(f"    {seconds:7.2f} s with {' '.join(settings)}{', kept' if index == best else ''}", flush=True)
    return Server(SETTINGS[best])


if __name__ == "__main__":
    main()
