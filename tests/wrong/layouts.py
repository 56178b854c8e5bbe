"""Files of published preference sets, and what is asked of them."""

from __future__ import annotations

from wrong.table import command, judgements

SHP = '{"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}'
WEBGPT = '{"question": "q", "answer_0": "x", "answer_1": "y", "score_0": 1, "score_1": -1}'
PAIR = '{"prompt": "p", "chosen": "a", "rejected": "b"}'

command(
    "preferences import s.db a.jsonl --layout shp2", "unknown layout 'shp2': it is one of hh-rlhf,", a_DOT_jsonl=SHP
)
command(
    "preferences import s.db a.jsonl --layout shp",
    "a.jsonl:2: labels: missing, and the layout shp has history, human_ref_A, human_ref_B, labels; this row has",
    a_DOT_jsonl=f'{SHP}\n{{"history": "p", "human_ref_A": "a", "human_ref_B": "b"}}\n',
)
command(
    "preferences import s.db a.csv --layout webgpt",
    "a.csv:2: unknown column 'Score_1' (likely 'score_1')",
    a_DOT_csv="question,answer_0,answer_1,score_0,Score_1\nq,x,y,1,-1\n",
)
command(
    "preferences import s.db a.jsonl --layout shp --limit 1 --sample 1", "--limit and --sample: the first rows or a"
)
command(
    "preferences import s.db a.jsonl --criterion kindness",
    "a.jsonl: nothing was judged by the criterion 'kindness'; it has 'overall'",
    a_DOT_jsonl=SHP,
)
judgements(
    "columns of two layouts",
    f"{SHP[:-1]}, {WEBGPT[1:]}",
    "a.jsonl:1: this row has the columns of the layouts shp (history, human_ref_A, human_ref_B, labels) and webgpt (",
)
judgements(
    "columns of a layout beside a pair",
    f"{PAIR[:-1]}, {WEBGPT[1:]}",
    "a.jsonl:1: this row has the columns of the layouts webgpt (question, answer_0, answer_1, score_0, score_1) and",
)
judgements(
    "two layouts in one file",
    f"{SHP}\n{WEBGPT}\n{SHP}\n{PAIR}\n",
    "a.jsonl:2: this row is in the layout webgpt, and the file began in shp: one file holds one layout, split it",
    "a.jsonl:4: this row is in the layout trl-pairs, and the file began in shp",
)
judgements("a layout after pairs", f"{PAIR}\n{SHP}\n", "a.jsonl:2: this row is in the layout shp, and the file began")
judgements(
    "shp: four wrong columns",
    f'{SHP}\n{{"history": null, "human_ref_A": 3, "human_ref_B": "b", "labels": "A"}}\n',
    "a.jsonl:2: history: expected text, got null",
    "a.jsonl:2: human_ref_A: expected text, got the number 3",
    "a.jsonl:2: labels: expected true or false, got 'A'",
)
judgements(
    "webgpt: a list of Python in a table",
    "question,answer_0,answer_1,score_0,score_1\n\"{'full_text': 'q'}\",x,y,1,-1\n",
    "a.csv:2: question: a list or an object in a table must be JSON, got",
    name="a.csv",
)
judgements(
    "oasst: a reply without its tree",
    '{"message_id": "m", "parent_id": "t", "text": "x", "role": "assistant", "rank": 0}',
    "a.jsonl:1: parent_id: no message 't' in this file: bring the whole tree",
)
judgements(
    "nothing but battles of several turns",
    '{"id": 1, "prompt": ["q", "r"], "response_a": ["a", "b"], "response_b": ["c", "d"], "winner_model_a": 1, '
    '"winner_model_b": 0, "winner_tie": 0}',
    "a.jsonl: nobody has judged anything in it: passed over: battles of several turns",
)
judgements(
    "damaged gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\0", "a.jsonl.gz: begins as gzip and is damaged", name="a.jsonl.gz"
)
