#!/usr/bin/env bash
# openrlhf 0.11.2: in talks of several turns, GAE with lambda below 1 blames the token before a tool's or user's words.
#
# What a tool or a user says is in the sequence with an action mask of 0. get_advantages_and_returns sets values to 0 there and
# walks over those tokens as over others, so the last token of a turn sees a next value of 0, and what comes after fades by
# gamma * lambda for each token that the TOOL wrote. Below, a critic that is right: one reward of 1 at the end, value 1
# everywhere, so every advantage is 0 and every return 1. That is so with lambda 1 (the default); with 0.95, the turn before
# a reply of 100 tokens gets an advantage near -1 (before the normalisation), and the critic is taught a value near 0.
# verl 0.9.1, given the same mask, skips such tokens: its returns are 1.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps openrlhf==0.11.2
cat > "$folder/turns.py" <<'PY'
import importlib.metadata, importlib.util, platform, sys
from unittest.mock import MagicMock

import torch

print("python", platform.python_version(), "- openrlhf", importlib.metadata.version("openrlhf"))
for name in ("models.utils", "trainer.ppo_utils.experience", "trainer.ppo_utils.length_penalty", "trainer.ray.launcher",
             "utils.logging_utils", "utils.seqlen_balancing"):  # imported by the file, and not called by the function
    parts = ["openrlhf", *name.split(".")]
    sys.modules.update({".".join(parts[:n]): MagicMock() for n in range(1, len(parts) + 1)})
sys.modules["ray"] = MagicMock()
path = importlib.metadata.distribution("openrlhf").locate_file("openrlhf/trainer/ppo_utils/experience_maker.py")
spec = importlib.util.spec_from_file_location("maker", path)
maker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maker)
gae = maker.RemoteExperienceMaker.get_advantages_and_returns

found = {}
for reply in (0, 4, 100):  # tokens that a tool wrote, between two turns of two tokens each
    mask = torch.tensor([[1.0, 1.0, *[0.0] * reply, 1.0, 1.0]])
    rewards = torch.zeros_like(mask)
    rewards[0, -1] = 1.0
    for lam in (1.0, 0.95):
        advantages, returns = gae(None, torch.ones_like(mask), rewards, mask, 1.0, lam)
        found[reply, lam] = advantages[0, 1].item()
        print(f"reply of {reply:3} tokens, lambda {lam:4}: the token before it has advantage {found[reply, lam]:+.3f}, "
              f"return {returns[0, 1].item():.3f}")
right = [found[reply, 1.0] for reply in (0, 4, 100)] + [found[0, 0.95]]
raise SystemExit(0 if max(map(abs, right)) < 1e-5 and found[4, 0.95] < -0.1 and found[100, 0.95] < -0.9 else 1)
PY
"$folder/venv/bin/python" "$folder/turns.py"
