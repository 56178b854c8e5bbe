"""The whole RLHF pipeline as one script: pretrain -> SFT -> preferences -> reward model -> RL -> table and report.

Every stage leaves its result in the run folder and is passed over when it is there, so a second call goes on where the
first one stopped.
"""

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

from rlhf_env import assets, plugins
from rlhf_env.envs import chitchat
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import FileTokenizer, load_tokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.annotators import SimulatedAnnotator
from rlhf_env.feedback.calibration import accuracy_with_interval, expected_calibration_error
from rlhf_env.feedback.fitting import fit_reward_model
from rlhf_env.feedback.pairs import Candidate, collect_pairs
from rlhf_env.feedback.preferences import Author, PreferenceStore
from rlhf_env.feedback.reward_model import RewardModelConfig
from rlhf_env.feedback.scorecard import make_scorecard
from rlhf_env.feedback.scorer import pair_log_odds
from rlhf_env.lab.benchmark import Grid, run_benchmark, write_json
from rlhf_env.lab.progress import benchmark_progress, note_of, stage
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.experiment import make_agent
from rlhf_env.learning.loop import DataSource, Interrupted, collect, train
from rlhf_env.learning.rollout import demonstrations
from rlhf_env.learning.run_folder import RunFolder, versions
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Sampling
from rlhf_env.types import Episode, Float, Prompt, Reward

Tell = Callable[[float, str], None]
_STAGES = ("conversations", "replies")


# -------------------------------------------------------------------- the shipped models: pretraining and SFT


@dataclass(frozen=True, kw_only=True)
class Size:
    """A Llama: width, layers, attention heads, width of the MLP."""

    hidden: int
    layers: int
    heads: int
    intermediate: int

    def __post_init__(self) -> None:
        refuse_misfits(self)


@dataclass(frozen=True, kw_only=True)
class Course:
    """One supervised stage: so many updates of so many rows at a learning rate that falls as a cosine."""

    updates: int
    rows: int
    lr: float
    warmup: float = 0.03
    floor: float = 0.02
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        refuse_misfits(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the shipped models are made. Everything that changes them is here or in the corpus.

    `sharpening`: the base model's logits are divided by this temperature for good (in the gain of its last norm), so
    that a model this small is readable when it is sampled at temperature 1. The judge is left as it is.
    """

    vocabulary: int = 2048
    row_length: int = 128
    positions: int = 128
    base: Size = field(default_factory=lambda: Size(hidden=192, layers=4, heads=6, intermediate=512))
    judge: Size = field(default_factory=lambda: Size(hidden=128, layers=4, heads=4, intermediate=344))
    pretraining: Course = field(default_factory=lambda: Course(updates=6500, rows=8, lr=2e-3))
    fine_tuning: Course = field(default_factory=lambda: Course(updates=1100, rows=64, lr=5e-4))
    judge_pretraining: Course = field(default_factory=lambda: Course(updates=2200, rows=8, lr=2.5e-3))
    judge_fine_tuning: Course = field(default_factory=lambda: Course(updates=350, rows=64, lr=5e-4))
    sharpening: float = 0.8
    seed: int = 20_261_122

    def __post_init__(self) -> None:
        refuse_misfits(self)

    @property
    def content_hash(self) -> str:
        """Changes with any number above and with the corpus: what a cache of the results is named by."""
        content = json.dumps([asdict(self), chitchat.corpus_hash()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Models:
    """Folders of the base model (policy and reference of the demo) and of the independent judge of fluency."""

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
    alongside: AbstractContextManager[Any] = _judge_alongside(recipe, tokenizer, work) if jobs > 1 else nullcontext()
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
    child.start()
    try:
        yield
    except BaseException:
        child.terminate()  # it saves what it has, as after Ctrl-C
        raise
    finally:
        child.join()


def _teach_quietly(recipe: Recipe, tokenizer: FileTokenizer, work: Path, threads: int) -> None:
    from rlhf_env.learning.engine import set_threads

    set_threads(threads)
    with suppress(Interrupted):  # Ctrl-C reaches both processes: the other one says so
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
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
        reward=RewardMix({"none": _nothing}),
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


def _nothing(episodes: Sequence[Episode]) -> Float:
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


# -------------------------------------------------------------------- the demo


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's settings.

    Learning rates and budget were chosen on seeds 100 to 102; the KL weight also after a look at an earlier run of the
    seeds the demo reports, all on the prompts it reports. A demonstration, not a benchmark.
    """

    prompts: int = 5000
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.4)
    pairs_per_prompt: int = 3
    held_out_pairs: float = 1 / 6
    annotator_temperature: float = 0.5
    reward_model: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(
            head="reply", head_epochs=4, epochs=0, dropout=0.2, micro_batch_size=32, patience=4, validation=0.05
        )
    )
    num_envs: int = 64
    max_new_tokens: int = 28
    max_prompt_tokens: int = 48
    kl_weight: float = 0.08
    diversity_weight: float = 0.2
    generated_tokens: int = 32_000
    max_kl: float = 12.0
    evaluation_prompts: int = 128
    evaluate_every: int = 8
    agents: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "ppo": {"lr": 2e-4, "group_size": 4},
            "grpo": {"lr": 2e-4},
            "dpo": {"lr": 1.2e-4},
            "best_of_n": {"n": 8},
            "reference": {},
            "random": {},
        }
    )
    seed: int = 7

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems = [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("prompts", "pairs_per_prompt", "num_envs", "max_new_tokens", "max_prompt_tokens")
            if getattr(self, name) < 1
        ]
        if len(self.temperatures) < 2 or min(self.temperatures) <= 0:
            problems.append(f"temperatures: two or more above 0 give answers to compare, got {self.temperatures}")
        if not 0 < self.held_out_pairs < 1:
            problems.append(f"held_out_pairs is a share of the prompts in (0, 1), got {self.held_out_pairs}")
        if self.annotator_temperature < 0:
            problems.append(f"annotator_temperature must not be negative, got {self.annotator_temperature}")
        if not 0 <= self.seed < 2**40:
            problems.append(f"seed must be in 0..2^40, got {self.seed}")
        if problems:
            raise ConfigError(*problems)

    def gold(self, models: Models) -> dict[str, Any]:
        """The gold reward as a table of settings: what the simulated annotator goes by, and no agent sees."""
        return {"judge": models.judge, "typical": models.typical}

    def grid(self, models: Models, reward_model: Path, seeds: int) -> Grid:
        """Agents x seeds: the same weights, prompts, rewards, budget and evaluation for all."""
        return Grid(
            name="demo",
            seeds=seeds,
            agents=self.agents,
            experiment={
                "task": {"name": "chitchat"},
                "policy": {"model": models.base},
                "environment": {
                    "num_envs": self.num_envs,
                    "max_new_tokens": self.max_new_tokens,
                    "max_prompt_tokens": self.max_prompt_tokens,
                },
                "rewards": {
                    "bradley_terry": {"weight": 1.0, "model": str(reward_model.resolve())},
                    "kl": {"weight": self.kl_weight},
                    "diversity": {"weight": self.diversity_weight},
                },
                "budget": {"generated_tokens": self.generated_tokens},
                "max_kl": self.max_kl,
                "evaluation": {
                    "prompts": self.evaluation_prompts,
                    "every": self.evaluate_every,
                    "rewards": {"upbeat": self.gold(models)},
                },
            },
        )


def run_demo(
    out: Path,
    *,
    from_scratch: bool = False,
    seeds: int = 3,
    jobs: int = 2,
    console: Console,
    settings: Demo | None = None,
    models: Models | None = None,
) -> Path:
    """The demo; the path of its report. `models` stands in for the shipped ones."""
    from rlhf_env.lab.report import read_results, rich_samples, rich_table, write_report
    from rlhf_env.learning.engine import set_threads

    settings = settings or Demo()
    set_threads()
    own = assets.cache_folder() / f"chitchat-{Recipe().content_hash}" if from_scratch else None
    models = models or (Models.within(own) if own else Models())
    _claim_folder(out, settings, models)
    if own:
        make_models(own, jobs=jobs, console=console)
    reward_model = learn_reward_model(out, settings=settings, models=models, console=console)
    console.rule(f"[bold]4  {len(settings.agents)} agents x {seeds} seeds in one environment")
    grid = settings.grid(models, reward_model, seeds)
    with benchmark_progress(console, grid.cells()) as on_progress:
        run_benchmark(grid, out, jobs=jobs, on_progress=on_progress)
    console.rule("[bold]5-6  Table and report")
    write_json(out / "about.json", _about(seeds))
    results = read_results(out)
    console.print(rich_table(results))
    console.print(rich_samples(results))
    report = write_report(out)
    console.print(f"Report: {report}   TensorBoard: tensorboard --logdir {out / 'cells'}", soft_wrap=True)
    return report


def learn_reward_model(
    folder: Path, *, settings: Demo | None = None, models: Models | None = None, console: Console
) -> Path:
    """The demo's preferences and the reward model fitted to them, in `folder`; resumable. The path of the model.

    Writes `preferences.sqlite`, `reward_model/` (what the reward `bradley_terry` takes) and `reward_model.json`: its
    accuracy on unseen prompts beside what the annotator's noise allows. What is there is not done again; ConfigError
    when it was made with other settings.
    """
    settings, models = settings or Demo(), models or Models()
    folder.mkdir(parents=True, exist_ok=True)
    _claim_folder(folder, settings, models)
    console.rule("[bold]1-2  Preferences on replies of the base model")
    preferences = _collect_preferences(settings, models, folder / "preferences.sqlite", console)
    console.rule("[bold]3  Reward model")
    return _fit_reward_model(settings, models, preferences, folder, console)


def _claim_folder(out: Path, settings: Demo, models: Models) -> None:
    """Note what the folder's results are made with, and refuse to mix them with others'."""
    made_with = json.loads(json.dumps({"settings": asdict(settings), "models": asdict(models)}))
    note = out / "demo.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_with:
        raise ConfigError(
            f"{out} holds a demo of other settings or models (see {note}): choose another folder with --out"
        )
    write_json(note, made_with)


def _collect_preferences(settings: Demo, models: Models, file: Path, console: Console) -> Path:
    """The base model answers held-in prompts at several temperatures; a simulated annotator compares two answers."""
    if file.exists():
        with PreferenceStore(file) as store:
            console.print(f"{store.counts().comparisons:,} judgements stand in {file}")
        return file
    annotator = SimulatedAnnotator(
        gold=_gold(settings, models), temperature=settings.annotator_temperature, name="simulated: gold + Bradley-Terry"
    )
    candidates: list[Candidate] = []
    with stage(console, "The base model answers") as tell:
        for temperature in settings.temperatures:
            author = Author("policy", "chitchat-base", temperature)
            for episode in _replies(settings, models, temperature):
                candidates.append((episode, author))
                if len(candidates) % settings.num_envs == 0:
                    total = settings.prompts * len(settings.temperatures)
                    tell(len(candidates) / total, f"{len(candidates):,} replies, temperature {temperature}")
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    with console.status("The annotator compares..."), PreferenceStore(partial) as store:
        judged = collect_pairs(
            candidates,
            annotator,
            np.random.default_rng(settings.seed),
            store=store,
            pairs_per_prompt=settings.pairs_per_prompt,
        )
    partial.replace(file)
    console.print(f"{len(judged):,} comparisons by an annotator whose noise is known, in {file}", soft_wrap=True)
    return file


def _replies(settings: Demo, models: Models, temperature: float) -> Iterator[Episode]:
    """One reply to each of the first `settings.prompts` training prompts, at one temperature."""
    policy = LanguageModel.from_pretrained(models.base, sampling=Sampling(temperature=temperature))
    policy.reseed(settings.seed + round(1000 * temperature))
    tokenizer = load_tokenizer(models.base)
    env = TextVectorEnv(
        settings.num_envs,
        task="chitchat",
        reward=RewardMix({"none": _nothing}),
        tokenizer=tokenizer,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        action_length=None,
        autoreset_mode="Disabled",
    )
    spending = Spending()
    setup = Setup(
        policy=policy,
        reference=policy,
        tokenizer=tokenizer,
        reward=env.reward,
        batch_size=settings.num_envs,
        action_length=env.action_length,
        max_new_tokens=env.max_new_tokens,
        seed=settings.seed,
        engine=Engine(spending),
        spending=spending,
    )
    writer = make_agent("reference", setup)
    for start in range(0, settings.prompts, settings.num_envs):
        wanted = list(range(start, min(start + settings.num_envs, settings.prompts)))
        padded = (wanted * settings.num_envs)[: settings.num_envs]
        yield from collect(env, writer, {"indices": padded}).episodes[: len(wanted)]


def _fit_reward_model(settings: Demo, models: Models, preferences: Path, out: Path, console: Console) -> Path:
    """A Bradley-Terry model on the pairs; its accuracy on unseen prompts beside what the annotator's noise allows."""
    folder, card = out / "reward_model", out / "reward_model.json"
    if not card.exists():
        with PreferenceStore(preferences) as store:
            training, unseen = store.split(settings.held_out_pairs)
        # One pair a prompt: the interval below takes pairs to be independent.
        held_out = list({preference.prompt.id: preference for preference in unseen}.values())
        with stage(console, f"Fitting {len(training):,} pairs") as tell:
            model, _ = fit_reward_model(
                training,
                models.base,
                settings.reward_model,
                generator=torch.Generator().manual_seed(settings.seed),
                progress=lambda step, steps, loss: tell(step / steps, f"loss {loss:.3f}"),
            )
        model.save(folder)
        log_odds = pair_log_odds(model, held_out)
        accuracy = accuracy_with_interval(log_odds, np.zeros_like(log_odds))
        gold = _gold(settings, models)
        annotator = SimulatedAnnotator(gold=gold, temperature=settings.annotator_temperature)
        sides = [(p.prompt, response) for p in held_out for response in (p.chosen, p.rejected)]
        worth = gold([response.episode(prompt) for prompt, response in sides])
        record = {
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "pairs": len(training),
            "held_out_pairs": len(held_out),
            "calibration_error": expected_calibration_error(log_odds),
            "ceiling": annotator.expected_accuracy(worth[::2] - worth[1::2]),
            "annotator": "prefers what the gold reward scores higher, with Bradley-Terry noise of temperature "
            f"{settings.annotator_temperature:g} (in units of gold)",
        }
        with console.status("Writing the scorecard"):
            make_scorecard(
                model,
                held_out,
                gold=[(*side, float(value)) for side, value in zip(sides, worth, strict=True)],
                gold_is="upbeat",
                rng=np.random.default_rng(settings.seed),
            ).save(out / "scorecard.json")
        write_json(card, record)
    record = json.loads(card.read_text(encoding="utf-8"))
    console.print(
        f"Held-out accuracy {record['accuracy']:.3f} (95 % interval {record['low']:.3f} to {record['high']:.3f}, "
        f"{record['held_out_pairs']} pairs on unseen prompts); "
        f"the annotator's own noise allows {record['ceiling']:.3f}. "
        + (f"Calibration error {record['calibration_error']:.3f}." if "calibration_error" in record else "")
    )
    return folder


def _gold(settings: Demo, models: Models) -> Reward:
    target = plugins.host().load("reward", "upbeat")
    reward: Reward = plugins.call_with(target, settings.gold(models), {}, "reward 'upbeat'")
    return reward


def _about(seeds: int) -> dict[str, Any]:
    return {
        "title": "rlhf-env demo: one environment, four agents, one table",
        "what_gold_is": "upbeat, human-like small talk: sentiment, fluency under an independent language model, "
        "turn-taking, minus repetition and copying. It is not quality, and it cannot tell a relevant reply from an "
        "irrelevant one",
        "claims": f"{seeds} seeds: numbers, no claim" if seeds < 5 else f"{seeds} seeds",
        "command": "rlhf-env demo",
        "versions": versions(),
    }
