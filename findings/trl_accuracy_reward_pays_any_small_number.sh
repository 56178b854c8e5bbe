#!/usr/bin/env bash
# trl 1.16.0, math-verify 0.9.0: accuracy_reward pays 1.0 for any number below 1e-15 where the answer is another one.
#
# math-verify compares to 15 decimal PLACES (numbers with a decimal point: 6), not digits. Its docstring says to raise
# numeric_precision "if you know the evaluated expressions will be small"; TRL calls it with the defaults and takes no such
# argument. So the mass of an electron is paid where its charge is asked for, 10^{-20} where 10^{-19} is right, and
# 0.0000003 for 0.0000001: in physics, chemistry and small probabilities the reward is for the order of magnitude at best.
# Only 0 itself is told apart. verify(..., numeric_precision=60, float_rounding=60) refuses all of them.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 trl==1.16.0 \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0
cat > "$folder/answers.py" <<'PY'
import importlib.metadata, platform
from math_verify import parse, verify
from trl.rewards import accuracy_reward

print("python", platform.python_version(), *(f"- {it} {importlib.metadata.version(it)}" for it in ("trl", "math-verify")))
asked = [  # the right answer, one that is wrong
    (r"1.6\times 10^{-19}", r"9.1\times 10^{-31}"),
    (r"10^{-19}", r"10^{-20}"),
    (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}"),
    ("0.0000001", "0.0000003"),
    (r"1.6\times 10^{-7}", r"9.1\times 10^{-7}"),
]
paid, refused = [], []
for right, other in asked:
    gold, text = (rf"The answer is $\boxed{{{it}}}$" for it in (right, other))
    paid += accuracy_reward([[{"role": "assistant", "content": text}]], [gold])
    refused.append(not verify(parse(gold), parse(text), numeric_precision=60, float_rounding=60))
    print(f"right: {right:20} answered: {other:20} paid {paid[-1]}, refused at 60 places: {refused[-1]}")
raise SystemExit(0 if paid == [1.0, 1.0, 1.0, 1.0, 0.0] and all(refused) else 1)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/answers.py"
