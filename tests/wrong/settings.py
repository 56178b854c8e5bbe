"""Settings of an experiment, each with its table."""

from __future__ import annotations

import json
import sys

from wrong.table import BUDGET, TASK, TEXTS, TOKENIZER, TOY, experiment, experiment_file

HUGE = json.dumps(  # two layers of which nothing fits anywhere
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 259,
        "hidden_size": 2**20,
        "intermediate_size": 2**22,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
)

experiment(
    "temperature 0", "[policy]", "[policy.sampling]\ntemperature = 0\n[policy]", "temperature must be above 0, got 0"
)
experiment(
    "three of sampling",
    "[policy]",
    "[policy.sampling]\ntop_p = 2.0\ntop_k = -1\ntemperature = -1\n[policy]",
    "line 10, policy sampling: temperature must be above 0, got -1",
    "line 9, policy sampling: top_k must be at least 0, got -1",
    "line 8, policy sampling: top_p must be in (0, 1], got 2.0",
)
experiment(
    "top_p for ppo",
    "[policy]",
    "[policy.sampling]\ntop_p = 0.9\n[policy]",
    "ppo learns by probability ratios",
    lines=range(20, 22),
)
experiment("dtype", "[policy]", '[policy]\ndtype = "float16"', "policy: dtype must be one of 'float32', 'float64', 'bf")
experiment(
    "an attention of another library",
    "[policy]",
    '[policy]\nattention = "xformers"',
    "policy: attention must be one of 'auto', 'eager', 'sdpa', 'flash_attention_2',",
)
experiment(
    "an attention that is not installed",
    "[policy]",
    '[policy]\nattention = "flash_attention_3"',
    'attention = "flash_attention_3" needs the package flash_attn_interface, which is not installed',
)
experiment(
    "gradient checkpointing by name",
    "[policy]",
    '[policy]\ngradient_checkpointing = "unsloth"',
    "policy: gradient_checkpointing must be true or false",
)
experiment(
    "a writer in 4 bits",
    "[policy]",
    '[policy]\nwriter_dtype = "int4"',
    "policy: writer_dtype must be one of 'auto', 'int8', 'bfloat16'",
)
experiment_file(
    "a copy that writes for who does not correct for it",
    TOY.replace("[policy]", '[policy]\nwriter_dtype = "int8"').replace('"ppo"', '"options"'),
    '"int8": a copy of the policy would write, and options has no importance ratio that corrects for it',
)
experiment(
    "a writer that there is not",
    "[policy]",
    '[policy]\nwriter = "sglang"',
    "policy: writer must be one of 'vllm', 'server', got 'sglang'",
)
experiment(
    "vLLM's settings without vLLM",
    "[policy]",
    "[policy.vllm]\ncache_mb = 64\n[policy]",
    'policy: [policy.vllm] is how vLLM writes: set writer = "vllm" beside it',
)
experiment(
    "a distance that nothing can keep",
    "[policy]",
    '[policy.vllm]\nmax_kl = 0.0\n[policy]\nwriter = "vllm"',
    "policy vllm: max_kl must be above 0, got 0.0",
)
experiment_file(
    "vLLM for who does not correct for it",
    TOY.replace("[policy]", '[policy]\nwriter = "vllm"').replace('"ppo"', '"options"'),
    '"vllm": another engine would write, and options has no importance ratio that corrects for it',
)
experiment(
    "a server without its address",
    "[policy]",
    '[policy]\nwriter = "server"',
    'policy: writer = "server" and a table [policy.server] with its url and model belong together',
)
experiment_file(
    "a server for who learns from it",
    TOY.replace("[policy]", '[policy.server]\nurl = "http://localhost:1/v1"\nmodel = "m"\n[policy]\nwriter = "server"'),
    '"server": which tokens a server drew is not known, and ppo learns from them: take best_of_n or reference',
)
experiment(
    "a copy of a model that is read module by module",
    "[policy]",
    '[policy]\nwriter_dtype = "bfloat16"\nfused = false',
    'writer_dtype = "bfloat16": fused is false: leave it out',
)
for line, name in (
    ('attention = "eager"', "attention"),
    ("gradient_checkpointing = true", "gradient_checkpointing"),
    ('writer_dtype = "int8"', "writer_dtype"),
):
    experiment(
        f"{name} of a table",
        TASK + "\n\n[policy]\n" + TOKENIZER,
        f'name = "count"\ntarget = 2\n\n[policy]\nmodel = "table"\ntokenizer = "alphabet:ab"\n{line}',
        f"line 10: {name}: a table of logits has no layers: leave it out",
    )
experiment(
    "a model larger than any memory",
    f"[policy]\n{TOKENIZER}",
    '[policy]\ntokenizer = "bytes"\nmodel = "big"',
    "GiB are free on cpu: take a smaller model",
    files={"big/config.json": HUGE, "big/model.safetensors": "never read"},
)
experiment(
    "no device of that name",
    "[policy]",
    '[policy]\ndevice = "gpu"',
    'device must be "auto", "cpu", "cuda", "cuda:N" or',
)
experiment("a device that is not here", "[policy]", '[policy]\ndevice = "cuda:99"', 'device "cuda:99" is not here, ')
if sys.platform != "darwin":
    experiment(
        "no GPU of Apple's", "[policy]", '[policy]\ndevice = "mps"', 'device "mps" is not here, torch finds no GPU of'
    )
experiment("no tokenizer", TOKENIZER, "", '[policy] model "tiny" needs a tokenizer')
experiment("an empty tokenizer", TOKENIZER, 'tokenizer = ""', "policy: tokenizer must have one or more characters")
experiment("an empty model", "[policy]", '[policy]\nmodel = ""', "policy: model must have one or more characters")
experiment("a symbol twice", "alphabet:ab=", "alphabet:aab", "one or more different symbols, got 'aab'")
experiment("no symbols", "alphabet:ab=", "alphabet:", "one or more different symbols, got ''")
experiment("no such tokenizer", "alphabet:ab=", "no/such", "tokenizer 'no/such' is not 'bytes', 'alphabet:...' or a")
experiment("no tokenizer in a folder", "alphabet:ab=", ".", ". has no tokenizer.json: name a folder that holds")
experiment("a damaged tokenizer", "alphabet:ab=", ".", "is not a tokenizer file", files={"tokenizer.json": "{"})
experiment("no such model folder", "[policy]", '[policy]\nmodel = "./no"', "model './no': there is no such folder")
experiment("no model in a folder", "[policy]", '[policy]\nmodel = "."', "not a model folder, config.json is missing")
experiment(
    "weights in pickle",
    "[policy]",
    '[policy]\nmodel = "."',
    "(pickled weights are not read: save them as safetens",
    files={"config.json": "{}", "pytorch_model.bin": "x"},
)
experiment("no such model", TOKENIZER, 'model = "no/such"', "model 'no/such' is no folder, run or shipped")
experiment(
    "another vocabulary", TOKENIZER, 'tokenizer = "bytes"\nmodel = "rlhf-env/chitchat"', "they do not belong toge"
)
experiment(
    "many prompts of a table", "[policy]", '[policy]\nmodel = "table"', '"table" answers one prompt, and the task'
)
experiment(
    "max_new_tokens = -5",
    TEXTS,
    "max_new_tokens = -5",
    "environment: max_new_tokens must be from 1 to 1,048,576, got -5",
)
experiment(
    "too large a length", TEXTS, "max_new_tokens = 2_000_000", "max_new_tokens must be from 1 to 1,048,576, got 2"
)
experiment(
    "too many texts", "num_envs = 8", "num_envs = 4_000_000_000_000", "num_envs must be from 1 to 1,048,576, got 4"
)
experiment(
    "too many tokens",
    TEXTS,
    "max_new_tokens = 1_000_000\nnum_envs = 1_000_000\n#",
    "environment.num_envs is set a second time, first on line 11",
)
experiment("a view", TEXTS, f'{TEXTS}\nview = "words"', "environment: view must be one of 'response', 'token', got")
experiment(
    "an action_length", TEXTS, f"{TEXTS}\naction_length = 9", "action_length must be at most 4 (max_new_tokens), got"
)
experiment(
    "three of the environment",
    TEXTS,
    'max_new_tokens = "many"\nnum_env = 3',
    "environment: max_new_tokens must be a whole number, got 'many'",
    "environment: no setting 'num_env'",
)
experiment("a budget of nothing", BUDGET, "", "budget: a budget needs at least one limit: updates, episodes")
experiment(
    "three budgets",
    BUDGET,
    "updates = -2\nepisodes = 0\nseconds = -0.0",
    "line 23, budget: updates must be at least 1, got -2",
    "line 24, budget: episodes must be at least 1, got 0",
    "line 25, budget: seconds must be above 0, got -0.0",
)
experiment("half a budget", BUDGET, "updates = 2.5", "budget: updates must be a whole number, got 2.5")
experiment("evaluation prompts", "prompts = 4", "prompts = 0", "evaluation: prompts must be from 1 to 1,048,576, got 0")

# ---------------------------------------------------------------- texts that are kept

for setting, said in {
    "of_evaluation = -1": "texts: of_evaluation must be at least 0, got -1",
    "rollouts_every = 0": "texts: rollouts_every must be at least 1, got 0",
    "megabytes = 5_000": "texts: megabytes must be from 1 to 4,096, got 5000",
    "of_rolout = 1": "texts: no setting 'of_rolout': did you mean 'of_rollout'?",
}.items():
    experiment(f"[texts] {setting}", "prompts = 4", f"prompts = 4\n[texts]\n{setting}", said)

# ---------------------------------------------------------------- stop strings

for wrong, said in {
    '"ab"': "stop must be a list, each a string, got 'ab'",
    "[3]": "stop[0] must be a string, got 3",
    '[""]': "stop is a list of strings with a character or more, got '' among them",
    "[" + '"a", ' * 33 + "]": "stop has 33 strings, and at most 32 are looked for",
    '["' + "a" * 201 + '"]': "stop has a string of 201 characters, and the longest has 200: 'aaa",
    '["\\ufffd"]': "with a character that stands for what is no text",
    '["User:"]': "stop has 'User:', which no text can hold: text 'User:' has symbols outside the alphabet 'ab='",
}.items():
    experiment(f"stop = {wrong[:12]}", TEXTS, f"{TEXTS}\nstop = {wrong}", said)

# ---------------------------------------------------------------- evaluations

for setting, said in {
    "samples = 0": "samples must be from 1 to 1,048,576, got 0",
    "samples = 1_000_000": "samples = 1,000,000 answers to 4 prompts are more than 1,048,576",
    "pass_at = [0]": "pass_at[0] must be at least 1, got 0",
    "samples = 4\npass_at = [1, 8]": "pass_at 8 needs samples = 8 or more answers to each prompt, and there are 4",
    "pass_at = [1]": "success = 'task': no part of the reward is called 'task'. Known: length",
    'pass_at = [1]\nsuccess = "lenght >= 0"': "is called 'lenght': did you mean 'length'?",
    'success = ">= 1"': "success = '>= 1' is no criterion: say a part of the reward, or \"PART >= NUMBER\"",
    'success = "length >= one"': "success = 'length >= one' compares with 'one', which is not a number",
    "decoding = { temprature = 1.0 }": "decoding: no setting 'temprature': did you mean 'temperature'?",
    "decoding = { top_p = 0.0 }": "decoding: top_p must be in (0, 1], got 0.0",
    "samples = 2\ndecoding = { top_k = 1 }": "samples = 2 answers to a prompt are all the same where decoding",
}.items():
    experiment(setting.replace("\n", ", "), "prompts = 4", f"prompts = 4\n{setting}", said)
