#!/usr/bin/env bash
# reasoning-gym 0.1.25: two scorers pay 1.0 for wrong answers, and five data sets ask other questions in every process.
#
# coin_flip compares the digits of answer and oracle from the left and divides by the length of the SHORTER text, so the
# answer "0" earns 1.0 wherever the probability begins with 0. game_of_life_halting compares bool(text) with bool(text),
# so every text that is not empty earns 1.0. isomorphic_strings, ransom_note and others draw from Python sets: the same
# seed and index is another question when the process has another hash seed.
# Exits with 1 when any of this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check reasoning-gym==0.1.25
cat > "$folder/scores.py" <<'PY'
import importlib.metadata, platform
from reasoning_gym import create_dataset

print("python", platform.python_version(), "- reasoning-gym", importlib.metadata.version("reasoning-gym"))
coin = create_dataset("coin_flip", seed=0)
entry = next(coin[i] for i in range(50) if coin[i]["answer"].startswith("0."))
paid = coin.score_answer("0", entry)
print(f"coin_flip: the right answer is {entry['answer']}, and the answer 0 is paid {paid}")
life = create_dataset("game_of_life_halting", seed=0)
entry = next(life[i] for i in range(50) if life[i]["answer"] == "False")
other = life.score_answer("no idea", entry)
print(f"game_of_life_halting: the right answer is {entry['answer']}, and 'no idea' is paid {other}")
raise SystemExit(0 if paid == other == 1.0 else 1)
PY
cat > "$folder/questions.py" <<'PY'
from reasoning_gym import create_dataset

for name in ("isomorphic_strings", "ransom_note"):
    print(name, [create_dataset(name, seed=0)[i]["question"][-60:] for i in range(3)])
PY
"$folder/venv/bin/python" "$folder/scores.py"
PYTHONHASHSEED=1 "$folder/venv/bin/python" "$folder/questions.py" > "$folder/one"
PYTHONHASHSEED=2 "$folder/venv/bin/python" "$folder/questions.py" > "$folder/two"
if cmp -s "$folder/one" "$folder/two"; then
  echo "the same seed asks the same questions under two hash seeds: this has changed"
  exit 1
fi
echo "the same seed asks other questions under another hash seed:"
head -c 300 "$folder/one"; echo; head -c 300 "$folder/two"; echo
