#!/usr/bin/env bash
# openrlhf 0.11.2: "the true reverse-KL gradient" of --algo.kl.unbiased_gradient leaves a part out.
#
# compute_approx_kl(..., unbiased_gradient=True) is said to "backprop the true reverse-KL gradient ... = grad KL(pi || ref)"
# for texts drawn from pi. What it has is, for each token, the gradient of that token's own divergence given the text
# before it. How a token changes which text follows, and with it the divergence of what follows, is not in it. Two tokens
# of two choices are enough: all four texts are summed over here, and nothing is sampled.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps openrlhf==0.11.2
cat > "$folder/gradients.py" <<'PY'
import importlib.metadata, importlib.util, platform, sys
from unittest.mock import MagicMock
import torch
print("python", platform.python_version(), "- openrlhf", importlib.metadata.version("openrlhf"))
sys.modules["deepspeed"] = MagicMock()  # imported by the file, and not called by the function
path = importlib.metadata.distribution("openrlhf").locate_file("openrlhf/models/utils.py")
spec = importlib.util.spec_from_file_location("sums", path)
sums = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sums)
# Row 0: the first token; rows 1 and 2: the second one after either. The reference likes texts that go on after a 1.
logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]], requires_grad=True)
reference = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]).log_softmax(-1)
texts = [(a, b) for a in (0, 1) for b in (0, 1)]
def of(table): return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in texts])
own, ref = of(logits.log_softmax(-1)), of(reference)
chance = own.sum(1).exp()
(exact,) = torch.autograd.grad(chance @ (own - ref).sum(1), logits, retain_graph=True)
term = sums.compute_approx_kl(own, ref, log_probs_old=own.detach(), kl_estimator="k3", unbiased_gradient=True)
(theirs,) = torch.autograd.grad(chance.detach() @ term.sum(1), logits)
print("exact  gradient of KL(pi || ref) by the logits", exact.flatten().tolist())
print("theirs, expected over all texts               ", theirs.flatten().tolist())
raise SystemExit(1 if torch.allclose(exact, theirs, atol=1e-3) else 0)
PY
"$folder/venv/bin/python" "$folder/gradients.py"
