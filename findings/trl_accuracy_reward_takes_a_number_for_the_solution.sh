#!/usr/bin/env bash
# trl 1.16.0, math-verify 0.9.0: a solution in bare LaTeX is read as one number of it, and that number is paid.
#
# accuracy_reward takes "raw-text solutions", and its own example is the bare \frac{1}{3}, which works. But it hands them to
# math-verify's parse as they are, which outside of $ reads text and takes a number: 2 for 2\pi, 3 for 3\sqrt{2}, 2 for
# 2^{10}, 1.2 for the two solutions 1,2. So "2" is paid 1.0 where 2\pi is right, and 2\pi is paid 0.0. Data sets keep their
# answers this way (MATH's are what stood in \boxed{}). Where nothing can be read, the reward is None and says so; here
# something is. With dollars around the solution all of them are right.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
<<<<<<< HEAD
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 trl==1.16.0 \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0
cat > "$folder/solutions.py" <<'PY'
import importlib.metadata, platform
from math_verify import parse
from trl.rewards import accuracy_reward

print("python", platform.python_version(), *(f"- {it} {importlib.metadata.version(it)}" for it in ("trl", "math-verify")))
parse("$1$", parsing_timeout=60)  # sympy loads here, and not within a limit of time


def paid(answer, solution):
    return accuracy_reward([[{"role": "assistant", "content": rf"It is $\boxed{{{answer}}}$."}]], [solution])[0]
=======
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check math-verify==0.9.0 latex2sympy2_extended==1.11.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0
cat > "$folder/solutions.py" <<'PY'
import importlib.metadata, importlib.util, platform, sys
from types import ModuleType

from math_verify import parse

print("python", platform.python_version(), *(f"- {it} {importlib.metadata.version(it)}" for it in ("trl", "math-verify")))
parse("$1$", parsing_timeout=60)  # sympy loads here, and not within a limit of time
# The file alone: the package asks for torch and transformers, which this does not need.
sys.modules.update({name: ModuleType(name) for name in ("trl", "trl.rewards", "trl.import_utils")})
sys.modules["trl.import_utils"].is_math_verify_available = lambda: True
path = importlib.metadata.distribution("trl").locate_file("trl/rewards/accuracy_rewards.py")
spec = importlib.util.spec_from_file_location("trl.rewards.accuracy_rewards", path)
rewards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rewards)


def paid(answer, solution):
    return rewards.accuracy_reward([[{"role": "assistant", "content": rf"It is $\boxed{{{answer}}}$."}]], [solution])[0]
>>>>>>> finds


wrong = []
for solution, number in {r"\frac{1}{3}": "1", r"2\pi": "2", r"3\sqrt{2}": "3", "2^{10}": "2", "1,2": "1.2"}.items():
    found = paid(solution, solution), paid(number, solution), paid(solution, f"${solution}$"), paid(number, f"${solution}$")
    print(f"solution {solution:12}: {solution:12} is paid {found[0]}, {number:3} is paid {found[1]}; in dollars {found[2:]}")
    wrong.append(found == (0.0, 1.0, 1.0, 0.0))
raise SystemExit(0 if wrong == [False, True, True, True, True] else 1)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/solutions.py"
