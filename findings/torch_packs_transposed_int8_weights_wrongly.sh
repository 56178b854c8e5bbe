#!/usr/bin/env bash
# torch 2.13.0: the operator that packs a weight for 8-bit products on a processor reads a transposed weight wrongly.
#
# torch.ops.onednn.qlinear_prepack takes an int8 weight [out, in], and qlinear_pointwise multiplies by what it gives. A
# weight that is not contiguous (the transpose of another tensor, a slice of columns) is read as if its memory were in
# order: no error is raised, and the products are those of other numbers. With .contiguous() before packing they are
# exact. Whoever packs a joined or transposed matrix for writing in 8 bits gets nonsense that looks like coarse rounding.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cat > "$folder/packed.py" <<'PY'
import importlib.metadata, platform
import torch
print("python", platform.python_version(), "- torch", importlib.metadata.version("torch"))
torch.manual_seed(0)
transposed = torch.randint(-127, 128, (64, 32), dtype=torch.int8).t()  # [32, 64], not contiguous
x = torch.randint(0, 256, (4, 64), dtype=torch.uint8)
zeros, scales = torch.zeros(32, dtype=torch.int32), torch.ones(32)
exact = (x.float() - 128) @ transposed.float().t()
def product(weight):
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
off = {name: float((product(w) - exact).abs().max()) for name, w in (("contiguous", transposed.contiguous()), ("the same numbers, transposed", transposed))}
for name, difference in off.items(): print(f"{name}: off by at most {difference:.0f} of {float(exact.abs().max()):.0f}")
raise SystemExit(0 if off["contiguous"] == 0 and off["the same numbers, transposed"] > 0 else 1)
PY
"$folder/venv/bin/python" "$folder/packed.py"
