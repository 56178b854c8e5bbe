#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: models with experts (Mixtral, Qwen MoE, ...) cannot compute in float64 by default.
#
# The experts of a model are multiplied by "grouped_mm" unless one asks for another implementation. It checks that torch
# has the function, not that the function has the model's precision: every forward pass in float64 raises "Expected mat_a
# to be Float32, BFloat16 or Float16 matrix, got Double". The same model computes in float32, and in float64 with
# model.set_experts_implementation("eager"), which is the library's own loop over experts.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0
cat > "$folder/experts.py" <<'PY'
import importlib.metadata, platform
import torch
from transformers import AutoConfig, AutoModelForCausalLM

print("python", platform.python_version(), *(f"- {it} {importlib.metadata.version(it)}" for it in ("transformers", "torch")))
config = AutoConfig.for_model(
    "mixtral", vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, num_local_experts=2,
)
ids = torch.arange(5)[None]
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
exact = model(ids).logits
model = model.double()
try:
    model(ids)
    raised = ""
except RuntimeError as error:
    raised = str(error)
print("float64:", raised or "computes")
model.set_experts_implementation("eager")
difference = float((model(ids).logits - exact).abs().max())
print(f"float64, a loop over experts: {difference:.1e} from float32")
assert difference < 1e-4
raise SystemExit(0 if "Double" in raised else 1)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/experts.py"
