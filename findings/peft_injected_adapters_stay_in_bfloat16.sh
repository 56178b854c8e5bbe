#!/usr/bin/env bash
# peft 0.21.2: of two ways to put the same LoRA on a bfloat16 model, one trains in float32 and the other in bfloat16.
#
# `get_peft_model` casts the adapter to float32 (autocast_adapter_dtype, on by default). `inject_adapter_in_model`, which
# peft offers for whoever wants to keep the model's own class, leaves it in the precision of the weights below it and has
# no such argument. In bfloat16, an optimizer's step on a weight of 1 is lost below 2^-9: AdamW with a learning rate of
# 1e-4, the usual one for LoRA, moves a weight of A or B of that size not at all.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 2>/dev/null
"$place/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)
print("peft", peft.__version__)


def model():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape)).bfloat16()


def adapter(model):
    return [weight for name, weight in model.named_parameters() if "lora_" in name]


config = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
wrapped = peft.get_peft_model(model(), peft.LoraConfig(**config))
injected = peft.inject_adapter_in_model(peft.LoraConfig(**config), model())
kinds = {}
for name, made in (("get_peft_model", wrapped), ("inject_adapter_in_model", injected)):
    weights = adapter(made)
    kinds[name] = {weight.dtype for weight in weights}
    with torch.no_grad():
        for weight in weights:
            weight.fill_(1.0)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)
    for _ in range(10):
        optimizer.zero_grad()
        sum(weight.sum() for weight in weights).backward()
        optimizer.step()
    moved = max(float((weight.detach() - 1.0).abs().max()) for weight in weights)
    print(f"{name:24} adapter in {kinds[name]}; ten steps of 1e-4 moved a weight of 1 by {moved:.2g}")
same = kinds["get_peft_model"] == kinds["inject_adapter_in_model"]
sys.exit(1 if same or moved != 0.0 else 0)
PYTHON
