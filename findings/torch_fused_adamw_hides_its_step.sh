#!/usr/bin/env bash
# torch 2.13.0: a step of a fused AdamW on a processor is not counted as a change of the parameters.
#
# A tensor's version counts its in-place changes, and backward() refuses a graph whose saved tensors have changed since
# ("one of the variables needed for gradient computation has been modified by an inplace operation"). After a step with
# fused=True the version is what it was: a graph that was built before the step goes through, and its gradient is silently
# that of other parameters. Whoever keeps something that was made of the weights (a copy, an engine that writes texts) and
# asks the versions whether it is still right is told that it is.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cat > "$folder/step.py" <<'PY'
import importlib.metadata, platform
import torch
print("python", platform.python_version(), "- torch", importlib.metadata.version("torch"))
seen = {}
for fused in (False, True):
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, fused=fused)
    loss = (3 * parameter * parameter).sum()  # its gradient is 6 * 2 = 12
    parameter.grad = torch.ones(1)
    optimizer.step()
    optimizer.zero_grad()
    try:
        loss.backward()
        seen[fused] = f"the gradient is {float(parameter.grad):.2f}"
    except RuntimeError:
        seen[fused] = "refused"
    print(f"fused={fused}: version {parameter._version}, then backward: {seen[fused]}")
raise SystemExit(0 if seen[False] == "refused" and seen[True] != "refused" else 1)
PY
"$folder/venv/bin/python" "$folder/step.py"
