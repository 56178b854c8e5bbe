"""How to mend what a check has found: one sentence for each rule of a kind of plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rlhf_env.errors import ContractError

OF_REWARDS: Mapping[str, str] = {
    "raised": "give every text a number, the empty one and those without a word too (`max(len(words), 1)`); None says "
    "nothing about a text",
    "count": "return one number for each episode, in their order; a list or an array of float64",
    "finite": "look for a division by 0 and a logarithm of 0, and say what such a text is worth",
    "range": "mend the formula (a length that counts the end token, a share above 1?), or the `low` and `high` it says",
    "deterministic": "let nothing but the text decide: no clock, no count of calls, no order of a set, no dice",
    "pure": "change copies of what is handed over: others read the same episodes",
    "batch mates": "score each text by itself. A reward that compares the answers to one prompt has `group_rewards` "
    "instead; one that needs the whole batch says `needs_batch = True`. A model inside rounds differently beside a "
    "longer text: score in float64, or ask `check_reward` for a larger `tolerance`",
    "memory": "score against what is known, and learn in `observe(episodes)`; `state_dict` holds all that was learned",
}
OF_TASKS: Mapping[str, str] = {
    "size": "`size` is how many prompts there are; None where they have no end",
    "prompt": "return `rlhf_env.Prompt(id=..., text=..., meta={...})`",
    "pure": "let index and options alone decide: draw from `np.random.default_rng(index)`, count no calls",
    "ids": "make the id of what the prompt asks, such as `f'mytask/{text}'`",
    "encodes": "a prompt has a token at least, and characters that the tokenizer knows",
    "held_out": "let the prompt itself say which part it is in (a hash of its text), as `rlhf-env new task` shows",
    "score": "give every text a number, the empty one too; None says nothing about a text. No clock, no count of calls "
    "and no random number has a part in it",
    "reply": "return a string, which the environment writes next, messages, or None where the conversation ends; the "
    "agent's last words are `episode.turns[-1]`, and may be the empty string",
    "action_mask": "return bool[vocabulary], True for what may come next, the end token where nothing else may",
    "option_names": "one name is written ('level',), with its comma",
}
OF_AGENTS: Mapping[str, str] = {
    "options": "`begin` returns {} or options such as {'group_size': 8}",
    "decision": "`Decision.of(setup.policy.write(observation, setup.action_length))` has what is wanted",
    "log-probabilities": "state those of the policy that wrote, in float64, with no temperature or mask of your own on "
    "top; an agent whose texts others write says `policy_writes = False`",
    "determinism": "draw from `setup.stream('what for')` and from the policy; a generator without a seed, a clock and "
    "the order of a set differ from run to run",
    "learns": "is the loss minimised (its sign), has it a gradient (no `.detach()`, no `.item()` in it), does the "
    "optimizer step, is the learning rate large enough? An agent that is not to learn says `trains = False`",
}


@contextmanager
def mended(remedies: Mapping[str, str]) -> Iterator[None]:
    """A broken rule inside is told with its remedy."""
    try:
        yield
    except ContractError as error:
        error.add_remedy(remedies.get(error.rule, ""))
        raise


def own_generator(who: str, drew: list[str]) -> str:
    """Instead of the global generators that `who` drew from, by name."""
    building = who == "the constructor"
    agent = building or who.endswith("()")
    own = "`setup.stream('what for')`" if agent else "`np.random.default_rng(seed)`"
    if who == "the task":
        own = "`np.random.default_rng(index)`"
    ways = [f"draw from {own} instead of {name}" for name in drew if name != "torch"]
    if "torch" in drew and building:
        ways.append(
            "a new layer draws its weights from torch's generator: make it under "
            "`with setup.engine.seeded(setup.seed):`"
        )
    elif "torch" in drew and agent:
        ways.append(
            "dropout draws from torch's generator while a network is in training mode: call `policy.eval()` before the "
            "policy reads (it has gradients all the same), and `.eval()` of networks of your own; where dropout is "
            "wanted, or a layer is made, do it under `with setup.engine.seeded(seed):`; hand `torch.rand` and "
            "`torch.multinomial` a `generator=` of your own"
        )
    elif "torch" in drew:
        ways.append(
            "dropout draws from torch's generator while a network is in training mode: call `.eval()` of the model "
            "when it is loaded; hand `torch.rand` and the like a `generator=` of your own"
        )
    return "; ".join(ways)
