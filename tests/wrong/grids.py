"""Grids."""

from __future__ import annotations

from wrong.table import GRID, command, grid

for table, told in {
    "tasks = 3": "tasks must be a table, each a table, got 3",
    "seeds_ = 3": "no setting 'seeds_': did you mean 'seeds'?",
    'optima = { echo = "x" }': "optima.echo must be a finite number, got 'x'",
    "optima = { ecco = 1.0 }": "optima.ecco: no task of this name, only echo",
    "tuning = 3": "tuning must be a table, got 3",
    "tuning = { budget = nan }": "tuning: budget must be a finite number, got nan",
    "tuning = { seeds = 0 }": "tuning: seeds must be at least 1, got 0",
    "title = 3": "title must be a string, got 3",
    "reward_model = 3": "reward_model must be a table, got 3",
    "reward_model = { promts = 9 }": "[reward_model]: no setting 'promts': did you mean 'prompts'?",
    "reward_model = { prompts = 0 }": "[reward_model]: prompts must be at least 1, got 0",
    "reward_model = { temperatures = [1.0, nan] }": "[reward_model]: temperatures[1] must be a finite number, got nan",
    "reward_model = { temperatures = [1.0] }": "[reward_model]: temperatures must have at least 2 entries, got [1.0]",
    "reward_model = { held_out_pairs = 2.0 }": "[reward_model]: held_out_pairs must be in (0, 1), got 2.0",
    "reward_model = { learning_rate = inf }": "[reward_model] reward_model: learning_rate must be a finite n",
}.items():
    grid(table, table, told, ahead=True)
for table, told in {
    '[agents.x]\nname = "nope"': "unknown agent 'nope'",
    "[agents.x]\nname = 3": "[agent] needs a name",
    '[agents."a/b"]\nname = "ppo"': "'a/b' is no name for a file",
    '[agents.y]\nname = "ppo"\nlr = -1': "[agent] ppo optimization: lr must be above 0, got -1",
    '[tasks."../x"]': "'../x' is no name for a file",
    "[tasks]\na = 3": "tasks.a must be a table, got 3",
    "[tasks.a]\nenvironment = 3": "task a: environment must be a table, got 3",
    '[tasks.a]\ntask = "echo"': "task a: task must be a table, got 'echo'",
    "[tasks.a.environment]\nnum_envs = 0": "environment: num_envs must be from 1 to 1,048,576, got 0",
    "[tasks.a.agents]\nppo = 3": "tasks.a.agents.ppo must be a table, got 3",
    "[tasks.a.agents.nope]\nlr = 1": "tasks.a.agents.nope: no row of this name, only ppo",
    "[rows.pppo]\nrewards = { length = 1 }": "rows.pppo: no row of this name: did you mean 'ppo'?",
    "[rows.ppo]\nbudget = { updates = 1 }": "rows.ppo.budget: rows are compared on the same budget; it goes under",
    "[rows.ppo.policy]\nmodle = 3": "modle",
    "[tasks.a]\nrows = 3": "tasks.a.rows must be a list, each a string, got 3",
    "[tasks.a]\nrows = []": "tasks.a.rows must have one or more entries, got []",
    '[tasks.a]\nrows = ["pppo"]': "tasks.a.rows: no row is called 'pppo': did you mean 'ppo'?",
    '[tasks.a.agents.ppo]\nlr = "x"': "[agent] ppo optimization: lr must be a finite number, got 'x'",
    '[tasks.a.task]\nname = "echo"\nlenght = 3': "task 'echo': no setting 'lenght'",
    "[tasks.a.rewards]\nlenght = 3": "unknown reward 'lenght': did you mean 'length'?",
}.items():
    grid(table, table, told)
    grid(f"{table}, bench", table, told, word="bench")
for reads in ("train", "pipeline"):
    command(
        f"{reads} g.toml",
        "are read here: rlhf-env bench g.toml",
        g_DOT_toml=f"{GRID}\n[agents.ppo]\n",
    )
command("bench toy.toml", "toy.toml is an experiment, and grids are read here: rlhf-env train toy.toml")
