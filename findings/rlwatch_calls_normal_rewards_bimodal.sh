#!/usr/bin/env bash
# rlwatch 0.5.1: as it installs by default, its "Hartigan dip test" calls normally distributed rewards bimodal, always.
#
# The detector of reward hacking asks a dip test for two clusters of rewards. Without the package diptest, which only the
# extra rlwatch[monitoring] brings, it measures instead how far the rewards are from a UNIFORM distribution, and takes
# that times sqrt(n) for a dip. Its docstring calls the fallback unreliable in borderline cases; a single normal
# distribution, as unimodal as they come, is far from uniform too. Below, a run whose rewards are 64 draws of one normal
# distribution a step, and never change: from step 50 on (the detector's buffer is full) every step is an alert with
# p = 0.001. With diptest installed the same run has none.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rlwatch==0.5.1 numpy==2.3.5 scipy==1.17.1
cat > "$folder/alerts.py" <<'PY'
import importlib.metadata, importlib.util, platform
import numpy as np
from rlwatch.config import RLWatchConfig
from rlwatch.detectors import DetectorSuite

has = importlib.util.find_spec("diptest") is not None
print("python", platform.python_version(), "- rlwatch", importlib.metadata.version("rlwatch"), "- diptest",
      importlib.metadata.version("diptest") if has else "not installed")
rng, suite, alerts = np.random.default_rng(0), DetectorSuite(RLWatchConfig()), []
for step in range(1, 201):
    rewards = rng.normal(size=64)
    alerts += suite.check_step(step, rewards=rewards, reward_mean=float(rewards.mean()), reward_std=float(rewards.std()))
print(f"alerts of 200 steps of one normal distribution: {len(alerts)}")
for alert in alerts[:2]:
    print("  ", alert.step, alert.detector, alert.message)
if has:
    unchanged = not alerts
else:
    unchanged = len(alerts) > 140 and all("Bimodal" in alert.message for alert in alerts)
raise SystemExit(not unchanged)
PY
"$folder/venv/bin/python" "$folder/alerts.py"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check diptest==0.12.0
"$folder/venv/bin/python" "$folder/alerts.py"
echo "As it installs, rlwatch finds two clusters in one normal distribution, at every step; with diptest, in none."
