"""Makes `files` and `facts.json`: small files of every kind that users have, and what they come to.

    python tests/kept/make.py           # with the version of rlhf-env that is installed

Both are there: they were made by an earlier version and are to stay as they are (see README.md), so that this refuses
to write over them. It says how they came about, and makes those of a later version in another checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import tokenizers
import torch
from rlhf_env.feedback.ensemble import fit_ensemble
from rlhf_env.feedback.fitting import fit_reward_model
from rlhf_env.feedback.preferences import (
    Author,
    Check,
    Comparison,
    CriteriaRating,
    Criterion,
    Item,
    PreferenceStore,
    Ranking,
    Rating,
    Response,
)
from rlhf_env.feedback.reward_model import RewardModelConfig
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf_env.feedback import preferences
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from kept.reading import (  # noqa: E402 - found through the line above
    FORMATS,
    MODELS,
    evaluated,
    experiment_facts,
    export,
    grid_facts,
    imported,
    made_with,
    must,
    scorecard,
    scores,
    simulated,
    store_facts,
)

SYMBOLS = [*"abdehinors =:?.", "<pad>", "<end>"]
NOON = 1_714_557_600.0  # 2024-05-01T10:00:00Z, where every clock in the stores begins


# ---------------------------------------------------------------- language models and reward models


def make_writer(folder: str, family: str = "llama", seed: int = 0) -> None:
    """A language model of one small layer, and a tokenizer of one symbol a token beside it."""
    tiny_language_model(
        family,  # type: ignore[arg-type]
        vocab_size=len(SYMBOLS),
        hidden_size=4,
        layers=1,
        heads=1,
        context=32,
        init_std=0.4,
        end_id=SYMBOLS.index("<end>"),
        pad_id=SYMBOLS.index("<pad>"),
        dtype=torch.float32,
        seed=seed,
    ).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(SYMBOLS)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.save_pretrained(folder)


def ids(text: str) -> tuple[int, ...]:
    return tuple(SYMBOLS.index(symbol) for symbol in text)


def written(prompt: str, text: str, author: str = "base", temperature: float = 1.0, *, ended: bool = True) -> Response:
    """An answer of a policy, with its token ids."""
    end = (SYMBOLS.index("<end>"),) if ended else ()
    by = Author("policy", author, temperature)
    return Response(text, by, (*ids(text), *end), ids(prompt), "stop" if ended else "length")


def make_reward_models() -> None:
    with PreferenceStore("preferences.sqlite") as store:
        pairs = list(store.preferences())
    make_writer("trunk", "gpt2", seed=1)  # ties its embeddings, as the head "reply" asks for
    settings: dict[str, Any] = {"batch_size": 4, "validation": 0.3, "learning_rate": 1e-2, "label_smoothing": 0.1}

    def stream() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    model, _ = fit_reward_model(pairs, "trunk", RewardModelConfig(**settings), generator=stream())
    model.save("reward_model")
    reply = RewardModelConfig(**settings, head="reply", members=2, head_epochs=1, epochs=1, dropout=0.1)
    model, _ = fit_reward_model(pairs, "trunk", reply, generator=stream())
    model.save("reward_model_reply")
    fit_ensemble(pairs, "trunk", RewardModelConfig(**settings), models=2, generator=stream()).save("reward_ensemble")
    shutil.rmtree("trunk")


# ---------------------------------------------------------------- preference stores


class Clock:
    """A second later at each look."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def make_store(path: str) -> None:
    """Judgements of each kind that came from elsewhere, votes of people on items of each kind and purpose (one taken
    back, one still open), criteria with guidelines, and a reward model's opinions to verify."""
    human, file = Author("human", "Zoë"), Author("dataset", "chats")
    words = ["ab", "ba", "aa", "bb"]
    prompts = [Prompt(f"p{i}", f"{word}=", {"level": i, "answer": word}) for i, word in enumerate(words)]
    odd = Prompt("odd \ud800", "is he odd?", {"nested": {"list": [1, 2.5, None, True]}})
    answers = {
        prompt.id: [
            written(prompt.text, str(prompt.meta["answer"])),
            written(prompt.text, str(prompt.meta["answer"])[::-1] + "a", temperature=0.7),
            written(prompt.text, "abababab", "tuned", ended=False),
            written(prompt.text, "she is b", "tuned"),
        ]
        for prompt in prompts
    }
    clock = Clock()
    with PreferenceStore(path, clock=clock) as store:
        store.set_criterion(Criterion("overall", "Which answer is the better one?"))
        store.set_criterion(Criterion("manners"))
        for prompt in prompts:
            store.add_response(prompt, *answers[prompt.id])
        store.add_response(odd, Response("no \u200b", human), Response("an idea \U0001f914", file))
        # Judged elsewhere.
        given: list[Any] = []
        for place, prompt in enumerate(prompts):
            one, other, third, fourth = answers[prompt.id]
            about: dict[str, Any] = {"created": f"2024-04-0{place + 1}T08:00:00+00:00"}
            given += [
                Comparison(prompt, one, other, "first", "ann", **about),
                Comparison(prompt, third, one, "second", "bob@example.org", weight=0.5, seconds=2.5, **about),
                Comparison(prompt, one, fourth, "tie" if place % 2 else "first", "ann", criterion="manners", **about),
                Rating(prompt, one, 5 - place % 2, "ann", **about),
                Rating(prompt, other, 2, "ann", **about),
                Rating(prompt, third, 1 + place % 3, "bob@example.org", "manners", **about),
            ]
        one, other, third, fourth = answers["p0"]
        given += [
            Comparison(odd, Response("no \u200b", human), Response("an idea \U0001f914", file), "second", "ann"),
            Comparison(prompts[1], answers["p1"][0], answers["p1"][3], "cannot say", "bob@example.org"),
            Ranking(prompts[0], (third, one, other, fourth), (3, 1, 2, 3), "ann", weight=2.0, seconds=9.0),
            CriteriaRating(prompts[0], one, {"manners": 4, "sense": 5}, "ann"),
            CriteriaRating(prompts[0], third, {"manners": 2, "sense": 1}, "ann"),
        ]
        store.add(given)
        # Asked for, and voted on.
        items = [
            Item(kind="comparison", prompt=it, responses=tuple(answers[it.id][:2]), overlap=2, seed=7) for it in prompts
        ]
        items += [
            Item(kind="ranking", prompt=prompts[2], responses=tuple(answers["p2"]), priority=2.0),
            Item(kind="rating", prompt=prompts[3], responses=tuple(answers["p3"][:1]), overlap=2, repeat=1),
            Item(kind="criteria", prompt=prompts[1], responses=(answers["p1"][0],), criteria=("manners", "sense")),
            *(
                Item(
                    kind="comparison",
                    prompt=it,
                    responses=tuple(answers[it.id][::3]),
                    purpose="evaluation",
                    priority=1.0,
                )
                for it in prompts[:3]
            ),
        ]
        store.add_items(items)
        checks = [
            Item(
                kind="comparison", prompt=it, responses=tuple(answers[it.id][1:3]), purpose="verification", priority=3.0
            )
            for it in prompts[:3]
        ]
        store.add_checks(
            [
                *(
                    Check(item=it, model="old", reason="random", favoured=it.responses[0], log_odds=0.5)
                    for it in checks
                ),
                Check(item=checks[0], model="old", reason="long", favoured=checks[0].responses[1], log_odds=1.25),
            ]
        )
        for person, most in (("ann", 99), ("Émile", 4)):
            vote(store, person, most)
        assert store.undo("Émile") is not None  # withdrawn; the item is lent to them again
        assert store.next_item("dora", lease=60.0) is not None
    small(path)


ANSWERS: dict[str, list[Any]] = {
    "comparison": ["first", "second", "tie", "first", "cannot say", "second"],
    "rating": [4, 2],
    "ranking": [(2, 1, 3, 3)],
    "criteria": [{"manners": 3, "sense": 4}],
}


def vote(store: PreferenceStore, person: str, most: int) -> None:
    for number in range(most):
        lent = store.next_item(person)
        if lent is None:
            return
        said = ANSWERS[lent.item.kind]
        key = f"{person} {number}"
        store.submit(lent.id, person, said[number % len(said)], key=key, seconds=1.5 + number if number % 2 else None)


def make_older_store(new: str, path: str, version: int) -> None:
    """What `new` holds and schema `version` could: the first migrations are run, then rows copied column by column."""
    with closing(sqlite3.connect(path)) as db, db:
        for statement in (statement for migration in preferences._MIGRATIONS[:version] for statement in migration):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {preferences._APPLICATION_ID:d}")
        db.execute(f"PRAGMA user_version = {version:d}")
        db.execute("ATTACH ? AS new", (new,))
        tables = [name for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        purposes = "SELECT id FROM new.items WHERE purpose <> 'collection'"  # which came with version 3
        votes = f"SELECT id FROM new.judgements WHERE item IN ({purposes})"
        if version == 1:  # no items, and comparisons only
            votes = "SELECT id FROM new.judgements WHERE item IS NOT NULL OR kind <> 'comparison'"
        else:
            for table, column in (("leases", "item"), ("item_responses", "item"), ("items", "id")):
                db.execute(f"DELETE FROM main.{table} WHERE {column} IN ({purposes})")
        db.execute(f"DELETE FROM main.judged WHERE judgement IN ({votes})")
        db.execute(f"DELETE FROM main.judgements WHERE id IN ({votes})")
        db.commit()
        db.execute("DETACH new")
    small(path)


def small(path: str) -> None:
    """Pages of 512 bytes in place of 4,096, and the log put away: a store of a few judgements is then a few pages."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")
        db.execute("PRAGMA journal_mode = WAL")


# ---------------------------------------------------------------- runs, benchmark, study


def stripped(folder: Path) -> None:
    """Without what no other command reads: pictures, TensorBoard's events, the lock."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and path.name == "tensorboard":
            shutil.rmtree(path)
        elif path.is_file() and (path.suffix in (".png", ".svg", ".html") or path.name.startswith(".")):
            path.unlink()


def make_run(name: str) -> None:
    """trained/NAME/finished, and trained/NAME/half_done: what a kill in its last update would have left."""
    finished, half = Path(f"trained/{name}/finished"), Path(f"trained/{name}/half_done")
    must("train", f"../settings/trained/{name}.toml", "--out", str(finished))
    stripped(finished)
    saved = sorted(finished.glob("checkpoints/step-*"))
    if len(saved) < 2:
        return
    cut_short(finished, half)
    shutil.rmtree(saved[0])


def cut_short(finished: Path, half: Path) -> None:
    shutil.copytree(finished, half)
    shutil.rmtree(max(half.glob("checkpoints/step-*")))
    for later in ("evaluation.json", "warnings.json"):
        (half / later).unlink(missing_ok=True)
    rows = (half / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(rows[:-1]) + rows[-1][:25], encoding="utf-8")  # half a line


def make_benchmark() -> None:
    """bench: all of its results; of its runs' folders only that of one cell, half done. (Who takes that cell's result
    away has an unfinished benchmark.)"""
    folder, cell = Path("bench"), Path("cells/echo/ppo/seed-1")
    must("bench", "../settings/grids/small.toml", "--out", str(folder), "--jobs", "1")
    must("report", str(folder))
    stripped(folder)
    cut_short(folder / cell, Path("half_done"))
    for left in ("cells", "tuning/runs"):
        shutil.rmtree(folder / left)
    (folder / "figures").rmdir()
    (folder / cell).parent.mkdir(parents=True)
    Path("half_done").rename(folder / cell)


def make_study() -> None:
    """A small study of labels, finished, without its pool of pairs (which is drawn again)."""
    must("lab", "labels", "--quick", "--seeds", "2", "--out", "labels")
    stripped(Path("labels"))
    Path("labels/pool.safetensors").unlink()


def named(folder: str) -> list[str]:
    """The files of settings in a folder, by name."""
    return sorted(file.stem for file in (HERE / "settings" / folder).glob("*.toml"))


def main() -> None:
    files = HERE / "files"
    if files.exists():
        sys.exit(f"{files} is there, and is not to be made anew: see README.md")
    files.mkdir()
    os.chdir(files)
    torch.set_num_threads(1)
    make_writer("writer")
    make_store("preferences.sqlite")
    for version in (1, 2):
        make_older_store("preferences.sqlite", f"preferences_version_{version}.sqlite", version)
    stores = ["preferences", "preferences_version_1", "preferences_version_2"]
    opened = Path("opened")  # commands that read a store bring it up to date: they are given copies
    facts: dict[str, Any] = {"made_with": made_with(), "stores": {}}
    for name in stores:
        opened.mkdir()
        shutil.copy(f"{name}.sqlite", opened / "store.sqlite")
        facts["stores"][name] = store_facts("opened/store.sqlite")
        export("opened/store.sqlite", f"exports/{name}", FORMATS if name == "preferences" else ["jsonl"])
        facts["stores"][name]["simulate"] = simulated("opened/store.sqlite")
        shutil.rmtree(opened)
    facts["imports"] = {}
    for name in FORMATS:
        facts["imports"][name] = imported(name)
        Path("new.sqlite").unlink()
    make_reward_models()
    facts["scores"] = {name: scores(reward) for name, reward in MODELS.items()}
    facts["scorecards"] = {name: scorecard(name) for name in ("reward_model", "reward_model_reply", "reward_ensemble")}
    facts["runs"] = {}
    for name in named("trained"):
        make_run(name)
        facts["runs"][name] = evaluated(f"trained/{name}/finished")
    make_benchmark()
    make_study()
    facts["experiments"] = {
        name: experiment_facts(f"../settings/experiments/{name}.toml") for name in named("experiments")
    }
    facts["grids"] = {name: grid_facts(f"../settings/grids/{name}.toml") for name in named("grids")}
    for left in ("card.json", "card.html", "against_reference.json"):
        Path(left).unlink(missing_ok=True)
    (HERE / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
