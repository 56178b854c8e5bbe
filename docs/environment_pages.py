"""The pages about the environments' ids, out of what Gymnasium's registry, the classes and a made environment say."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping

import gymnasium as gym

import rlhf_env  # registers the ids
from rlhf_env.declared import meanings
from rlhf_env.envs.infos import Info
from rlhf_env.envs.text_vector_env import OPTIONS, TextVectorEnv
from rlhf_env.plugins import host
from rlhf_env.reference import in_markdown

_ONE_ACTION = {1: "one token", None: "a whole response"}
_PAGE = """\
# {id}

Text generation; one action is {one_action}. A row writes one text: the prompt stands in the observation, each step
appends tokens to it, and the text's reward comes when it has ended.

## Making one

```python
import gymnasium as gym
import rlhf_env

text = dict(tokenizer="alphabet:ab=", max_new_tokens=4)
env = gym.make("{id}", task={{"name": "echo", "length": 2}}, **text)
envs = gym.make_vec(  # natively batched
    "{id}", num_envs=64, vectorization_mode="vector_entry_point", task="echo", **text
)
```

The arguments:

{arguments}

A file of settings has the same under `[task]`, `[rewards]`, `[policy]` (the tokenizer) and
[`[environment]`](../../settings.md), whose `view` chooses between the ids.

## Spaces

With `tokenizer="alphabet:ab="` (V = {vocabulary}), `max_new_tokens=4` and `max_prompt_tokens=8`:

{spaces}

`input_ids` are padded on the right to `max_prompt_tokens + max_new_tokens`; `attention_mask` is 1 on the text, prompt
included. {in_an_action}Where a part of the reward needs to know how likely the agent found its action, as the KL
penalty does, an action is `{{"tokens": ..., "probs": ...}}`, with a probability in (0, 1] for each token.

## Reward, and the end of a text

`terminated` is true at the end token, a stop string, the task's own end, and the length limit, which is part of the
task. `truncated` is true where something outside cut the text, such as Gymnasium's `TimeLimit` or `max_episode_steps`,
and where no part of the reward had anything to say. The reward is paid with the text's last token, or when the last of
its group has ended where a part compares the texts of a group; before, it is 0.

## What `info` holds

{info}

The vector form has an array over the rows for each, and under `_key` which rows have one. In the autoreset mode
"SameStep", what a text ended with is in `final_obs` and `final_info`.

## Options of `reset`

{options}

Options stay in force until a reset that gives options or a seed. One that neither the environment nor the task knows is
an error.

## Versions

`v0` is the first, and the only one in rlhf-env {version}. As is usual with Gymnasium, a change after which the same
seed and the same actions give other observations, rewards or ends comes under a new id, `v1`.
"""
_WHOLE = """\
In an action, the value V, the vocabulary's size, means "nothing here", and what follows an end token is ignored. """


def pages() -> Iterator[tuple[str, str]]:
    ids = sorted(id for id in gym.registry if id.startswith("rlhf_env/"))
    for id in ids:
        yield f"environments/{_file(id)}.md", _page(id)
    links = "\n".join(f"- [{id}]({_file(id)}.md): {_ONE_ACTION[_action_length(id)]} a step" for id in ids)
    toc = "\n".join(map(_file, ids))
    text = (
        f"# Environments\n\nOne machine under {len(ids)} ids. What differs is what one action is: the same tokens give "
        f"the same episodes and rewards under each.\n\n{links}\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    )
    yield "environments/index.md", text


def _file(id: str) -> str:
    return id.partition("/")[2]


def _action_length(id: str) -> int | None:
    length = gym.spec(id).kwargs["action_length"]
    assert length is None or isinstance(length, int)
    return length


def _page(id: str) -> str:
    length, said = _action_length(id), meanings(TextVectorEnv)
    arguments = []
    for name, parameter in inspect.signature(TextVectorEnv).parameters.items():
        default = length if name == "action_length" else parameter.default
        where = " Of `make_vec` alone." if name in ("num_envs", "autoreset_mode") else ""
        meaning = _cell(said[name][:1].upper() + said[name][1:]) + where
        arguments.append(f"| `{name}` | `{getattr(default, 'value', default)!r}` | {meaning} |")
    keys = meanings(Info)
    options = [*(f"| `{key}` | {_cell(meaning)} |" for key, meaning in OPTIONS.items()), *_of_tasks()]
    return _PAGE.format(
        id=id,
        one_action=_ONE_ACTION[length],
        arguments=_table(("argument", "default", "meaning"), arguments),
        vocabulary=_vocabulary(id),
        spaces=_table(("", "one text", "three side by side"), _spaces(id)),
        in_an_action=_WHOLE if length is None else "",
        info=_table(("key", "meaning"), [f"| `{key}` | {_cell(keys[key])} |" for key in Info.__annotations__]),
        options=_table(("option", "meaning"), options),
        version=rlhf_env.__version__,
    )


_SMALL: Mapping[str, object] = {"tokenizer": "alphabet:ab=", "max_new_tokens": 4, "max_prompt_tokens": 8}


def _vocabulary(id: str) -> int:
    with gym.make(id, **_SMALL) as env:
        return env.unwrapped.tokenizer.vocab_size


def _spaces(id: str) -> Iterator[str]:
    env = gym.make(id, **_SMALL)
    envs = gym.make_vec(id, num_envs=3, vectorization_mode="vector_entry_point", **_SMALL)
    for name in ("observation_space", "action_space"):
        yield f"| `{name}` | {_shown(getattr(env, name))} | {_shown(getattr(envs, name))} |"
    env.close()
    envs.close()


def _shown(space: gym.Space[object]) -> str:
    if isinstance(space, gym.spaces.Dict):
        return "<br>".join(f"`{key}`: {_shown(inner)}" for key, inner in sorted(space.spaces.items(), reverse=True))
    return f"`{space}`"


def _of_tasks() -> Iterator[str]:
    """Options of the tasks that need no extra, and whose they are."""
    whose: dict[str, list[str]] = {}
    for entry in host():
        names = getattr(entry.load(), "option_names", ()) if entry.kind == "task" and not entry.needs else ()
        for name in names:
            whose.setdefault(name, []).append(entry.name)
    for name, tasks in sorted(whose.items()):
        links = ", ".join(f"[{task}](../tasks/{task}.md)" for task in sorted(tasks))
        yield f"| `{name}` | How difficult prompts are, as these tasks say: {links}, and others on their pages. |"
    yield "| `weights` | The shares of a [mixture](../tasks/mixture.md), which takes its tasks' options as well. |"


def _table(head: tuple[str, ...], rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *rows])


def _cell(text: str) -> str:
    return in_markdown(text).replace("|", "\\|")
