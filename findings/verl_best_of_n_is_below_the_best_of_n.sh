#!/usr/bin/env bash
# verl 0.9.1: "best@8" of eight responses is not the best of the eight, and validation resets numpy's global generator.
#
# For each prompt validation reports best@N, worst@N and maj@N, means over 1000 "bootstrap samples of size N". They are drawn
# WITH replacement from the n responses there are, and N goes up to n itself. A prompt that one of eight responses solves
# has pass@8 = 1 (the same eight are all there is); best@8 is 1 - (7/8)^8 = 0.66, and worst@8 is too high in the same way.
# The gap is widest for the hardest prompts, so it is no constant that cancels between two models.
# Also: the samples are drawn after np.random.seed(42), the process's generator: after every validation numpy's random
# numbers are those after the validation before.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps verl==0.9.1
cat > "$folder/best.py" <<'PY'
import importlib.metadata, importlib.util, platform, sys
from unittest.mock import MagicMock

import numpy as np

print("python", platform.python_version(), "- verl", importlib.metadata.version("verl"))
parts = ("torch_functional", "fs", "import_utils", "model")
for name in ("torch", "omegaconf", "transformers", "verl", "verl.utils", *(f"verl.utils.{part}" for part in parts)):
    sys.modules[name] = MagicMock()  # imported by the file, and not called by the function
sys.modules["verl.utils.import_utils"].deprecated = lambda *_: lambda function: function
path = importlib.metadata.distribution("verl").locate_file("verl/trainer/ppo/metric_utils.py")
spec = importlib.util.spec_from_file_location("metrics", path)
metrics = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics)


def validated(right, n=8):
    solved = [1.0] * right + [0.0] * (n - right)
    found = metrics.process_validation_metrics(["task"] * n, ["prompt"] * n, {"acc": solved})["task"]["acc"]
    return found["best@8/mean"], np.random.random()


best, after = zip(*(validated(right) for right in (1, 2, 4)))
for right, value in zip((1, 2, 4), best):
    print(f"{right} of 8 responses right: pass@8 is 1, best@8 is {value:.3f}")
print("numpy's next random number after each of the three:", *(round(it, 6) for it in after))
expected = [1 - (1 - right / 8) ** 8 for right in (1, 2, 4)]
raise SystemExit(0 if np.allclose(best, expected, atol=0.05) and best[0] < 0.8 and len(set(after)) == 1 else 1)
PY
"$folder/venv/bin/python" "$folder/best.py"
