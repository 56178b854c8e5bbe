"""Prompts, judgements, responses, stores."""

from __future__ import annotations

from rlhf_env.lab.evaluation.preparing import prepare
from wrong.table import BAD, TOY, Bad, database, judgements, link, prompts, responses, store

prompts("nothing there", link("nowhere"), "cannot read a.jsonl: No such file or directory")
prompts("a folder", None, "cannot read a.jsonl: Is a directory")
prompts("an empty file", "", "a.jsonl: no prompts: the file is empty")
prompts("blank lines", "\n\n", "a.jsonl: no prompts: the file is empty")
prompts("another ending", '{"prompt": "a"}', "a.txt: the name of a file of prompts ends in one of .jsonl", name="a.txt")
prompts(
    "a number beyond 64 bits",
    '{"prompt": "a", "x": 1e999}\n',
    "a.jsonl, line 1: this JSON cannot be read: 1e999 is larger than any number of 64 bits",
)
prompts(
    "ten kinds of bad line",
    '{"text": "a"}\n{"prompt": "fine"}\n[1]\n{"prompt": null}\n{"prompt": 3}\n{"prompt": " "}\n{"prompt": []}\n'
    '{"messages": [{"role": "user"}]}\n{"prompt": "a", "prompt": "b"}\n{"prompt": "a", "x": NaN}\n{bad\n',
    "a.jsonl, line 1: no field 'prompt' (or 'messages'), it has 'text'",
    "a.jsonl, line 3: expected an object",
    "a.jsonl, line 4, field 'prompt': expected a text, got null",
    "a.jsonl, line 5, field 'prompt': expected a text, got int",
    "a.jsonl, line 6, field 'prompt': it has no text",
    "a.jsonl, line 7, field 'prompt': no message asks for an answer",
    "a.jsonl, line 8, field 'messages': message 1, 'content': expected a text, got null",
    "a.jsonl, line 9: this JSON cannot be read: an object has the field 'prompt' more than once",
    "a.jsonl, line 10: this JSON cannot be read: NaN is not a number",
    "a.jsonl, line 11: not JSON: ",
)
prompts(
    "the same in every line", "{}\n" * 30, "line 1: no field 'prompt' (or 'messages'), it has none (and 29 more lines)"
)
prompts("twenty and more", '{"prompt": null}\n' * 30, *["expected a text, got null"] * 20, "and 1 more")
prompts("not UTF-8", b'{"prompt": "\xff"}\n', "a.jsonl, line 1: not UTF-8: byte 0xff at position 13")
prompts("a line of 4 MiB", '{"prompt": "' + "a" * 2**22 + '"}', "a.jsonl, line 1: 4,194,318 bytes, a line may have")
prompts(
    "brackets too deep", '{"prompt": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 1: this JSON cannot be read: maximum"
)
prompts(
    "csv: no column", "a,b\n1,2\n", "a.csv, line 2: no field 'prompt' (or 'messages'), it has 'a', 'b'", name="a.csv"
)
prompts(
    "csv: a column misspelt", "Prompt\nHi\n", "a.csv, line 1: unknown column 'Prompt' (likely 'prompt')", name="a.csv"
)
prompts(
    "csv: semicolons", "prompt;level\nHi;1\n", "a.csv, line 1: the columns are set apart by semicolons", name="a.csv"
)
prompts(
    "csv: semicolons, other names",
    "Frage;Antwort\nWie?;So\n",
    "a.csv, line 1: the columns are set apart by semicolons: save the table with commas",
    name="a.csv",
)
judgements(
    "csv: a column misspelt",
    "Prompt,chosen ,rejected\nq,a,b\n",
    "a.csv:1: unknown column 'Prompt' (likely 'prompt'), 'chosen ' (likely 'chosen')",
    name="a.csv",
)
judgements("csv: semicolons", "prompt;chosen;rejected\nq;a;b\n", "a.csv:1: the columns are set apart by", name="a.csv")
judgements(
    "csv: one bad byte",
    b"prompt,chosen,rejected\nq,a,\xff\nq,a,a\n",
    "a.csv:2: not UTF-8",
    "a.csv:3: chosen equal",
    name="a.csv",
)
judgements(
    "csv: a field that is too long",
    "prompt,chosen,rejected\nq,a," + "b" * (2**22 + 1) + "\n",
    "a.csv:2: a field of more than 4,194,304 characters",
    name="a.csv",
)
judgements(
    "calls of tools",
    '{"prompt": [{"role": "user", "content": "1"}], "rejected": "b", '
    '"chosen": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]}',
    "calls of tools are not read",
)
judgements(
    "a picture in a prompt",
    '{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"}',
    "a part of the type 'image': only text is read",
)
judgements(
    "tools that are no schemas",
    '{"prompt": [{"role": "user", "content": "1"}], "tools": [1], "chosen": "a", "rejected": "b"}',
    "tools: expected a list of JSON schemas",
)
judgements(
    "demonstrations", '{"conversations": [{"from": "human", "value": "q"}]}', "demonstrations, and no judgement of them"
)
judgements(
    "a battle without a winner",
    '{"model_a": "x", "model_b": "y", "winner": "z"}',
    "winner: 'z' is none of model_a",
    "conversation_a: missing",
    "conversation_b: missing",
)
prompts("csv: a column twice", "prompt,prompt\n1,2\n", "more than one column is named 'prompt'", name="a.csv")
prompts("csv: a field missing", "prompt,b\n1\n", "a.csv, line 2: 1 fields, the header has 2", name="a.csv")
prompts("csv: a quote not closed", 'prompt,b\n"1,2\n', "a.csv, line 2: not CSV", name="a.csv")
judgements("nothing there", link("nowhere"), "cannot read a.jsonl: No such file or directory")
judgements("chosen equal to rejected", '{"prompt": "a", "chosen": "b", "rejected": "b"}', "a.jsonl:1: chosen equal to")
judgements(
    "five kinds of bad line",
    '{"prompt": "a", "chosen": null, "rejected": "b"}\n{"prompt": "a"}\n{"prompt": 3, "chosen": "x", "rejected": "y"}\n'
    '{"prompt": "a", "prompt": "b", "chosen": "x", "rejected": "y"}\nxx\n',
    "a.jsonl:1: chosen: a preference without a winner",
    "a.jsonl:2: chosen, rejected: missing, it has 'prompt': rename its columns; `rlhf-env preferences layouts` lists",
    "a.jsonl:3: prompt: expected text, got 3",
    "a.jsonl:4: not JSON: an object has the field 'prompt' more than once",
    "a.jsonl:5: not JSON",
)
judgements(
    "another ending",
    "x",
    "a.txt: judgements come as .jsonl, .ndjson, .csv, .json, .tsv, .parquet, or a folder",
    name="a.txt",
)
judgements(
    "another JSON", '{"a": 1}', "a.json: expected a list of rows, of Argilla records or of Label Studio", name="a.json"
)
judgements("a line of 4 MiB", " " * 2**22 + "{}", "a.jsonl:1: 4,194,306 bytes, a line may have at most 4,194,304")
responses(
    "four kinds of bad line",
    '{"prompt": "a"}\n{"response": "b"}\n{"prompt": 1, "response": "b"}\nx\n',
    "a.jsonl:1: response: missing",
    "a.jsonl:2: prompt: missing",
    "a.jsonl:3: prompt: expected text",
    "a.jsonl:4: not JSON",
)
store("corrupt", b"SQLite format 3\0" + b"\x07" * 4000, "preference store s.db: file is not a database")
store("a text", "hello", "preference store s.db: file is not a database")
store("a text of one byte", "x", "preference store s.db: file is not a database")
store("another database", database("create table x (a)"), "s.db is a database, but no preference store")

BAD.append(
    Bad(
        "pairs: texts that are longer than the context",
        ("check", "toy.toml"),
        (
            "a.jsonl:2: prompt and response have 604 tokens together, and the policy reads 513: shorten 'yes'",
            "a.jsonl:3: prompt and response have 602 tokens together, and the policy reads 513: shorten 'yyyy",
        ),
        {
            "toy.toml": 'preferences = "a.jsonl"\n' + TOY.replace("alphabet:ab=", "bytes").replace('"ppo"', '"dpo"'),
            "a.jsonl": "".join(
                f'{{"prompt": "{asked}", "chosen": "{said}", "rejected": "no"}}\n'
                for asked, said in (("q", "yes"), ("x" * 600, "yes"), ("q", "y" * 600))
            ),
        },
        lambda: prepare("toy.toml"),
    )
)
