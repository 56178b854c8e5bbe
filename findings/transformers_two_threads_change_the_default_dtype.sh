#!/usr/bin/env bash
# transformers 5.24.0: two threads that each make a model can leave torch's default dtype changed for the whole process.
#
# `AutoModelForCausalLM.from_config(config, dtype=torch.float64)` makes the model under `torch.set_default_dtype` and puts
# back what stood before. The default is the process's and not the thread's: a second thread that begins in between takes
# float64 for what stood before, and puts that back. Every layer that anybody makes afterwards is in float64, and its first
# input in float32 ends in "mat1 and mat2 must have the same dtype", far from the cause. (`from_pretrained` with a `dtype`
# goes the same way.) Whoever loads models in threads needs a lock of their own.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
"$place/venv/bin/python" - <<'PYTHON'
import sys
import threading

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)
config = LlamaConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
)


def make():
    AutoModelForCausalLM.from_config(config, dtype=torch.float64)


make()
print("after one model, in one thread, the default is", torch.get_default_dtype())
for attempt in range(1, 201):
    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if torch.get_default_dtype() != torch.float32:
        break
left = torch.get_default_dtype()
print(f"after 4 threads at once, try {attempt}, it is {left}")
print("a layer made now has weights in", torch.nn.Linear(2, 2).weight.dtype)
sys.exit(0 if left == torch.float64 else 1)
PYTHON
