"""Names of plugins, and their settings."""

from __future__ import annotations

from wrong.table import AGENT, BUDGET, REWARD, TASK, TOY, experiment, experiment_file

experiment("no task name", TASK, "", "a task table needs a name, got {}")
experiment("a task by number", TASK, "name = 3", "a task table needs a name, got {'name': 3}")
experiment("a task by path", '"echo"', '"os:system"', "unknown task 'os:system'")
experiment(
    "three unknown plugins",
    f"[rewards]\n{REWARD}\n\n[agent]\n{AGENT}",
    '[rewards]\nlenght = 1.0\n\n[agent]\nname = "pppo"',
    "unknown reward 'lenght': did you mean 'length'?",
    "unknown agent 'pppo': did you mean 'ppo'?",
)
experiment("a task's key", "length = 2\n", "lenght = 2\n", "task 'echo': no setting 'lenght': did you mean 'length'?")
for wrong in ('"x"', "true", "2.0", "nan", "[]", "{}"):
    told = "task 'echo': length must be a whole number, got "
    experiment(f"length = {wrong}", "length = 2\n", f"length = {wrong}\n", told)
experiment("a length of -1", "length = 2\n", "length = -1\n", "task 'echo': length must be at least 1, got -1")
experiment(
    "a prompt outside the alphabet",
    '"alphabet:ab="\n',
    '"alphabet:ab"\n',
    *["outside the alphabet 'ab': '='"] * 4,
    lines=range(3, 4),
)
experiment(
    "prompts longer than the context",
    "max_prompt_tokens = 4",
    "max_prompt_tokens = 2",
    *["the environment takes 2"] * 4,
    lines=range(3, 4),
)
for value, said in {
    "[]": "task 'prompts': prompts must have one or more entries, got []",
    '"abc"': "task 'prompts': prompts must be a list, each a string, got 'abc'",
    "[1]": "task 'prompts': prompts[0] must be a string, got 1",
    '[""]': "prompt 'prompts/0' has no token: the first response token needs one before it",
}.items():
    experiment(f"prompts = {value}", TASK, f'name = "prompts"\nprompts = {value}', f"{said}")
experiment("no rewards", REWARD, "", "a reward mix needs at least one part")
for value in ('"abc"', "true", "[1]"):
    experiment(f"a reward = {value}", REWARD, f"length = {value}", "length: a weight or a table of settings is needed")
experiment("a reward by number", REWARD, "x = { plugin = 3 }", "reward 'x': plugin must be a string, got 3")
experiment("a reward by path", REWARD, 'x = { plugin = "os:system" }', "unknown reward 'os:system'. Known:")
experiment("a reward's key", REWARD, "length = { taget = 2 }", "no setting 'taget': did you mean 'target'?")
experiment("a reward without target", REWARD, "length = {}", "reward 'length': the setting 'target' is required")
for value in ('"two"', "nan", "2.5", "[2]", "true"):
    told = "reward 'length': target must be a whole number, got "
    experiment(f"target = {value}", REWARD, f"length = {{ target = {value} }}", told)
experiment("target = -2", REWARD, "length = { target = -2 }", "reward 'length': target must be at least 1, got -2")
for value in ("nan", "inf", '"x"', "true", "[]"):
    weighted = f"length = {{ weight = {value}, target = 2 }}"
    experiment(f"weight = {value}", REWARD, weighted, "reward 'length': weight must be a finite number, got ")
experiment(
    "a gold reward", "prompts = 4", "prompts = 4\nrewards = { lenght = 1.0 }", "unknown reward 'lenght': did you"
)
experiment("no agent", AGENT, "", "[agent] needs a name")
experiment("an agent by number", AGENT, "name = 1", "[agent] needs a name")
experiment("an agent by path", AGENT, 'name = "os:system"', "unknown agent 'os:system'. Known:")
experiment(
    "three of an agent",
    "lr = 1e-2",
    'lr = -1\nclip = "x"\nganma = 1',
    "line 21: [agent] ppo: clip must be a finite number, got 'x'",
    "line 22: [agent] ppo: no setting 'ganma': did you mean 'gamma'?",
    "line 20: [agent] ppo optimization: lr must be above 0, got -1",
)
for value, said in {
    '"abc"': "lr must be a finite number, got 'abc'",
    "nan": "lr must be a finite number, got nan",
}.items():
    experiment(f"lr = {value}", "lr = 1e-2", f"lr = {value}", said)
for size in (-1, 0, 1):
    experiment(f"a group of {size}", AGENT, f'name = "grpo"\ngroup_size = {size}', "[agent] grpo: group_size ")
experiment("a group of 3", AGENT, 'name = "rloo"\ngroup_size = 3', "group_size 3 does not divide the batch of 8 rows")
MIX = 'ptx_data = { name = "prompts", prompts = ["ab=", "a"] }'
experiment("a mix of nothing", "lr = 1e-2", "ptx_coefficient = 0.5", "ptx_coefficient above 0 and ptx_data belong toge")
experiment("a mix that weighs nothing", AGENT, f'name = "grpo"\n{MIX}', "ptx_coefficient above 0 and ptx_data belong")
experiment(
    "a text of one token",
    AGENT,
    f'name = "rloo"\nptx_coefficient = 0.5\n{MIX}',
    "ptx_data, prompts/1: a text of 1 tokens has none to predict",
)
experiment(
    "texts without end",
    AGENT,
    'name = "rloo"\nptx_coefficient = 0.5\nptx_data = { name = "echo" }',
    "makes prompts for ever: ptx_data needs a task with a list of texts",
)
experiment(
    "a mix for several writers",
    AGENT,
    f'name = "options"\nptx_coefficient = 0.5\n{MIX}',
    "here several write",
)
experiment("no pairs", AGENT, 'name = "sft+rm"', "the setting 'preferences' is required")
experiment(
    "a share of everything",
    AGENT,
    'name = "sft+rm"\npreferences = "votes.jsonl"\ndemonstration_share = 1',
    "demonstration_share must be in (0, 1), got 1",
)
experiment(
    "a way of its own", AGENT, 'name = "sft+rm"\npreferences = "votes.jsonl"\nway = "both"', "way must be one of"
)
experiment(
    "votes that are not there",
    AGENT,
    'name = "sft+rm"\npreferences = "no-such-votes.jsonl"',
    "no-such-votes.jsonl",
)
experiment(
    "adapters without adapters",
    AGENT,
    'name = "sft+rm"\npreferences = "votes.jsonl"\nway = "adapters"',
    "needs [policy.lora]",
)
experiment_file(
    "two tables of pairs",
    'preferences = "votes.jsonl"\n' + TOY.replace(AGENT, 'name = "sft+rm"\npreferences = "votes.jsonl"'),
    "sft+rm imitates, and has its own pairs: leave out `preferences` but for that in [agent]",
)
experiment("nobody wrapped", AGENT, 'name = "curriculum"\nlevels = [1]', "curriculum wraps another agent: agent = {")
experiment(
    "starts of levels by progress",
    AGENT,
    'name = "curriculum"\nlevels = [1]\nby = "progress"\nstarts = [0]\nagent = { name = "ppo" }',
    "starts are for by = budget and by = updates, not progress",
)
experiment(
    "a slow average that is quick",
    AGENT,
    'name = "curriculum"\nlevels = [1]\nby = "progress"\nslow = 0.5\nagent = { name = "ppo" }',
    "fast must be below slow = 0.5, got 0.5",
)
experiment(
    "options paid for being alike",
    AGENT,
    'name = "options"\ndiversity_coefficient = -0.1',
    "diversity_coefficient must be at least 0, got -0.1",
)
experiment("a letter of two goals", TASK, 'name = "segments"\ngoals = ["ab", "bc"]', "goals must have no letter twice")
experiment("sums in base 0", TASK, 'name = "addition"\nbase = 0', "base must be from 1 to 10, got 0")
experiment(
    "one answer to a prompt", AGENT, 'name = "dynamic_sampling"\nagent = { name = "ppo" }', "has no spread: take an"
)
experiment("one task", AGENT, 'name = "task_sampling"\nagent = { name = "ppo" }', "has no tasks to choose from")
experiment(
    "what is never drawn",
    AGENT,
    'name = "prompt_sampling"\nexplore = 0.0\ncorrection = 1.0\nagent = { name = "ppo" }',
    "explore must be above 0 with a correction",
)
experiment(
    "no demonstrations",
    AGENT,
    'name = "backward_curriculum"\npart = "length"\nagent = { name = "ppo" }',
    "column 'completion' holds no demonstrated answer in the first 100 prompts",
)
experiment(
    "no stages",
    AGENT,
    'name = "backward_curriculum"\npart = "length"\nstages = 0\ncolumn = "answer"\nagent = { name = "ppo" }',
    "stages must be at least 1, got 0",
)
experiment(
    "a temperature of 0", AGENT, 'name = "temperature"\nstart = 0\nagent = { name = "ppo" }', "start must be above 0"
)
experiment(
    "a temperature without a ratio",
    AGENT,
    'name = "temperature"\nagent = { name = "options" }',
    "Options has writers of its own: take an agent whose policy writes its texts",
)
experiment("a floor alone", AGENT, 'name = "rloo"\nentropy_floor = 0.5', "entropy_coefficient must be above 0")
experiment(
    "a floor that is too high",
    AGENT,
    'name = "ppo"\nentropy_coefficient = 0.1\nentropy_floor = 9.0',
    "entropy_floor must be below",
)
experiment("an end alone", AGENT, 'name = "grpo"\nentropy_end = 0.5', "entropy_end belongs to a schedule")
experiment("n-grams of 0", REWARD, "novelty_ngrams = { n = 0 }", "reward 'novelty_ngrams': n must be at least 1")
experiment(
    "runs of letters",
    REWARD,
    'novelty_rnd = { unit = "letters" }',
    "reward 'novelty_rnd': unit must be one of 'tokens', 'words', got 'letters'",
)
experiment("no memory", REWARD, "novelty_embedding = { memory = 0 }", "memory must be at least 1, got 0")
experiment("no potential", REWARD, "shaping = 1.0", "reward 'shaping': the setting 'potential' is required")
experiment(
    "an unknown potential",
    REWARD,
    'shaping = { potential = { name = "lenght" } }',
    "unknown reward 'lenght': did you mean 'length'?",
)
experiment(
    "a potential of groups",
    REWARD,
    'shaping = { potential = { name = "diversity" } }',
    "potential must be a reward of one text by itself",
)
experiment("nobody replayed", AGENT, 'name = "replay"', "replay wraps another agent: agent = {")
experiment("a priority", AGENT, 'name = "replay"\npriority = "td"\nagent = { name = "ppo" }', "priority must be one of")
experiment("no bytes", AGENT, 'name = "replay"\nmax_bytes = 0\nagent = { name = "ppo" }', "max_bytes must be")
experiment(
    "an old text for options",
    AGENT,
    'name = "replay"\nagent = { name = "options" }',
    "learns wrongly from texts of an older",
)
experiment("a wrapped number", AGENT, 'name = "curriculum"\nlevels = [1]\nagent = 3', "curriculum: agent needs a name")

for value in ("inf", "nan", "-inf", '"x"', "true"):
    experiment(f"clip = {value}", "lr = 1e-2", f"clip = {value}", "[agent] ppo: clip must be a finite number, got ")
experiment("inf for a limit", BUDGET, "seconds = inf", "budget: seconds must be a finite number, got inf")
experiment(
    "inf for a temperature", TASK, f"{TASK}\n[policy.sampling]\ntemperature = inf", "sampling: temperature must be a f"
)
experiment_file(
    "inf for a patience's delta", "min_delta = inf\n" + TOY, "line 1: min_delta must be a finite number, got inf"
)
experiment(
    "a string of many lines before it",
    TASK,
    f'{TASK}\nalphabet = """\n[agent]\nlr = 3\n"""\nlenght = 2',
    "task 'echo': no setting 'lenght': did you mean 'length'?",
)
experiment("a task within", TASK, 'name = "validation"\ntask = { name = "echo", lenght = 2 }', "no setting 'lenght'")
experiment(
    "a list of tasks", TASK, 'name = "mixture"\ntasks = [\n  "echo",\n  { name = "eco" },\n]', "unknown task 'eco'"
)
experiment(
    "tasks by number",
    TASK,
    'name = "mixture"\ntasks = 3',
    "tasks must be a list (each a string or a table) or a table (",
)
experiment(
    "weights of nan",
    TASK,
    'name = "mixture"\ntasks = ["echo"]\nweights = [nan]',
    "weights must be a list (each a finit",
)
experiment(
    "an agent within an agent",
    AGENT,
    'name = "curriculum"\nlevels = [1]\n[agent.agent]\nname = "ppo"\nclip = "x"',
    "line 23: [agent] curriculum: agent ppo: clip must be a finite number, got",
)
experiment(
    "a game whose master is a model on the network",
    TASK,
    'name = "textarena"\ngame = "GuessWho-v0"',
    "GuessWho-v0 asks a model over the network, whose answers no seed repeats",
)

GRPO = 'name = "grpo"\n'
for loss, said in {
    '"gspoo"': "loss: unknown token loss 'gspoo': did you mean 'gspo'?",
    "{}": "loss: a token loss needs a name: one of cispo, clip, clip-cov, dapo, dr-grpo, gspo, maxrl, reinforce++",
    '{ name = "sapo", temperature = 2.0 }': "loss: token loss 'sapo': no setting 'temperature': did you mean",
    '{ name = "cispo", cap = -1 }': "loss: token loss 'cispo': cap must be above 0, got -1",
    '{ name = "cispo", floor = 6.0 }': "loss: token loss 'cispo': floor must be below cap = 5.0, got 6.0",
    '{ name = "dapo", importance_cap = 1.1 }': "loss: token loss 'dapo': importance_cap must be above 1 + the clip = 1",
    '{ name = "clip-cov", lowest = 7.0 }': "loss: token loss 'clip-cov': lowest must be below highest = 5.0, got 7.0",
    '{ name = "gspo", aggregation = "mean" }': "loss: token loss 'gspo': aggregation must be one of 'token-mean', 'seq",
    '{ name = "gspo", advantages = "mine" }': "loss: token loss 'gspo': advantages must be one of 'agent', 'group', ",
    '{ function = "nowhere.py:f" }': "loss: cannot read nowhere.py: No such file or directory",
    '{ name = "gspo", function = "f.py:f" }': "loss: name and function are both set: name is that of a registered",
    "3": "loss must be a string or a table, got 3",
}.items():
    experiment(f"loss = {loss}", AGENT, f"{GRPO}loss = {loss}", said)
experiment(
    "settings of grpo's own loss",
    AGENT,
    f'{GRPO}loss = "sapo"\nclip = 0.1\nimportance = "sequence"\naggregation = "token-mean"',
    "aggregation belongs to grpo's own loss: leave it out; what this loss can be set to stands in loss = { name = 's",
    "importance belongs to grpo's own loss: leave it out",
    "clip belongs to grpo's own loss: leave it out",
)
for agent in ("ppo", "rloo", "reinforce"):
    said = f"loss: 'maxrl' multiplies advantages of the kind 'group mean', and {agent} has 'agent'"
    experiment(f"maxrl with {agent}", AGENT, f'name = "{agent}"\nloss = "maxrl"', said)
experiment("a token loss for dpo", AGENT, 'name = "dpo"\nloss = "clip"', "loss: unknown pair loss 'clip'")
for loss, said in {
    'loss = "sigmoyd"': "loss: unknown pair loss 'sigmoyd': did you mean 'sigmoid'?",
    'loss = { name = "simpo", gama = 0.5 }': "loss: pair loss 'simpo': no setting 'gama': did you mean 'gamma'?",
    'loss = { name = "orpo", weight = -1.0 }': "loss: pair loss 'orpo': weight must be at least 0, got -1.0",
    'loss = "hinge"\nlabel_smoothing = 0.1': "label_smoothing belongs to the losses sigmoid and robust: leave it out",
    'loss = "sppo"\nlabels = "bradley-terry"': "labels 'bradley-terry' belong to the losses sigmoid and robust: leave",
    'loss = "cpo"\nmargin = "offset"': "margin belongs to the losses sigmoid and ipo: leave it out with cpo",
    'loss = "simpo"\nlength_normalised = true': "length_normalised is what simpo does by itself: leave it out",
}.items():
    experiment(f"dpo with {loss!r}", AGENT, f'name = "dpo"\n{loss}', said)
experiment(
    "overlong", REWARD, "overlong = { longest = 4, cache = 5 }", "reward 'overlong': cache must be at most longest = 4"
)
experiment("overlong, none", REWARD, "overlong = { longest = 4 }", "reward 'overlong': the setting 'cache' is required")

# ---------------------------------------------------------------- distillation

LARGE = 'teacher = "rlhf-env/chitchat"'
for given, said in {
    "": "teacher is needed: a model's folder or name",
    'divergence = "sequence"': "teacher is needed",
    f'{LARGE}\ndivergence = "kl"': "divergence must be one of 'sequence', 'forward', ",
    f'{LARGE}\ndivergence = "sequence"\non_policy = 0.5': "on_policy 'sequence' learns the teacher's",
    f'{LARGE}\ndivergence = "sequence"\ntemperature = 2.0': "temperature is of distributions",
    f'{LARGE}\ndivergence = "forward"\nbeta = 0.1': "beta is of 'jsd', and the divergence is 'forw",
    f"{LARGE}\nbeta = 1.0": "beta must be",
    f"{LARGE}\non_policy = 1.5": "on_policy must be",
    f"{LARGE}\non_policy = 1.0\nbest_of = 4": "best_of is of the teacher's texts",
    'divergence = "sequence"\nbest_of = 4\nteacher_dtype = "auto"': "teacher_dtype is a teacher's, and none is named",
    LARGE: "teacher rlhf-env/chitchat has another tokenizer than the policy (token 0 is ",
    'teacher = "tiny"': "teacher 'tiny' is new and random, and teaches nothing",
}.items():
    experiment(f"distill: {given}", AGENT, f'name = "distill"\n{given}', said)
experiment("a teacher's reward without a teacher", REWARD, "teacher = 1.0", "teacher")
experiment(
    "a teacher's reward of other tokens", REWARD, 'teacher = { teacher = "rlhf-env/chitchat" }', "has another tokenizer"
)
