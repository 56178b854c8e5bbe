#!/usr/bin/env bash
# trl 1.16.0: GRPO's default KL term is not "the unbiased reverse-KL gradient".
#
# use_bias_correction_kl (on by default) multiplies k3 by the probability ratio "so that the KL gradient becomes the
# unbiased reverse-KL gradient". Each token's term has the expected gradient of that token's own divergence, given the text
# before it. The divergence of texts, which a penalty in the reward has and from which GRPO's beta comes, also depends on
# which texts a token leads to: that part is missing. With two tokens of two choices all texts can be summed over.
# `GRPOTrainer._compute_loss` itself is called, with advantages of 0 and beta 1, so that the KL term is all of the loss.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0
cat > "$folder/gradients.py" <<'PY'
import importlib.metadata, platform
from collections import defaultdict
from types import SimpleNamespace as Object
import torch
from trl import GRPOTrainer
print("python", platform.python_version(), "- trl", importlib.metadata.version("trl"))
# Row 0: the first token; rows 1 and 2: the second one after either. The reference likes texts that go on after a 1.
logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]], requires_grad=True)
reference = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-2.0, 0.0]]).log_softmax(-1)
ids = torch.tensor([[a, b] for a in (0, 1) for b in (0, 1)])
def of(table): return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in ids.tolist()])
own, ref, one = of(logits.log_softmax(-1)), of(reference), torch.ones(1, 2, dtype=torch.long)
chance = own.sum(1).exp()
(exact,) = torch.autograd.grad(chance @ (own - ref).sum(1), logits, retain_graph=True)
theirs = torch.zeros_like(exact)
for row in range(4):
    trainer = Object(
        _get_per_token_logps_and_entropies=lambda *_, **__: (own[row : row + 1], torch.zeros(1, 2), None), beta=1.0,
        loss_type="dr_grpo", importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.2, max_completion_length=1,
        args=Object(use_bias_correction_kl=True, delta=None), model=Object(training=True), top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, aux_loss_enabled=False, use_vllm=False, current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)},
        accelerator=Object(gather=lambda x: x, reduce=lambda x, reduction: x))
    inputs = {"prompt_ids": one[:, :1], "prompt_mask": one[:, :1], "completion_ids": ids[row : row + 1],
              "completion_mask": one, "advantages": torch.zeros(1), "ref_per_token_logps": ref[row : row + 1]}
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    theirs += float(chance[row].detach()) * torch.autograd.grad(loss, logits, retain_graph=True)[0]
print("exact  gradient of KL(pi || ref) by the logits", exact.flatten().tolist())
print("theirs, expected over all texts               ", theirs.flatten().tolist())
raise SystemExit(1 if torch.allclose(exact, theirs, atol=1e-3) else 0)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/gradients.py"
