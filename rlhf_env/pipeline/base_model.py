"""The base model and the judge of the demo: tokenizer, pretraining, fine-tuning, sharpening."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tomli_w
import torch
from rich.console import Console

from rlhf_env import assets
from rlhf_env.envs import chitchat
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tokenizers import PLAIN_PROMPTS, FileTokenizer
from rlhf_env.lab.progress import note_of, stage
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.loop import train
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.rollout import demonstrations
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import versions
from rlhf_env.learning.signals import Interrupted, deaf_to_ctrl_c, hear_ctrl_c
from rlhf_env.learning.sources import DataSource
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, Share, Whole, settings
from rlhf_env.types import Episode, Float, Prompt
from rlhf_env.whole_files import write_json

Tell = Callable[[float, str], None]
_STAGES = ("conversations", "replies")


@dataclass(frozen=True)
class Models:
    """Folders of a base model (policy and reference) and of the independent judge of fluency that belongs to it."""

    base: str = "rlhf-env/chitchat"
    judge: str = "rlhf-env/chitchat-judge"

    @classmethod
    def within(cls, folder: Path) -> Models:
        """Where `make_models` writes them."""
        return cls(str(folder / "chitchat"), str(folder / "chitchat-judge"))

    @property
    def typical(self) -> float:
        """The judge's median log-probability of a token of people's held-out replies, as `make_models` measured it."""
        recipe = Path(assets.resolve(self.judge)).parent / "recipe.json"
        return float(json.loads(recipe.read_text(encoding="utf-8"))["median_reply_logprob_under_judge"])


@settings
class Size:
    """The size of a Llama."""

    hidden: AtLeastOne
    """Its width."""
    layers: AtLeastOne
    """Its layers."""
    heads: AtLeastOne
    """Attention heads of a layer."""
    intermediate: AtLeastOne
    """The width of the MLP."""


@settings
class Course:
    """One supervised stage. Its learning rate falls as a cosine."""

    updates: AtLeastOne
    """Gradient steps."""
    rows: AtLeastOne
    """Rows of an update."""
    lr: Positive
    """The highest learning rate."""
    warmup: Share = 0.03
    """The share of the updates over which the learning rate rises."""
    floor: Share = 0.02
    """What the learning rate ends at, as a share of `lr`."""
    weight_decay: NonNegative = 0.1
    """AdamW's weight decay."""


@settings
class Recipe:
    """How the shipped models are made. Everything that changes them is here or in the corpus."""

    vocabulary: AtLeastOne = 2048
    """Tokens of the tokenizer."""
    row_length: AtLeastOne = 128
    """Tokens of a row of pretraining."""
    positions: AtLeastOne = 128
    """The longest text that the models take, in tokens."""
    base: Size = field(default_factory=lambda: Size(hidden=192, layers=4, heads=6, intermediate=512))
    """The size of the base model."""
    judge: Size = field(default_factory=lambda: Size(hidden=128, layers=4, heads=4, intermediate=344))
    """The size of the judge."""
    pretraining: Course = field(default_factory=lambda: Course(updates=6500, rows=8, lr=2e-3))
    """The base model's pretraining, on conversations."""
    fine_tuning: Course = field(default_factory=lambda: Course(updates=1100, rows=64, lr=5e-4))
    """The base model's fine-tuning, on replies."""
    judge_pretraining: Course = field(default_factory=lambda: Course(updates=2200, rows=8, lr=2.5e-3))
    """The judge's pretraining."""
    judge_fine_tuning: Course = field(default_factory=lambda: Course(updates=350, rows=64, lr=5e-4))
    """The judge's fine-tuning."""
    sharpening: Positive = 0.8
    """The base model's logits are divided by this temperature for good (in the gain of its last norm), so that a model
    this small is readable when it is sampled at temperature 1. The judge is left as it is."""
    seed: Whole = 20_261_122
    """What weights and batches are drawn from."""

    @property
    def content_hash(self) -> str:
        """Changes with any number above and with the corpus: what a cache of the results is named by."""
        content = json.dumps([asdict(self), chitchat.corpus_hash()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def make_models(out: Path, *, recipe: Recipe | None = None, jobs: int = 1, console: Console) -> Models:
    """Tokenizer, base model (pretraining on conversations, SFT on replies) and judge, into `out`; resumable.

    The judge never sees a conversation of the base model, nor the other way round; neither sees the held-out ones.
    With two `jobs` it learns at the same time, in a process of its own; the weights are the same.
    Writes `chitchat/` and `chitchat-judge/` (float16 safetensors, tokenizer) and `recipe.json` with the validation
    perplexities.
    """
    recipe = recipe or Recipe()
    done = out / "recipe.json"
    if done.exists() and json.loads(done.read_text())["content_hash"] == recipe.content_hash:
        return Models.within(out)
    work = out / f"work-{recipe.content_hash}"
    tokenizer = _train_tokenizer(recipe, work / "tokenizer")
    alongside: AbstractContextManager[object] = _judge_alongside(recipe, tokenizer, work) if jobs > 1 else nullcontext()
    with alongside:
        base = _teach("base", recipe, tokenizer, work, console)
    judge = _teach("judge", recipe, tokenizer, work, console)  # what it has learned alongside is found, not done again
    unseen = {what: _lessons("held_out", what, recipe, tokenizer) for what in _STAGES}
    perplexity = {
        f"{name}, {what}": _perplexity(model, unseen[what])
        for name, models in (("base", base), ("judge", judge))
        for what, model in models.items()
    }
    typical = float(np.median([values.mean() for values in judge["replies"].response_logprobs(unseen["replies"])]))
    _sharpen(base["replies"], recipe.sharpening)
    perplexity["base, replies, sharpened"] = _perplexity(base["replies"], unseen["replies"])
    for name, model in (("chitchat", base["replies"]), ("chitchat-judge", judge["replies"])):
        _save_half(model, tokenizer, out / name)
    record = {
        "content_hash": recipe.content_hash,
        "corpus_hash": chitchat.corpus_hash(),
        "recipe": asdict(recipe),
        "parameters": {"base": _parameters(base["replies"]), "judge": _parameters(judge["replies"])},
        "held_out_perplexity": perplexity,
        "median_reply_logprob_under_judge": typical,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    write_json(done, record)
    shutil.rmtree(work)
    console.print(f"Held-out perplexity: {perplexity}. Models in {out}", soft_wrap=True)
    return Models.within(out)


def _lessons(split: chitchat.Split, what: str, recipe: Recipe, tokenizer: FileTokenizer) -> list[Episode]:
    if what == "conversations":
        return _packed(chitchat.conversations(split), tokenizer, recipe.row_length)
    return _answers(chitchat.replies(split), tokenizer)


def _teach(
    name: Literal["base", "judge"], recipe: Recipe, tokenizer: FileTokenizer, work: Path, console: Console
) -> dict[str, LanguageModel]:
    """The model after each of its two stages, conversations and replies."""
    size, seed = (recipe.base, recipe.seed) if name == "base" else (recipe.judge, recipe.seed + 10)
    courses = {
        "base": (recipe.pretraining, recipe.fine_tuning),
        "judge": (recipe.judge_pretraining, recipe.judge_fine_tuning),
    }[name]
    model = _new_model(size, recipe, tokenizer, seed=seed)
    after: dict[str, LanguageModel] = {}
    for place, (what, course) in enumerate(zip(_STAGES, courses, strict=True)):
        episodes = _lessons(name, what, recipe, tokenizer)
        with stage(console, f"The {name} learns from {what}") as tell:
            _imitate(model, tokenizer, episodes, course, seed + place, work / name / what, tell)
        after[what] = model.frozen_copy()
    return after


@contextmanager
def _judge_alongside(recipe: Recipe, tokenizer: FileTokenizer, work: Path) -> Iterator[None]:
    """Inside, the judge learns in a process of its own, leaving its checkpoints in `work`; waits for it at the end.

    What goes wrong there is not raised here: teaching the judge again goes on from its checkpoints, and meets it.
    """
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_teach_quietly, args=(recipe, tokenizer, work, torch.get_num_threads()))
    with deaf_to_ctrl_c():
        child.start()
    try:
        yield
    except BaseException:
        child.terminate()  # it saves what it has, as after Ctrl-C
        raise
    finally:
        child.join()


def _teach_quietly(recipe: Recipe, tokenizer: FileTokenizer, work: Path, threads: int) -> None:
    from rlhf_env.learning.devices import set_threads

    with suppress(Interrupted, KeyboardInterrupt):  # Ctrl-C reaches both processes: the other one says so
        hear_ctrl_c()
        set_threads(threads)
        _teach("judge", recipe, tokenizer, work, Console(quiet=True))


def _train_tokenizer(recipe: Recipe, folder: Path) -> FileTokenizer:
    """A byte-level BPE of the training conversations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not (folder / "tokenizer.json").exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[chitchat.PAD, chitchat.END, chitchat.TURN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = (turn for split in ("base", "judge") for talk in chitchat.conversations(split) for turn in talk)
        bpe.train_from_iterator(texts, trainer)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"eos_token": chitchat.END, "pad_token": chitchat.PAD, "model_max_length": recipe.positions}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        config |= {PLAIN_PROMPTS: "user", "chat_template": chitchat.CHAT_TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        bpe.save(str(folder / "tokenizer.json"))
    return FileTokenizer(folder)


def _new_model(size: Size, recipe: Recipe, tokenizer: FileTokenizer, *, seed: int) -> LanguageModel:
    """A Llama with tied embeddings at random initial weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.end_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LanguageModel(LlamaForCausalLM(config), end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)


def _packed(talks: Sequence[Sequence[str]], tokenizer: FileTokenizer, length: int) -> list[Episode]:
    """All conversations end to end, cut into rows of `length` tokens: every token but the first is to be predicted."""
    ids = [token for talk in talks for token in tokenizer.encode(chitchat.text_of(talk))]
    rows = [np.array(ids[start : start + length], dtype=np.int64) for start in range(0, len(ids) - length, length)]
    return [_demonstration(row[:1], row[1:]) for row in rows]


def _answers(pairs: Sequence[tuple[str, str]], tokenizer: FileTokenizer) -> list[Episode]:
    """A turn and somebody's reply to it, closed by the end token: the reply is to be predicted."""
    return [
        _demonstration(
            np.array(tokenizer.encode(said), dtype=np.int64),
            np.array([*tokenizer.encode(reply), tokenizer.end_id], dtype=np.int64),
        )
        for said, reply in pairs
    ]


def _demonstration(prompt_ids: Any, response_ids: Any) -> Episode:
    return Episode(
        prompt=Prompt(id="", text=""),
        prompt_ids=prompt_ids,
        response="",
        response_ids=response_ids,
        finish_reason="stop",
        actions=np.ones(len(response_ids), dtype=np.bool_),
    )


def _imitate(
    policy: LanguageModel,
    tokenizer: FileTokenizer,
    episodes: Sequence[Episode],
    course: Course,
    seed: int,
    folder: Path,
    tell: Tell,
) -> None:
    """Supervised training of `policy` on demonstrations, through the one loop; resumable in `folder`."""
    spending = Spending()
    engine = Engine(spending)
    setup = Setup(
        policy=policy,
        reference=policy,
        tokenizer=tokenizer,
        reward=RewardMix({"none": no_reward}),
        batch_size=course.rows,
        action_length=1,
        max_new_tokens=1,
        seed=seed,
        engine=engine,
        spending=spending,
    )
    settings = {"lr": course.lr, "schedule": "cosine", "warmup": course.warmup, "floor": course.floor}
    agent = make_agent({"name": "sft", **settings, "weight_decay": course.weight_decay}, setup)
    source = DataSource(
        len(episodes),
        course.rows,
        lambda rows: demonstrations([episodes[i] for i in rows], pad_id=tokenizer.pad_id),
        seed=seed,
    )
    described = tomli_w.dumps({"course": asdict(course), "seed": seed, "texts": len(episodes)})
    with RunFolder(folder, described, resume=True, tensorboard=False) as run:
        train(
            agent,
            source,
            Budget(updates=course.updates),
            spending=spending,
            engine=engine,
            run=run,
            resume=True,
            checkpoint_every=max(1, course.updates // 20),
            on_update=lambda row, fraction: tell(fraction, note_of(row)),
        )


def no_reward(episodes: Sequence[Episode]) -> Float:
    return np.zeros(len(episodes))


def _perplexity(policy: LanguageModel, episodes: Sequence[Episode]) -> float:
    """exp of the mean negative log-probability of a token to be predicted."""
    values = np.concatenate(policy.response_logprobs(episodes))
    return math.exp(-float(values.mean()))


def _sharpen(policy: LanguageModel, temperature: float) -> None:
    """Divide the logits by `temperature` for good: tied embeddings read the last norm, whose gain is linear in them."""
    with torch.no_grad():
        policy.model.model.norm.weight.div_(temperature)


def _save_half(policy: LanguageModel, tokenizer: FileTokenizer, folder: Path) -> None:
    """In float16: half the size, and rounding far below what training noise is."""
    half = policy.frozen_copy().half()
    half.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer.folder) / name, folder / name)


def _parameters(policy: LanguageModel) -> int:
    return sum(p.numel() for p in policy.parameters())
