"""The losses as tables: of `rlhf-env lab exact`, and as the page docs/losses.md, both made from the declarations.

rlhf-env lab exact --markdown > docs/losses.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from rlhf_env import plugins
from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.estimators import Batches, Placement
from rlhf_env.lab.studies.exact.losses import (
    FLIPPED,
    LossRow,
    pair_loss_rows,
    pair_losses,
    penalty_ends,
    token_loss_rows,
    token_losses,
)
from rlhf_env.lab.studies.exact.world import Objective
from rlhf_env.learning.losses.declaring import NamedPairLoss, NamedTokenLoss
from rlhf_env.settings import Chooses, hints_of, marks_of

_ENDS = (
    "left: of the way from the reference (100 %) to the exact optimum (0 %), where following the expected gradient "
    "ends, in the world of seven responses"
)


def loss_tables(objective: Objective, logits: Tensor, batches: Batches, seed: int) -> RenderableType:
    """Every token loss and every pair loss at the policy `logits` [S, V], and where the KL penalty's places end."""
    tokens = _table(
        "Token losses, as an agent uses them, with the KL penalty in the reward",
        token_loss_rows(objective, logits, batches, seed),
        f"cos, older texts: of texts that the reference wrote. {_ENDS}.",
    )
    pairs = _table(
        "Pair losses, on labels that err as Bradley and Terry say",
        pair_loss_rows(objective, logits, seed),
        f"Pairs that the policy wrote; where it ends, of pairs that the reference wrote. robust: {FLIPPED:.0%} of "
        f"labels are wrong beyond that. {_ENDS}; above 100 %, it is worse than the reference.",
    )
    ends = Table(title="Where RLOO ends, by the place of the KL penalty", title_justify="left")
    ends.add_column("KL penalty", no_wrap=True)
    ends.add_column("left", justify="right")
    for placement, left in penalty_ends(objective.beta, seed).items():
        ends.add_row(placement, _left(left))
    return Group(tokens, "", pairs, "", ends)


def _table(title: str, rows: Iterator[LossRow], caption: str) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("Loss", "Agent"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bias", "cos", "noise", "cos, older texts", "left"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.name, row.agent, *_cells(row))
    return table


def _cells(row: LossRow) -> list[str]:
    away = "" if row.away is None else f"{row.away:.2f}"
    return [f"{row.bias:.2f}", f"{row.cosine:.3f}", f"{row.noise:.1f}", away, _left(row.left)]


def _left(share: float) -> str:
    return f"{100 * max(share, 0.0):.1f} %"


# ---------------------------------------------------------------- the page

_HEAD = """\
# Losses

The objectives that people expect, as two tables of functions. `rlhf-env lab exact --markdown > docs/losses.md` makes
this page from what each declares, and measures each in a world so small that everything is a sum.

```toml
[agent]
name = "grpo"
loss = "dapo"                                          # by name, with its defaults
# loss = { name = "sapo", negative_temperature = 2.0 }   # with settings: docs/settings.md has them all
# loss = { name = "cispo", aggregation = "dr-grpo" }     # a token loss added up otherwise
# loss = { function = "mine.py:unclipped" }              # code of your own
```

Left out, an agent has its own loss, with the settings that it has for that. A loss of your own is a function of
tensors (`rlhf_env/learning/losses/declaring.py` says which), whose further parameters are its settings:

```python
# mine.py
import rlhf_env


@rlhf_env.TokenLoss(advantages="group", aggregation="token-mean")  # may be left out: then those of the agent
def unclipped(tokens, scale: float = 1.0):
    return -scale * tokens.advantages * tokens.log_ratio.exp()  # [B, L], one number for each token
```

Installed packages register theirs by the hooks `register_token_losses` and `register_pair_losses`, scripts by
`rlhf_env.register_token_loss` and `rlhf_env.register_pair_loss`.
"""

_TOKENS = """\
## Token losses

Of `grpo`, `rloo`, `ppo` and `reinforce`, as the table says. *Advantages* are what a loss multiplies: the agent's own
(`agent`), the return less its group's mean (`group`; `group std`: divided by the group's standard deviation, `group
mean`: by its mean reward), or the agent's own scaled over the batch (`batch std`). *Adds up* says how tokens become a
loss; "agent" means as the agent's own do. `advantages` and `aggregation` in the loss's table change both. None needs
the reference: the KL penalty is a part of the reward.
"""

_MEASURED = """\
Measured in the world of `rlhf-env lab exact` (%(size)s), with the KL penalty in the reward, as part of the agent
named. *bias* is |expected - exact| / |exact| gradient (a factor alone, with cos 1, is a matter of the learning rate),
*noise* the standard deviation of one batch in the same unit, *older texts* the cosine on texts that the reference
wrote: there the losses differ, at a first gradient step most of them do not. *left* is what is left of the way from
the reference (100 %%) to the exact optimum (0 %%) where following the expected gradient ends.
"""

_PAIRS = """\
## Pair losses

Of `dpo`. Those without a reference have settings in place of `beta`, the weight of the `kl` part, and ask the
reference nothing: leave `kl` out of `[rewards]`, and no text is read by the reference at all. (With a `kl` part, it
is measured, as the environment's objective says, and has no part in the loss.)
"""

_PAIRS_MEASURED = """\
Measured on pairs that the policy writes, labelled as Bradley and Terry say of the true reward; *left* is of pairs
that the reference wrote. Above 100 %%, it is worse than the reference. In the row of `robust`, %(flipped)s of the
labels are wrong beyond that. Only losses that read a label as a chance can end at the optimum of a reward; the others
answer to who wins, and not by how much.
"""

_PENALTY = """\
## The KL penalty in the loss

`kl_in_loss` of `grpo`, measured with RLOO's gradient. `k3-corrected` is k3 times the probability ratio (DeepSeek-AI
2025, arXiv 2512.02556, eq. 7), the default of TRL 1.16: it has k2's expected gradient, also on older texts. Each of
them is the gradient of each token's own divergence, and leaves out how a token changes the text after it; only the
penalty in the reward has that.
"""

_OVERLONG = """\
## Texts that are too long

`mask_overlong = true` of these agents learns nothing from an answer that the length limit cut (overlong filtering,
DAPO). The reward `overlong` is DAPO's soft punishment (eq. 13): 0 up to `longest - cache` tokens, and from there
evenly down to -1 at `longest`. TRL zeroes the tokens of such answers, too, and still counts the answers in the mean
over a batch; here that mean is over answers that have a token.
"""


def losses_page(objective: Objective, logits: Tensor, batches: Batches, seed: int) -> str:
    """The page docs/losses.md."""
    size = f"{objective.tree.responses} responses, groups of {batches.members.shape[1]}"
    tokens = {row.name: row for row in token_loss_rows(objective, logits, batches, seed)}
    pairs = {row.name: row for row in pair_loss_rows(objective, logits, seed)}
    ends: dict[Placement, float] = penalty_ends(objective.beta, seed)
    parts = [
        _HEAD,
        _TOKENS,
        _markdown(
            ("Loss", "Paper", "Equation", "Agents", "Advantages", "Adds up", "What it is for"),
            [_of_token_loss(loss) for loss in token_losses()],
        ),
        _MEASURED % {"size": size},
        _markdown(
            ("Loss", "Agent", "bias", "cos", "noise", "older texts", "left"),
            [(f"`{row.name}`", row.agent, *_cells(row)) for row in tokens.values()],
        ),
        _differences(token_losses()),
        _PAIRS,
        _markdown(
            ("Loss", "Paper", "Equation", "Needs", "What it is for"), [_of_pair_loss(loss) for loss in pair_losses()]
        ),
        _PAIRS_MEASURED % {"flipped": f"{FLIPPED:.0%}"},
        _markdown(
            ("Loss", "bias", "cos", "noise", "left"),
            [(f"`{row.name}`", *_cells(row)[:3], _left(row.left)) for row in pairs.values()],
        ),
        _differences(pair_losses()),
        _PENALTY,
        _markdown(("KL penalty", "left"), [(placement, _left(left)) for placement, left in ends.items()]),
        _OVERLONG,
    ]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _of_token_loss(loss: NamedTokenLoss) -> tuple[str, ...]:
    declared = loss.declared
    agents = ", ".join(agents_of("token loss", loss.name))
    return (
        f"`{loss.name}`",
        declared.paper,
        declared.equation,
        agents,
        declared.advantages,
        declared.aggregation or "agent",
        declared.purpose,
    )


def _of_pair_loss(loss: NamedPairLoss) -> tuple[str, ...]:
    declared = loss.declared
    needs = "reference" if declared.reference else "nothing"
    return f"`{loss.name}`", declared.paper, declared.equation, needs, declared.purpose


def _differences(losses: Sequence[NamedTokenLoss] | Sequence[NamedPairLoss]) -> str:
    """Where code and paper, or this and another library, differ."""
    lines = [f"- `{loss.name}`: {loss.declared.differs}." for loss in losses if loss.declared.differs]
    return "\n".join(["Where libraries and papers differ:", "", *lines])


def agents_of(kind: plugins.PluginKind, name: str) -> list[str]:
    """The built-in agents that take a loss."""
    found = []
    for entry in plugins.host():
        if entry.kind != "agent" or entry.origin != plugins.OWN:
            continue
        config: Any = getattr(entry.load(), "Config", None)
        marks = marks_of(hints_of(config).get("loss", object))
        if any(isinstance(mark, Chooses) and mark.kind == kind for mark in marks):
            try:
                config(loss=name)
            except ConfigError:
                continue
            found.append(entry.name)
    return found


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
