"""Commands, and what stands beside them."""

from __future__ import annotations

from wrong.table import GRID, TOY, command

command("trian toy.toml", "No such command 'trian'. Did you mean 'train'?")
command("lab exat", "No such command 'exat'. Did you mean 'exact'?")
command("plugins x", "unknown plugin 'x'")
command("plugins reward:lenght", "unknown reward 'lenght': did you mean 'length'?")
command("check reward:length target=3 --column x", "--column 'x' is not of the form NAME=TEXT or NAME:=JSON")
command("check reward:length target=3 --column x:=a", "what follows := is JSON, and 'a' is not")
command("check reward:length target=3 --column x=1 --column x:=2", "'x' is set twice")
command("check task:count --column answer=5", "--column answer: rewards read columns, and this is the task count")
command("check toy.toml --column answer=5", "--column answer=5 is for a reward: a file has the columns of its task")
command("plugins ppo x", "Got unexpected extra argument(s) (x)")
command("new reward", "Missing argument 'name'.")
command("new rewrd polite", "Invalid value for 'kind'")
command("new reward My-Reward", "'My-Reward' cannot name a Python module: small letters, digits and single underscores")
command("new reward length", "'length' is a reward of rlhf-env already, and one name is one reward: choose another")
command(
    "new task sorting",
    "rlhf_task_sorting is there already, and stays as it is",
    rlhf_task_sorting_IN_README_DOT_md="mine",
)
command("new agent mine --in text", "Invalid value for '--in'")
command("schema experimnt", "Invalid value for 'kind'")
command("train", "Missing argument 'file'. The experiment, a TOML file. (rlhf-env train --help says more)")
command("train no.toml", "cannot read no.toml: No such file or directory")
command("train toy.toml --sed 1", "No such option: --sed (Possible options: --seed) (rlhf-env train --help says more)")
command("train toy.toml --seed one", "Invalid value for '--seed'")
command("train toy.toml --seed 1.5", "Invalid value for '--seed'")
command("train toy.toml --seed -1", "--seed -1: seed must be from 0 to 1,099,511,627,775, got -1")
command("train toy.toml --seed 99999999999999999", "--seed 99999999999999999: seed must be from 0 to 1,099,511")
command(
    "annotate", "Missing option '--store'. The preference store, an SQLite file with items to judge. (rlhf-env annotate"
)
command("shrink rlhf-env/chitchat out", "Missing option '--layers'")
command("shrink rlhf-env/chitchat out --layers 0", "Invalid value for '--layers'")
command("shrink rlhf-env/chitchat out --layers 4", "layers: rlhf-env/chitchat has 4, and 4 are no fewer")
command(
    "shrink rlhf-env/chitchat out --layers 4 --hidden-size 100", "hidden_size: 100 must be less than 192, and heads"
)
command("shrink tiny out --layers 1", "'tiny' is made anew for each run: name a model")
command("shrink no/where out --layers 1", "no/where")
command("shrink rlhf-env/chitchat . --layers 2", ". is there already: name another folder")
command("train toy.toml --threads 0", "Invalid value for '--threads'")
command("train toy.toml --agent poo", "--agent poo: unknown agent 'poo': did you mean 'ppo'? Known:")
command(
    "train toy.toml --device tpu", '--device tpu: device must be "auto", "cpu", "cuda", "cuda:N" or "mps", got \'tpu\''
)
command("train toy.toml --device cuda:99", '--device cuda:99: device "cuda:99" is not here, ')
command("evaluate r --device cuda:99", 'device "cuda:99" is not here, ', r_IN_experiment_DOT_toml=TOY)
command("chat rlhf-env/chitchat --device cuda:99", 'device "cuda:99" is not here, ')
command("chat rlhf-env/chitchat --device GPU", 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", got \'GPU\'')
command(
    "preferences responses s.db --model rlhf-env/chitchat --prompts chitchat --device cuda:99",
    'device "cuda:99" is not here, ',
)
command("preferences responses s.db --model tiny --prompts count --device tpu", 'device must be "auto", "cpu", ')
command("train toy.toml --out toy.toml", "toy.toml: [Errno 17] File exists")
command("train out.toml", "'../../x-ppo-seed0' would lie outside of runs/", out_DOT_toml=TOY.replace("toy", "../../x"))
command("train abs.toml", "'/x-ppo-seed0' would lie outside of runs/", abs_DOT_toml=TOY.replace('"toy"', '"/x"'))
command(
    "train toy.toml --out r --resume",
    "r/experiment.toml cannot be read, so nothing says what ran here",
    r_IN_experiment_DOT_toml="[x",
)
command("train toy.toml --out r", "r already holds a run: choose another folder", r_IN_experiment_DOT_toml=TOY)
command("bench no.toml", "cannot read no.toml: No such file or directory")
command("bench out.toml", "'../x' is no name for a file", out_DOT_toml='name = "../x"\n[agents.ppo]\n')
command(
    "bench out.toml",
    "out.toml, line 1: agents must be a table, each a table, got 3",
    "out.toml, line 2: no setting 'naem': did you mean 'name'?",
    out_DOT_toml="agents = 3\nnaem = 1\n",
)
command("bench grid.toml --backend slurm", "Invalid value for '--backend'", grid_DOT_toml=GRID)
command("bench grid.toml --backend ray --jobs 2", "--jobs is for processes of this machine: with", grid_DOT_toml=GRID)
command("bench grid.toml --address auto", "--address: for --backend ray alone", grid_DOT_toml=GRID)
command(
    "bench grid.toml --gpus-per-run 1 --memory-per-run 2",
    "--gpus-per-run, --memory-per-run: for --backend ray alone",
    grid_DOT_toml=GRID,
)
command("bench grid.toml --backend ray --cpus-per-run 0", "cpus per run must be above 0, got 0", grid_DOT_toml=GRID)
command("bench grid.toml --backend ray --cpus-per-run many", "Invalid value for '--cpus-per-run'", grid_DOT_toml=GRID)
command("lab overoptimization --backend ray --jobs 2", "--jobs is for processes of this machine: with")
command("lab overoptimization --backend ray --gpus-per-run 2.5", "gpus per run must be a share, as 0.5, or a whole")
command("pipeline demo --backend ray --jobs 2", "--jobs is for processes of this machine: with")
command("pipeline demo --address auto --dry-run", "--address: for --backend ray alone")
command("report folder", "folder: no results/*.json in it; is this the folder of a benchmark?")
command("report text", "text: no results/*.json in it")
command("report r", "r/results/a--b--seed-0.json: not a JSON file", **{"r_IN_results_IN_a--b--seed-0_DOT_json": "{"})
command("evaluate folder", "folder holds no run: it has no experiment.toml")
command("evaluate text", "text holds no run: it has no experiment.toml")
command("export folder o", "folder holds no run: it has no experiment.toml")
command("export no o", "no: there is no such folder (RUN is the folder of a run that rlhf-env train made)")
command(
    "export r o",
    "r has no checkpoint yet: train further, with a smaller checkpoint_every",
    r_IN_experiment_DOT_toml=TOY,
)
command("export r o", "r holds no run: it has no experiment.toml", r_IN_experiment_DOT_toml_IN_x="")
command("export r o", "r/experiment.toml, line 1: ", r_IN_experiment_DOT_toml="[x")
command(
    "export r o",
    "its agent 'reference' trains no model: name the one it wrote with, 'tiny'",
    r_IN_experiment_DOT_toml=TOY.replace('"ppo"\nlr = 1e-2', '"reference"'),
)
command(
    "export rm o", "rm holds a reward model, whose head transformers has no class for", rm_IN_reward_model_DOT_json="{}"
)
command("export m o", "m is a model already, and no run: copy the folder", m_IN_config_DOT_json="{}")
command("export m o --adapter", "m holds a PEFT adapter, and no run: copy", m_IN_adapter_config_DOT_json="{}")
command("export r o --private", "--private is about the repository that --push makes")
command("export r o --dtype int8", "Invalid value for '--dtype'")
command("export r o --checkpoint first", "Invalid value for '--checkpoint'")
command("chat no", "model 'no' is no folder, run or shipped model, and the hub did not give it")
command("chat tiny", "model 'tiny' is made anew for each run: name a run that trained it")
command("chat r", "r has no checkpoint yet: train further", r_IN_experiment_DOT_toml=TOY)
command("chat rlhf-env/chitchat --rewards", "rlhf-env/chitchat is no run: there is no reward and no reference to show")
command("chat rlhf-env/chitchat --greedy --temperature 2", "--greedy takes the likeliest token at any --temperature")
command("chat rlhf-env/chitchat --temperature 0", "Invalid value for '--temperature'")
command("chat rlhf-env/chitchat --max-new-tokens 0", "Invalid value for '--max-new-tokens'")
command("preferences responses s.db", "say where the answers come from: a FILE that has them, or --model and --prompts")
command("preferences responses s.db x.jsonl --model tiny", "say where the answers come from")
command("preferences responses s.db --model tiny", "--model answers prompts: --prompts FILE")
command("preferences responses s.db --model tiny --prompts cuont", "unknown task 'cuont': did you mean 'count'?")
command("preferences responses s.db --model tiny --prompts count", 'model "tiny" needs a tokenizer')
command("preferences responses s.db --model tiny --prompts no.jsonl", "cannot read no.jsonl")
command("preferences responses s.db --model tiny --human me --prompts count", "--human is about the answers of a FILE")
for wrong in ("x", "0", "nan", ","):
    command(f"preferences responses s.db --model tiny --prompts count --temperatures {wrong}", "temperatures")
command("scorecard folder s.db --held-out x", "--held-out x: a share such as 0.2 or 1/6 is needed")
command("annotate --store no.db", "preference store no.db: there is no such file")
command("annotate --store s.db --port 70000", "Invalid value for '--port'")
command("annotate --store s.db --lease nan", "lease must be a finite number, got nan")
command("preferences show folder", "preference store folder: there is no such file")
command("preferences ask s.db --kind raking", "unknown kind of judgement 'raking': did you mean 'ranking'?")
command("preferences ask s.db --kind criteria --criteria a,b,a", "criteria: 'a' stands there twice")
command("preferences ask s.db --kind criteria", "criteria: names go with the kind 'criteria'")
command("preferences ask s.db --criteria a", "criteria: names go with the kind 'criteria'")
command("preferences ask s.db --overlap 0", "Invalid value for '--overlap'")
command("preferences ask s.db --kind abstention", "unknown kind of judgement 'abstention'")
command("preferences controls no.db text", "text: judgements come as .jsonl")
command("preferences controls s.db no.jsonl", "cannot read no.jsonl: No such file")
command("preferences comments no.db", "preference store no.db: there is no such file")
command("annotate --store s.db --guidelines no.md", "guidelines no.md: No such file or directory")
command("annotate --store s.db --guidelines folder", "guidelines folder: Is a directory")
command("preferences export s.db o --format xml", "format: 'xml' is none of jsonl, csv, trl")
command("preferences simulate s.db text", "text, line 1: Expected '=' after a key")
command("preferences evaluate s.db text", "two or more sources are needed, each with a name of its own: say NAME=PATH")
command("check reward:lenght", "unknown reward 'lenght': did you mean 'length'?")
command("check task:cuont", "unknown task 'cuont': did you mean 'count'?")
command("check agent:grop", "unknown agent 'grop': did you mean 'grpo'?")
command("check task:count name=echo", "name=echo: task:count already names the task")
command("check agent:ppo name=grpo", "name=grpo: agent:ppo already names the agent")
command("check reward:length plugin=http", "plugin=http: reward:length already names the reward")
command("check reward:length target", "'target' is not of the form KEY=VALUE")
command("check reward:length target=3 target=4", "'target=4': 'target' is set twice")
command("check reward:length tagret=3", "no setting 'tagret': did you mean 'target'?")
command("check toy.toml a=1", "a=1: settings are for reward:, task: and agent:NAME; a file has its own")
command("check \x1b[31mx\u202e.toml", "rlhf-env: cannot read x.toml: No such file or directory")
command("check model:", "model: names no model: a folder, a run or a hub name")
command("check model:./no", "model './no': there is no such folder")
command("check model:folder", "model 'folder': not a model folder, config.json is missing")
command("check model:tiny", "model 'tiny' is made when it is trained: name a folder, a run or a hub model")
command("check model:./no a=1", "a=1: a model has no settings here")
command("check model:r", "r has no checkpoint yet: train further", r_IN_experiment_DOT_toml=TOY)
command("check families lama", "'lama' is no family of causal language models in transformers (near it: ")
SIMULATED = '[gold]\nname = "length"\ntarget = 3\n[annotator]\nname = "simulated"\n'
for old, new, told in (
    ('"length"', '["length"]', "line 1: expected a table [gold] with a name"),
    ("[gold]", "[[gold]]", "line 1: expected a table [gold] with a name"),
    ("[annotator]", "[annotater]", "expected a table [annotator] with a name"),
    ("target = 3", 'target = "x"', "line 3: reward 'length': target must be a whole number, got 'x'"),
    ("target = 3", "target = 3\nweight = nan", "line 4: reward 'length': weight must be a finite number, got nan"),
    ('"length"', '"lenght"', "line 1: unknown reward 'lenght': did you mean 'length'?"),
    ('"length"\ntarget = 3', '"kl"', "line 1: reward 'kl': the setting 'reference' is required"),
    ('"simulated"', '"simulatd"', "line 5: unknown annotator 'simulatd': did you mean 'simulated'?"),
    (
        '"simulated"',
        '"simulated"\ntemperature = inf',
        "line 6: annotator 'simulated': temperature must be a finite num",
    ),
    (
        '"simulated"',
        '"simulated"\nthresholds = [3, 2, 1, 0]',
        "line 6: annotator 'simulated': thresholds must be 4 rising numbers, got [3",
    ),
):
    command("preferences simulate s.db a.toml", told, a_DOT_toml=SIMULATED.replace(old, new))
command(
    "preferences responses s.db --model tiny --prompts chitchat --held-out 0.2",
    "--held-out is about a FILE of prompts: the task chitchat sets its own aside",
)
command("preferences simulate s.db no.toml", "cannot read no.toml: No such file or directory")
command("preferences evaluate s.db one=text", "two or more sources are needed, each with a name of its own")
command("preferences verify s.db --model folder", "folder is not a reward model: there is no reward_model.json")
command("preferences verify no.db --model folder", "preference store no.db: there is no such file")
command(
    "preferences import s.db no.jsonl text", "cannot read no.jsonl: No such file", "text: judgements come as .jsonl"
)
command(
    "preferences import text a.jsonl",
    "preference store text: file is not a database",
    a_DOT_jsonl='{"prompt":"a","chosen":"b","rejected":"c"}',
)
command("preferences tournament no.db", "preference store no.db: there is no such file")
command("annotate --store s.db --lease inf", "lease must be a finite number, got inf")
command(
    "annotate --store s.db --host 0.0.0.0 --remote",
    "names must say how the page is reached, 0.0.0.0 is no name: give one (--name)",
)
command("annotate --store s.db --host 0.0.0.0 --remote --name a/b", "names must be names of hosts, got 'a/b'")
command(
    "annotate --store s.db --host 256.0.0.1", "host 256.0.0.1 is reached by other machines: say --remote if they may"
)
for share in ("nan", "1/0", "1e400", "1e-99999999", "-1", "2", "inf/inf"):
    command(
        f"scorecard folder a.jsonl --held-out {share}", "", a_DOT_jsonl='{"prompt":"a","chosen":"b","rejected":"c"}'
    )
command("evaluate r", "r has no checkpoint yet: train further", r_IN_experiment_DOT_toml=TOY)
command("evaluate r", "r/experiment.toml, line 1: Expected ']'", r_IN_experiment_DOT_toml="[x")
command(
    "report r",
    "r/results/a--b--seed-0.json: must hold a JSON object",
    **{"r_IN_results_IN_a--b--seed-0_DOT_json": "[]"},
)
command("report r", "NaN is not JSON (write null for what", **{"r_IN_results_IN_a--b--seed-0_DOT_json": "NaN"})
command("train toy.toml --threads 99999999999999999999", "Invalid value for '--threads'")
command(
    "train toy.toml --agent curriculum", "--agent curriculum: [agent] curriculum: the setting 'levels'", "wraps another"
)
command("lab exact --beta inf", "beta must be positive, got inf")
command("lab exact --symbols 27", "Invalid value for '--symbols'")
command("lab referee", "no wheel of trl, verl, openrlhf, skyrl, areal, torchtune in build/referee: `make referee`")
command("lab referee --only verl", "no wheel of verl in build/referee: `make referee` downloads and unpacks them")
command("lab referee --only rlhf-env --wheels", "requires an argument")
command("lab labels --quick --out text", "cannot work in text: File exists: name another place")
command("lab labels --quick --out text/x", "cannot work in text/x: Not a directory: name another place")
command("lab labels --seeds 0", "Invalid value for '--seeds'")
command("lab memory no.toml", "cannot read no.toml: No such file or directory")
command(
    "lab memory toy.toml", "'tiny' is made for each run, and too small to be counted: name a folder, a run or a hub"
)
command("lab memory toy.toml --processes 0", "Invalid value for '--processes'")
command("lab overoptimization --jobs 0", "Invalid value for '--jobs'")
command("lab regularisation --seeds 0", "Invalid value for '--seeds'")
command("lab agents --seeds 0", "Invalid value for '--seeds'")
command("lab brake --seeds 1", "Invalid value for '--seeds'")
command("lab brake --jobs 0", "Invalid value for '--jobs'")
command("lab brake --without-libraries --study text", "holds no finished runs of an over-optimisation study")
command("lab brake --without-libraries --out text", "cannot write in the folder ")
command("lab transfer --size bass", "--size bass: there is no such size: did you mean 'base'?")
command(
    "lab transfer --model nowhere", "nowhere holds no model: `python examples/real_model/fetch.py` makes the folder"
)
command("lab transfer --shipped --size tiny", "--shipped runs nothing: leave out --size")
command("lab transfer --size tiny --out text", "cannot write in the folder text")
command("lab transfer --jobs 0", "Invalid value for '--jobs'")
command("lab laws clip-hihg", "there is no law 'clip-hihg', did you mean 'clip-high'?")
command("lab laws clip-low nothing", "there is no law 'nothing' (rlhf-env lab laws --list names them)")
command("lab laws --list clip-low", "--list shows all laws, and takes no names")
command("lab laws clip-low --markdown", "--markdown is a form of the list")
command("lab laws clip-low --plan --seeds 20", "--plan is for named laws")
command("lab laws --plan", "--plan is for named laws")
command("lab laws clip-low --seeds 1", "Invalid value for '--seeds'")
command("lab laws std-of-groups --out text", "cannot work in text: File exists: name another place")
command("demo --seeds 0", "Invalid value for '--seeds'")
command("check agent:ppo clip=inf", "[agent] ppo: clip must be a finite number, got inf")
command("check reward:length target=3 weight=nan", "reward 'length': weight must be a finite number, got nan")
command("check reward:ensemble model=folder penalty=inf", "penalty must be a finite number, got inf")
command("lab exact --beta nan", "beta must be positive, got nan")
command("lab exact --symbols 26 --longest 9", "more than can be summed over in reasonable time")
command(
    "evaluate folder --pass-at one", "--pass-at one: whole numbers with commas between them are needed, such as 1,8"
)
command(
    "evaluate folder --greedy --temperature 1", "--greedy draws nothing: leave out --temperature, --top-k and --top-p"
)
command("evaluate folder --samples 0", "Invalid value for '--samples'")

PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
TIE = '{"question_id": "1", "model_a": "x", "model_b": "y", "winner": "tie", "judge": "j", "conversation_a": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "A"}], "conversation_b": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "B"}]}\n'  # noqa: E501
BASE = "--base rlhf-env/chitchat"
command(
    "reward-model",
    "Missing argument 'store'",
    "Missing option '--base'",
    "Missing option '--out'",
)
command(f"reward-model no.db {BASE} --out o", "no.db: there is no such file: a preference store, or a file of judg")
command(
    f"reward-model a.jsonl {BASE} --out o --device tpu --dtype float64",
    "--device tpu: device must be",
    a_DOT_jsonl=PAIR,
)
command(f"reward-model s.db {BASE} --out o", "s.db: nobody has judged anything in it yet: `rlhf-env annotate")
command(f"reward-model text {BASE} --out o", "text: judgements come as .jsonl")
command(f"reward-model a.jsonl {BASE} --out o", "a.jsonl: everything was judged on one prompt, so no", a_DOT_jsonl=PAIR)
command(
    f"reward-model a.jsonl {BASE} --out o",
    "nothing to learn from: 1 comparisons, and none of them prefers or rates a response: nothing preferred: tie (1)",
    a_DOT_jsonl=TIE,
)
command(f"reward-model a.jsonl {BASE} --out o", "a.jsonl: not JSON: Expecting", a_DOT_jsonl="[1\n")
command(
    "reward-model a.jsonl --base folder --out o --held-out 0",
    "--base folder: model folder folder: there is no config.json",
    a_DOT_jsonl=PAIR,
)
command(
    "reward-model a.jsonl --base ./no --out o --held-out 0",
    "--base ./no: model folder no: there is no config",
    a_DOT_jsonl=PAIR,
)
command(
    "reward-model no.db --base folder --out text",
    "--out text: text is a file: name another folder",
    "--base folder: model folder folder: there is no config.json in it",
    "no.db: there is no such file",
)
command(
    f"reward-model a.jsonl {BASE} --out folder --held-out 0",
    "folder holds something else than a reward model",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out text/x --held-out 0",
    "text/x cannot be made: text is no folder",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --members 0",
    "--members 0: members must be at least 1, got 0",
    a_DOT_jsonl=PAIR,
)
command(f"reward-model a.jsonl {BASE} --out o --members two", "Invalid value for '--members'", a_DOT_jsonl=PAIR)
command(
    f"reward-model a.jsonl {BASE} --out o --held-out x", "--held-out x: a share such as 0.2 or 1/6", a_DOT_jsonl=PAIR
)
command(
    f"reward-model a.jsonl {BASE} --out o --held-out 1",
    "--held-out 1: held_out must be in [0, 1), got 1.0",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --votes most", "--votes most: votes must be one of 'each'", a_DOT_jsonl=PAIR
)
command(
    f"reward-model a.jsonl {BASE} --out o --loss likert",
    "--loss likert: likert fits none of the judgements (1 comparisons)",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --loss margins",
    "--loss margins: margins fits none of the judgements (1 comparisons; no judgement states a margin)",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --criterion good",
    "--criterion good: nothing was judged by 'good'",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --without me",
    "rlhf-env: --without me: nobody called 'me' judged anything",
    a_DOT_jsonl=PAIR,
)
command(f"reward-model a.jsonl {BASE} --out o --fairness 1", "groups must be given with fairness", a_DOT_jsonl=PAIR)
command(
    f"reward-model a.jsonl {BASE} --out o --fairness 1 --groups w.csv --held-out 0",
    "--groups w.csv: w.csv: names: two or more different groups are compared, got ('men',)",
    a_DOT_jsonl=PAIR,
    w_DOT_csv="men\nhe\n",
)
command(f"reward-model a.jsonl {BASE} --out o --wanted folder", "drawn must be given with wanted", a_DOT_jsonl=PAIR)
command(
    f"reward-model a.jsonl {BASE} --out o --wanted rlhf-env/chitchat --drawn rlhf-env/chitchat --held-out 0",
    "importance weights are of pairs of texts that a policy wrote: 2 responses have no token ids",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --set epochs",
    "--set epochs: 'epochs' is not of the form NAME=VALUE",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --set epoch=1",
    "--set epoch=1: no setting 'epoch': did you mean 'epochs'?",
    a_DOT_jsonl=PAIR,
)
command(
    f"reward-model a.jsonl {BASE} --out o --seed 1 --set seed=1", "--set seed=1: 'seed' is set twice", a_DOT_jsonl=PAIR
)
command(f"reward-model a.jsonl {BASE} --out o --config no.toml", "cannot read no.toml", a_DOT_jsonl=PAIR)
command(
    f"reward-model a.jsonl {BASE} --out o --config f.toml",
    "f.toml, line 1: Expected",
    a_DOT_jsonl=PAIR,
    f_DOT_toml="[x",
)
command(
    f"reward-model a.jsonl {BASE} --out o --config f.toml",
    "f.toml, line 2: epochs must be at least 0, got -1",
    "f.toml, line 3: no setting 'member': did you mean 'members'?",
    a_DOT_jsonl=PAIR,
    f_DOT_toml="[reward_model]\nepochs = -1\nmember = 2\n",
)
command(
    f"reward-model a.jsonl {BASE} --out o --held-out 0",
    "a.jsonl:1: prompt and response have",
    a_DOT_jsonl='{"prompt": "a", "chosen": "' + "word salad " * 200 + '", "rejected": "c"}\n',
)
command(
    "preferences responses s.db --model rlhf-env/chitchat --prompts chitchat --stop <|end|>",
    "stop has '<|end|>', and no text shows the special token '<|end|>'",
)
command("chat rlhf-env/chitchat --stop <|end|>", "stop has '<|end|>', and no text shows the special token '<|end|>'")
command("watch", "Missing argument 'folder'.")
command("watch nowhere", "nowhere: there is no such folder (rlhf-env train makes runs/NAME)")
command("watch toy.toml", "toy.toml is a file: name the folder of a run or of a benchmark")
command("watch .", ". is neither a run nor a grid: it has no experiment.toml (rlhf-env train) and no benchmark.toml")
command("watch . --port 65536", "Invalid value for '--port'")
command("report r", "r: no results/*.json in it; is this the folder of a benchmark?")
