"""What grpo.py and rloo.py share: 8 prompts x 4 answers x 64 tokens through TRL's trainer and through an agent of ours.

"update" is the learning step on given texts: loss and gradient norm must agree. "rollout and update" writes the texts
too, and reads them with the reference where there is a KL penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import roofline
import side_by_side as bench

from rlhf_env import plugins
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.learning.advantages import group_advantages, leave_one_out_advantages
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.lora import adapter_weights, add_adapter
from rlhf_env.types import Score

PROMPTS, GROUP = 8, 4


def liked(completion_ids: Any, **_others: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(sum(map(int, ids)) % 11) for ids in completion_ids]


def compare(
    name: str,
    size: str,
    *,
    beta: float,
    rounds: int,
    at_least: float | None,
    prompts_at_once: int = PROMPTS,
    lora: int = 0,
    targets: tuple[str, ...] = ("all-linear",),
    writer: str | None = None,
    parts: Sequence[str] = ("update", "rollout and update"),
    **theirs_are: Any,
) -> None:
    """`name`: of TRL's trainer and, in small letters, of our agent; `beta`: the weight of the KL penalty.

    `lora`: the rank of adapters on the modules `targets`, on both sides with the same weights; 0: none. `writer`: in
    which precision a copy of ours writes. `parts`: what is measured.
    """
    trl = bench.peer("trl", bench.TRL)
    rows = prompts_at_once * GROUP
    policy = bench.model(size, writer=writer)
    if writer and not policy.copy_writes:
        print(f"{name}, {size}, written in {writer}: not measured, this processor has no instructions for it")
        return
    shape = roofline.Shape.of(policy.model.config)
    episodes = bench.texts(policy.vocab_size, rows, per_prompt=GROUP)
    prompts = [bench.Words(policy.vocab_size).decode(it.prompt_ids.tolist()) for it in episodes[::GROUP]]
    asked = [{"prompt": prompts[row // GROUP]} for row in range(rows)]
    if lora:
        peft = bench.peer("peft", bench.TRL)
        theirs_are["peft_config"] = peft.LoraConfig(
            r=lora,
            lora_alpha=2 * lora,
            target_modules="all-linear" if "all-linear" in targets else list(targets),
            task_type="CAUSAL_LM",
        )
    trainer = bench.trainer(
        trl,
        name,
        policy.model,
        liked,
        rows=asked,
        num_generations=GROUP,
        per_device_train_batch_size=rows,
        max_completion_length=bench.ANSWER,
        beta=beta,
        **theirs_are,
    )
    if lora:
        add_adapter(policy.model, Lora(rank=lora, alpha=2.0 * lora, targets=targets), seed=0)
        of_theirs = adapter_weights(trainer.model.get_base_model())
        for weight, value in adapter_weights(policy.model).items():
            value.copy_(of_theirs[weight])
    rewards: dict[str, Any] = {"liked": liked, **({"kl": beta} if beta else {})}
    reference = policy.frozen_copy()
    mix = load_rewards(rewards, bench.Given(prompts), {"reference": reference})
    setup = bench.setup(policy, reference, mix, rows)
    kind = plugins.host().load("agent", name.lower())
    agent = kind(setup, kind.Config(group_size=GROUP, optimization=Optimization(lr=1e-6, beta2=0.999)))

    worth = liked([it.response_ids for it in episodes])
    scores = [Score(raw={"liked": value}, weights={"liked": 1.0}) for value in worth]
    rollout = bench.stated_by(policy, Rollout.from_episodes(episodes, scores, pad_id=1, group_size=GROUP))
    if name == "GRPO":
        advantages = group_advantages(rollout.returns(), rollout.group, scale_by_std=True)
    else:
        advantages = leave_one_out_advantages(rollout.returns(), rollout.group)
    prompt_ids, prompt_mask = bench.padded([it.prompt_ids for it in episodes], left=True)
    ids, mask = bench.padded([it.response_ids for it in episodes])
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": advantages.float(),
        "old_logps": rollout.logprobs.sum(1).float(),
        "num_items_in_batch": mask.sum(),
    }
    metrics = agent.update(rollout)
    loss, norm = bench.step_of(trainer, batch)
    bench.same("loss", metrics["policy_loss"], loss)
    bench.same("gradient norm", metrics["grad_norm"], norm)

    def our_update() -> float:
        agent.update(rollout)
        return float(rollout.actions.sum())

    def their_update() -> float:
        bench.step_of(trainer, batch)
        return float(mask.sum())

    env = bench.environment(prompts, rewards, setup)

    def ours() -> float:
        written = collect(env, agent)
        agent.update(written)
        return float(written.actions.sum())

    def theirs() -> float:
        written = trainer._generate_and_score_completions(asked)
        bench.step_of(trainer, written)
        return float(written["completion_mask"].sum())

    def floor(learned_alone: bool) -> float:
        sizes = {"prompt": bench.PROMPT, "answer": bench.ANSWER, "per_prompt": GROUP}
        learned = roofline.learning(shape, rows, **sizes, lora=lora, targets=targets)
        if learned_alone:
            return learned
        read = roofline.reading_texts(shape, rows, **sizes) if beta else 0.0
        lengths = [bench.ANSWER] * rows
        written = roofline.writing(shape, writer or "float32", lengths, prompt=bench.PROMPT, per_prompt=GROUP)
        return written + read + learned

    in_bits = {None: "", "int8": ", in 8 bits", "bfloat16": ", in bfloat16"}[writer]
    where = "" if "all-linear" in targets else f", {' '.join(targets)}"
    who = f"TRL + peft {name}" if lora else f"TRL {name}"
    what = f"{who}, {size}, {prompts_at_once} x {GROUP} x {bench.ANSWER}{where}{in_bits}"
    if "update" in parts:
        bench.take_turns(f"{what}, update", our_update, their_update, rounds=rounds, floor=lambda: floor(True))
    if "rollout and update" in parts:
        bench.take_turns(
            f"{what}, rollout and update", ours, theirs, rounds=rounds, at_least=at_least, floor=lambda: floor(False)
        )
