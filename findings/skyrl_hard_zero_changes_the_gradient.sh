#!/usr/bin/env bash
# skyrl 0.3.0: the loss "rollout_is" does not have the gradient of "cispo", as it says it does.
#
# rollout_is_policy_loss "further uses hard zero instead of clamping, but that does not change the gradient only the loss
# value". The ratio that is set to zero outside the bounds is detached and multiplies log pi: it IS the gradient's weight.
# A token outside the bounds learns nothing in rollout_is; with cispo at the same bounds, it learns with the weight of the
# bound, which is what CISPO is for.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps skyrl==0.3.0
cat > "$folder/gradients.py" <<'PY'
import importlib.metadata, platform, sys
from pathlib import Path
from types import ModuleType, SimpleNamespace as Settings
from unittest.mock import MagicMock
import torch
print("python", platform.python_version(), "- skyrl", importlib.metadata.version("skyrl"))
# Neither loss calls these packages, and the module with the losses is imported without what lies above it.
for name in ("jaxtyping", "loguru", "omegaconf", "ray", "skyrl.train", "skyrl.train.config"):
    sys.modules[name] = MagicMock()
sys.modules["ray"].is_initialized.return_value = False
root = Path(importlib.metadata.distribution("skyrl").locate_file("skyrl"))
for parts in ((), ("backends",), ("backends", "skyrl_train"), ("backends", "skyrl_train", "utils")):
    name = ".".join(("skyrl", *parts))
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(root.joinpath(*parts))]
from skyrl.backends.skyrl_train.utils import ppo_utils as losses
off = Settings(tis_ratio_type=None, sequence_mask_metric=None, outlier_token_is_threshold_low=None,
               outlier_token_is_threshold_high=None, token_mask_is_threshold_low=None, token_mask_is_threshold_high=None)
bounds = Settings(cispo_eps_clip_low=0.2, cispo_eps_clip_high=0.2)
settings = Settings(eps_clip_low=0.2, eps_clip_high=0.2, cispo=bounds, off_policy_correction=off)
written, mask, gradients = torch.full((1, 3), -1.0), torch.ones(1, 3), {}
for name, loss in (("cispo", losses.compute_policy_loss_cispo), ("rollout_is", losses.rollout_is_policy_loss)):
    logprobs = (written + torch.tensor([[-0.5, 0.0, 0.5]])).requires_grad_()  # ratios 0.61, 1 and 1.65
    loss(logprobs, written, torch.ones(1, 3), settings, mask, written)[0].backward()
    gradients[name] = logprobs.grad
    print(f"{name:10} bounds 0.8 and 1.2, gradient by log pi {logprobs.grad[0].tolist()}")
raise SystemExit(1 if torch.allclose(*gradients.values()) else 0)
PY
"$folder/venv/bin/python" "$folder/gradients.py"
