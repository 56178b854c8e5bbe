"""OpenAssistant Conversations (Köpf et al. 2023, 2304.07327): trees of messages, whose replies people put in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.dialogues import Messages
from rlhf_env.feedback.interchange.gathering import Located, Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_person, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.judgements import Judgement, Response
from rlhf_env.feedback.kinds import Ranking
from rlhf_env.types import JsonView

_ROLES = {"prompter": "user", "assistant": "assistant"}
_DEEPEST = 200  # turns of a conversation


def _tree(row: JsonView, reading: Reading) -> list[Judgement]:
    """Every set of ranked replies of a tree, from the root down."""
    made: list[Judgement] = []
    root = row.get("prompt")
    if not isinstance(root, Mapping):
        raise DataError("prompt: expected the message at the root of the tree")
    if root.get("deleted") is True:
        reading.passes_over("trees whose first message was deleted")
        return []
    open_nodes: list[tuple[Mapping[str, object], Messages]] = [(root, [])]
    while open_nodes:
        node, before = open_nodes.pop()
        fields = Fields(node, f"message {node.get('message_id')!r:.60}: ")
        role = _ROLES.get(str(node.get("role")))
        if role is None:
            fields.complain("role", f"{node.get('role')!r} is none of {', '.join(_ROLES)}")
        text = fields.text("text")
        replies = fields.objects("replies") if node.get("replies") is not None else ()
        fields.done()
        if len(before) > _DEEPEST:
            raise DataError(f"more than {_DEEPEST} turns")
        talk = [*before, {"role": role, "content": text}]
        made += _ranking(talk, replies, reading)
        open_nodes += ((reply.row, talk) for reply in reversed(replies) if reply.row.get("deleted") is not True)
    return made


def _ranking(talk: Messages, replies: Sequence[Fields], reading: Reading) -> list[Judgement]:
    placed: list[tuple[Response, int]] = []
    for reply in replies:
        if reply.row.get("rank") is None:
            if len(replies) > 1:
                reading.passes_over("replies without a rank beside others")
        elif reply.row.get("deleted") is True or reply.row.get("review_result") is False:
            reading.passes_over("ranked replies that were deleted or failed their review")
        elif reply.row.get("role") != "assistant":
            reading.passes_over("ranked replies of the prompter, which answer nothing that was asked")
        else:
            placed.append((_written(reply, reading), reply.whole("rank", 0, 10**6)))
            reply.done()
    if len(placed) < 2:
        if placed:
            reading.passes_over("ranked replies with no other left to compare them with")
        return []
    places = sorted({rank for _, rank in placed})
    ranks = tuple(1 + places.index(rank) for _, rank in placed)
    return [Ranking(prompt_of(talk), tuple(response for response, _ in placed), ranks, annotator_of(reading))]


def _written(reply: Fields, reading: Reading) -> Response:
    text, model = reply.text("text"), reply.words("model_name")
    if model or reply.row.get("synthetic") is True:
        return by_policy(text, model or "a model that is not named", reading)
    return by_person(text, reply.words("user_id", "a person who is not named"))


def _trees_of(rows: Iterator[Located], reading: Reading) -> list[Located]:
    """The messages of a flat file, in any order, as trees. A message whose parent is missing stays out, and says so."""
    known: dict[str, dict[str, object]] = {}
    units: list[Located] = []
    children: list[tuple[str, JsonView, dict[str, object]]] = []
    for where, row in rows:
        if isinstance(row, DataError) or not isinstance(row.get("message_id"), str):
            problem = row if isinstance(row, DataError) else DataError("message_id: expected text")
            units.append((where, problem))
            continue
        if row["message_id"] in known:
            units.append((where, DataError(f"message_id: {row['message_id']!r:.60} is there twice")))
            continue
        node = {**row, "replies": []}
        known[row["message_id"]] = node
        if row.get("parent_id") in (None, ""):  # a table has no null
            units.append((where, {"message_tree_id": row.get("message_tree_id"), "prompt": node}))
        else:
            children.append((where, row, node))
    for where, row, node in children:
        parent = known.get(str(row["parent_id"]))
        if parent is None:
            missing = f"parent_id: no message {row['parent_id']!r:.60} in this file: bring the whole tree"
            units.append((where, DataError(missing)))
        else:
            replies = parent["replies"]
            assert isinstance(replies, list)
            replies.append(node)
    return units


_SCHEMA = "oasst-data/oasst_data/schemas.py of LAION-AI/Open-Assistant at 504da5b"
_CARD = "huggingface.co/datasets/OpenAssistant/oasst1 at c6c1242: the most preferred message has rank 0"
_MESSAGE = (
    *columns_of(
        "card",
        text="a turn of the prompt, or a response",
        role="prompter is the user; only replies of the assistant are ranked here",
        rank=(
            "its place in a ranking of the replies to one message, 0 the best; without one it is passed over",
            "number",
        ),
    ),
    *columns_of(
        "schema",
        deleted=("true: left out, with all that answers it", "flag"),
        review_result=("false: left out of the ranking", "flag"),
        user_id="the author",
        synthetic=("true: a model is the author", "flag"),
        model_name="the author, where it is a model",
    ),
)
_REST = (
    *unread("schema", "created_date", "lang", "review_count", "tree_state"),
    *(PublishedColumn(name, "", "schema", "json") for name in ("labels", "emojis", "detoxify", "events")),
)

OASST_TREES = Layout(
    name="oasst-trees",
    sets="OpenAssistant/oasst1 and oasst2, files named .trees.jsonl.gz",
    known_by=("message_tree_id", "prompt"),
    columns=(
        PublishedColumn("prompt", "the message at the root; `replies` of each message are ranked", "card", "json"),
        *(PublishedColumn(f"prompt.{one.name}", one.becomes, one.source) for one in _MESSAGE),
        *unread("schema", "message_tree_id", "tree_state", "origin"),
    ),
    sources={"card": _CARD, "schema": _SCHEMA},
    read=_tree,
    fits=lambda row: isinstance(row["prompt"], Mapping) or str(row["prompt"]).startswith("{"),
)

OASST_MESSAGES = Layout(
    name="oasst-messages",
    sets="OpenAssistant/oasst1 and oasst2, Parquet and files named .messages.jsonl.gz",
    known_by=("message_id", "parent_id", "text", "role", "rank"),
    columns=(
        *columns_of("card", message_id="what `parent_id` refers to", parent_id="the message that it answers"),
        *_MESSAGE,
        *unread("card", "message_tree_id"),
        *_REST,
    ),
    sources={"card": _CARD, "schema": _SCHEMA},
    read=_tree,
    units=_trees_of,
)
