"""Rewards that change over a run, and those of some tasks alone."""

from __future__ import annotations

from wrong.table import AGENT, REWARD, TASK, TOY, experiment, experiment_file

LENGTH = "length = {{ target = 2, shaping = {{ {} }} }}"
MIXTURE = 'name = "mixture"\ntasks = { a = { name = "echo", length = 1 }, b = { name = "echo", length = 2 } }'

for shaping, said in {
    "schedul = [[0.0, 1.0]]": "reward 'length' shaping: no setting 'schedul': did you mean 'schedule'?",
    "schedule = []": "reward 'length' shaping: schedule must have one or more entries, got []",
    "schedule = [0.0]": "reward 'length' shaping: schedule[0] must be a list of 2: a finite number, a finite n",
    "schedule = [[0.5, 1.0], [0.5, 2.0]]": "schedule must have points in order, each later than the one",
    "schedule = [[0.0, nan]]": "must be a list of 2: a finite number, a finite number, got [0.0, nan]",
    "schedule = [[1.5, 1.0]]": "reward 'length' shaping: schedule must have shares of the budget from 0 to 1, got",
    'normalise = "batch"': "reward 'length' shaping: normalise must be one of 'group', 'running', got 'batch'",
    "by_task = true": "reward 'length' shaping: by_task is of normalise = \"running\"",
    "clip = [1.0, -1.0]": "reward 'length' shaping: clip must be a lower number and a higher one, got [1.0, -1.0]",
    "clip = [1.0]": "reward 'length' shaping: clip must be a list of 2: a finite number, a finite number, got [1.0]",
    "target = -0.1, schedule = [[0.0, 1.0]]": "target and schedule both set the weight: leave one out",
    "target = inf": "reward 'length' shaping: target must be a finite number, got inf",
    "target = 0.0, horizon = 0": "reward 'length' shaping: horizon must be at least 1, got 0",
    "target = 0.0, most = 0.0": "reward 'length' shaping: most must be above 0, got 0.0",
    'only_if = "task >= x"': "shaping: only_if = 'task >= x' compares with 'x', which is not a number",
    'only_if = "tsk >= 1"': "only_if = 'tsk >= 1': no other part is called 'tsk': did you mean 'task'?",
    'only_if = "length >= 1"': "reward 'length': only_if = 'length >= 1': no other part is called 'length'",
}.items():
    experiment(shaping, REWARD, f"task = 1.0\n{LENGTH.format(shaping)}", said)
experiment("shaping by number", REWARD, "length = { target = 2, shaping = 3 }", "shaping must be a table, got 3")
experiment("a total alone", REWARD, f"{REWARD}\ntotal = 1.0", "reward 'total' is how the sum of the others is paid")
experiment(
    "a steered total",
    REWARD,
    f'{REWARD}\ntotal = {{ shaping = {{ normalise = "running", target = 1.0 }} }}',
    "reward 'total' is how the sum is paid: only_if, schedule and target are of its parts",
)
experiment(
    "a steered KL penalty",
    REWARD,
    f"{REWARD}\nkl = {{ shaping = {{ target = 1.0 }} }}",
    "reward 'kl': the KL penalty has a controller of its own: target, without shaping",
)
experiment(
    "a clipped KL penalty",
    REWARD,
    f"{REWARD}\nkl = {{ shaping = {{ clip = [-1.0, 1.0] }} }}",
    "reward 'kl' is paid token by token: its shaping is a schedule, and nothing else",
)
experiment(
    "a part called like a line",
    REWARD,
    'length = { target = 2, shaping = { clip = [-1.0, 0.0] } }\n"length/shaping" = { plugin = "repetition" }',
    "reward 'length': what shaping changes in it is the line 'length/shaping', and a part has that name",
)
experiment(
    "shaped gold",
    "prompts = 4",
    "prompts = 4\nrewards = { length = { target = 2, shaping = { clip = [-1.0, 0.0] } } }",
    "reward 'length' is measured, and nobody is trained on it: shaping is of the parts of [rewards]",
)
experiment(
    "tasks without a mixture",
    REWARD,
    "task = { tasks = { a = 1.0 } }",
    "tasks of reward 'task' is of the tasks of a mixture, and Echo is none",
)
experiment(
    "shares without their name",
    AGENT,
    'name = "task_sampling"\nshares = { a = 1.0 }\nagent = { name = "ppo" }',
    'shares and by = "shares" go together: the one says that the other is meant',
)
for rewards, said in {
    "task = { tasks = { a = 1.0, c = 1.0 } }": "tasks of reward 'task' names no task of the mixture with 'c'",
    "task = { tasks = { a = 1.0 } }": "no part of the reward counts in the task 'b' of the mixture: name it in one",
    "task = 1.0\nkl = { tasks = { a = 1.0 } }": "reward 'kl' is the KL penalty, of which an objective has one",
}.items():
    experiment_file(rewards, TOY.replace(TASK, MIXTURE).replace(REWARD, rewards), said)
