#!/usr/bin/env bash
# torchtune 0.6.1: PPO's advantages are "normalised" to variance 1 and keep their mean.
#
# rlhf.whiten says that it is taken from TRL's core.py and that `shift_mean` (True by default) shifts values "by the mean".
# TRL's function adds the mean again `if not shift_mean`; torchtune's does so `if shift_mean`. estimate_advantages, which
# PPO's recipe calls to "normalize advantages across the batch", leaves the default: the mean of the raw advantages is a
# constant on top of every normalised one, as if there were no baseline. In rewards of 10 to 12 it outweighs the rest.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps torchtune==0.6.1
cat > "$folder/advantages.py" <<'PY'
import importlib.metadata, importlib.util, platform
import torch
print("python", platform.python_version(), "- torchtune", importlib.metadata.version("torchtune"))
# The file alone: the package asks for torchao, which this does not need.
path = importlib.metadata.distribution("torchtune").locate_file("torchtune/rlhf/rewards.py")
spec = importlib.util.spec_from_file_location("rewards", path)
rewards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rewards)
paid, no_values = torch.tensor([[10.0], [11.0], [12.0]]), torch.zeros(3, 1)
advantages, _ = rewards.estimate_advantages(no_values, paid, gamma=1.0, lmbda=1.0)
print("rewards", paid[:, 0].tolist(), "-> advantages", advantages[:, 0].tolist())
print(f"mean {float(advantages.mean()):.2f}, standard deviation {float(advantages.std()):.2f}")
raise SystemExit(1 if abs(float(advantages.mean())) < 1.0 else 0)
PY
"$folder/venv/bin/python" "$folder/advantages.py"
