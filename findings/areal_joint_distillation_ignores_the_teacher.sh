#!/usr/bin/env bash
# areal 1.0.4: with reward and a teacher at once, the gradient of the distillation term does not depend on the teacher.
#
# With a teacher and rl_loss_weight above 0 ("joint loss", KDRL), grpo_loss_fn adds distill_loss_weight times the mean of
# log pi - log teacher over the tokens that the student drew, as a reverse KL. The teacher's part of it is a constant: the
# gradient is that of log pi alone, the same for every teacher, and over texts that pi draws it is 0 in expectation. The
# value that is logged is a KL all the same. With rl_loss_weight = 0 ("pure KD") another term is used, which does depend on
# the teacher. Below: two tokens, three choices each, two teachers that like opposite tokens.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps areal==1.0.4
cat > "$folder/teachers.py" <<'PY'
import importlib.metadata, importlib.util, platform, sys
from unittest.mock import MagicMock

import torch

print("python", platform.python_version(), "- areal", importlib.metadata.version("areal"))
for name in ("api.cli_args", "experimental.training_service.controller.controller", "infra.rpc.serialization",
             "trainer.ppo.stats", "utils.constants", "utils.data", "utils.functional", "utils.perf_tracer"):
    parts = ["areal", *name.split(".")]  # imported by the files, and only statistics of it are called by the function
    sys.modules.update({".".join(parts[:n]): MagicMock() for n in range(1, len(parts) + 1)})


def load(name):
    path = importlib.metadata.distribution("areal").locate_file(f"areal/{name}.py")
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


actor = load("trainer/ppo/actor")
actor.ppo_actor_loss_fn = load("utils/functional/functional").ppo_actor_loss_fn
actor._resolve_proximal_logp = lambda old_logp, **_: old_logp
actor._log_proximal_approximation_stats = lambda **_: None
drawn, teachers = torch.tensor([0, 2]), {"likes 0": [3.0, 0.0, -3.0], "likes 2": [-3.0, 0.0, 3.0]}


def gradient(teacher, rl_loss_weight):
    logits = torch.tensor([[0.5, 0.0, -0.5], [0.2, 0.1, 0.0]], requires_grad=True)
    own = logits.log_softmax(-1).gather(1, drawn[:, None]).T
    theirs = torch.tensor(teacher).log_softmax(-1)[drawn][None]
    batch = {"logprobs": own.detach(), "advantages": torch.zeros(1, 2), "loss_mask": torch.ones(1, 2),
             "teacher_logp": theirs, "rl_loss_weight": rl_loss_weight, "distill_loss_weight": 1.0}
    actor.grpo_loss_fn(own, torch.zeros(1, 2), batch, eps_clip=0.2, eps_clip_higher=None, c_clip=None).backward()
    return logits.grad


same = {}
for weight in (1.0, 0.0):
    found = [gradient(teacher, weight) for teacher in teachers.values()]
    for name, grad in zip(teachers, found):
        print(f"rl_loss_weight {weight}, teacher {name}: gradient by the logits", [round(it, 3) for it in grad.flatten().tolist()])
    same[weight] = torch.equal(*found)
raise SystemExit(0 if same == {1.0: True, 0.0: False} else 1)
PY
"$folder/venv/bin/python" "$folder/teachers.py"
