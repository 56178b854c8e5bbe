"""What each number of a run's log means: the keys of `metrics.jsonl`, of every tracker and of the curves.

    rlhf-env metrics                     # all of them
    rlhf-env metrics train/approx_kl     # one

A key is a section and a name. The loop writes `rollout/`, `spent/`, `time/` and `histogram/`, an evaluation `eval/`
(`lab.evaluation.metrics`); agents write the rest, under `train/` where they name no section. `*` in a key stands for a
name that is the user's, such as that of a part of the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Logged:
    """One key, or a pattern of keys, and what the number is. `look`: what to look at it for, where that is known.

    `of`: the agents that log it; empty where whoever trains does, or where it is no agent's.
    """

    key: str
    meaning: str
    look: str = ""
    of: tuple[str, ...] = ()


LOGGED: tuple[Logged, ...] = (
    Logged("update", "Updates of the agent so far; row 0 is the evaluation before training."),
    # ------------------------------------------------------------ the texts of this update
    Logged("rollout/reward", "Mean reward of a text, all parts times their weights: what training maximises, sampled."),
    Logged("rollout/reward_std", "Its standard deviation over the texts."),
    Logged(
        "rollout/reward_without_kl_std",
        "Standard deviation of the rewards of texts without their KL penalty.",
        look="Near 0, the texts are all worth the same, and only the penalty is learned from.",
    ),
    Logged("rollout/part/*_std", "Standard deviation of that part over the texts it scored, unweighted."),
    Logged("rollout/part/*", "Mean of that part of the reward, unweighted, over the texts that it scored."),
    Logged(
        "rollout/kl",
        "KL of the policy to the reference, nats per text: the mean of log p - log p_ref, summed over the text (k1).",
        look="It grows as the policy moves away; `max_kl` ends a run by it.",
    ),
    Logged("rollout/kl_std", "Standard deviation of that sum over the texts."),
    Logged(
        "rollout/kl_k3",
        "The same KL by Schulman's k3, (p_ref/p - 1) - log(p_ref/p): never negative, less noisy near the reference.",
        look="Far from the reference its tails are heavy: where k1 and k3 disagree widely, neither is precise.",
    ),
    Logged(
        "rollout/entropy",
        "Entropy of the policy in nats per token, sampled: the mean of -log p over the tokens that it drew.",
        look="A fall to near 0 early is a policy that no longer tries anything else.",
    ),
    Logged("rollout/length", "Tokens per text that the agent wrote; the end token counts."),
    Logged(
        "rollout/cut_at_limit",
        "Share of texts that `max_new_tokens` ended.",
        look="A rise says that texts outgrow their limit; a part `missing_end` or `overlong` makes "
        "that cost something.",
    ),
    Logged("rollout/cut_from_outside", "Share of texts that something outside the task stopped, such as a TimeLimit."),
    Logged(
        "rollout/groups_without_spread",
        "Share of groups (answers to one prompt) whose members all earned the same, KL left aside.",
        look="They teach an agent that compares answers nothing: near 1, the task is too hard or solved.",
    ),
    Logged("rollout/failed/*", 'Texts on which that part of the reward failed (`on_error` is not "stop").'),
    Logged("rollout/abstained/*", "Texts from which that part abstained (None)."),
    Logged(
        "rollout/unscored",
        "Texts without a score, because a part failed or all parts but the KL penalty abstained: not learned from.",
    ),
    Logged(
        "rollout/earned/*",
        "Where rewards are shaped, or are of some tasks alone: what that line of the ledger came to a text, its "
        "weights in; all of them add up to rollout/reward.",
        look="NAME/shaping is what shaping changed in the part NAME.",
    ),
    Logged(
        "rollout/weight/*",
        "The weight that part had in this rollout, where a schedule or a target moves it.",
        look="A steered weight at 0 or at `most` has reached its end: the target is held anyway, or cannot be.",
    ),
    Logged("rollout/task/*/reward", "Of a mixture: mean reward of the texts of that task, as they were paid."),
    Logged("rollout/task/*/texts", "Of a mixture: how many texts of that task the rollout had."),
    Logged("rollout/logged/*", "What a reward function logged itself (`log_metric`)."),
    Logged(
        "rollout/ess",
        "Where a copy of the policy writes (`writer_dtype`): effective sample size of the "
        "importance weights of a few texts, as a share (1: copy and policy are one).",
        look="Low, the copy is far from the policy and corrections are noisy.",
    ),
    Logged("rollout/ratio_p*", "Quantile (5, 50, 95 %) of the tokens' probability ratio, policy over its copy."),
    Logged(
        "writer/kl",
        "Where another engine writes (`[policy] writer`): KL of what it draws from to the policy, recomputed, in nats "
        "a token, by k3 on some texts of the rollout.",
        look="Near 0 where both compute in one precision; above `[policy.vllm] max_kl` the run stops.",
    ),
    Logged(
        "writer/ess",
        "Effective sample size of the importance weights of those texts, as a share (1: engine and policy are one).",
        look="Low, the engine is far from the policy and corrections are noisy.",
    ),
    Logged("writer/ratio_p*", "Quantile (5, 50, 95 %) of their tokens' probability ratio, policy over engine."),
    Logged(
        "writer/staleness",
        "Where another process writes ahead (`[engine] ahead`): how many updates older than the policy the weights are "
        "that wrote this rollout.",
        look="1, except for the first rollout of a run (0). `writer/ess` and `writer/ratio_p*` say how far that is.",
    ),
    Logged(
        "writer/written_ahead",
        "Share of the calls for texts that were foretold, and written while the agent learned.",
        look="Below 1, an agent or a task asks for what cannot be foretold: the same numbers, and less time saved.",
    ),
    Logged("histogram/reward", "The rewards of the texts, counted in ten bins from `low` to `high`."),
    Logged("histogram/part/*", "The same of one part, unweighted."),
    # ------------------------------------------------------------ what it cost
    Logged("spent/episodes", "Finished texts so far."),
    Logged("spent/generated_tokens", "Tokens written so far, thrown away ones included."),
    Logged("spent/reward_calls", "Texts scored so far."),
    Logged("spent/preference_labels", "Judged pairs (or labels) used so far."),
    Logged("spent/gradient_steps", "Steps of the optimizer so far."),
    Logged("spent/gradient_tokens", "Tokens read to compute gradients so far, prompts and every pass included."),
    Logged("spent/seconds", "Wall time so far, evaluations left out."),
    Logged("time/collect_share", "Share of this update's time that writing and scoring took; the rest is learning."),
    Logged("time/tokens_per_second", "Tokens written in this update, by the seconds of the whole update."),
    Logged(
        "time/processor_seconds",
        "Processor time of this update, of all threads and of processes that it started and that have ended.",
    ),
    # ------------------------------------------------------------ learning, of several agents
    Logged("train/lr", "Learning rate of the last step, after its schedule."),
    Logged(
        "train/grad_norm",
        "Norm of the gradient before clipping, mean over this update's steps.",
        look="Above `max_grad_norm` most of the time, the steps are as long as the limit and not "
        "as long as the gradient.",
    ),
    Logged(
        "train/steps_without_signal",
        "Share of steps whose gradient was exactly 0, which the optimizer did not take.",
        look="1: nothing was learned in this update, as where no group has a spread.",
    ),
    Logged(
        "train/gradient_steps",
        "Steps of this update (fewer than planned where a `target_kl` ended it).",
        of=("ppo", "sb3"),
    ),
    Logged(
        "train/policy_loss",
        "The loss that moves the policy, mean over steps. Its value is no progress.",
        of=("ppo", "grpo", "rloo", "reinforce", "options", "sb3"),
    ),
    Logged(
        "train/loss",
        "The agent's loss, mean over this update's steps.",
        of=("dpo", "kto", "rejection", "sft", "sft+rm", "distill"),
    ),
    Logged("train/kl_loss", "With `kl_in_loss`: the KL term of the loss, times its weight (beta).", of=("grpo",)),
    Logged("train/ptx_loss", "Mean loss of a token of the demonstrations that are mixed in, before its weight."),
    Logged(
        "train/entropy",
        "Entropy of the policy's distributions over the vocabulary, in nats per token, exact.",
        of=("ppo", "grpo", "rloo", "reinforce", "sb3"),
    ),
    Logged(
        "train/approx_kl",
        "KL of the policy that wrote to the one that learned, in nats per token, by k3, mean over steps.",
        look="If it is large (above about 0.1), steps leave the region where the clipped loss means "
        "something: lower `lr` or epochs.",
        of=("ppo", "grpo", "rloo", "options", "sb3"),
    ),
    Logged(
        "train/clip_fraction",
        "Share of tokens whose probability ratio left the clipping range, mean over steps.",
        look="Near 0 the clipping never acts; above 0.3 most of the batch is no longer learned from.",
        of=("ppo", "grpo", "rloo", "options", "sb3"),
    ),
    Logged(
        "train/explained_variance",
        "1 - var(return - value) / var(return): 1 is a perfect value model, 0 a constant.",
        of=("ppo", "options", "sb3"),
    ),
    Logged("train/value_loss", "Squared error of the value model, mean over steps.", of=("ppo", "options", "sb3")),
    Logged("train/clip_range", "Stable-Baselines3's clipping range.", of=("sb3",)),
    Logged(
        "train/groups_without_spread",
        "Of what is learned from: the share of groups whose advantages are all 0.",
        of=("grpo", "rloo", "rejection"),
    ),
    Logged(
        "train/rows_without_score",
        "Texts that are not learned from, as no score was given.",
        of=("grpo", "rloo", "reinforce", "ppo", "options", "rejection"),
    ),
    Logged("train/baseline", "The running mean of returns that is subtracted.", of=("reinforce",)),
    Logged(
        "train/importance_weight", "Mean importance weight of the texts (1: written by this policy).", of=("reinforce",)
    ),
    Logged(
        "train/entropy_coefficient",
        "Weight of the entropy bonus in this update: its schedule's, times what the floor's controller made of it.",
        look="At `entropy_max`, the floor is not held.",
        of=("ppo", "grpo", "rloo", "reinforce"),
    ),
    Logged("train/option_loss", "The loss that moves the choice of options.", of=("options",)),
    Logged(
        "train/option_kl",
        "KL between the choices of options before and after the update, in nats per choice.",
        of=("options",),
    ),
    Logged(
        "train/option_entropy",
        "Entropy of the choice of an option, in nats.",
        look="0: only one option is still chosen.",
        of=("options",),
    ),
    Logged("train/first_option", "Share of segments that the first option wrote.", of=("options",)),
    Logged(
        "train/mutual_information",
        "By how many nats a segment says which option wrote it: log p(option | segment) - log mu(option), mean over "
        "segments. At most the log of the number of options.",
        look="0: the options write alike. `diversity_coefficient` pays for it.",
        of=("options",),
    ),
    Logged(
        "options/segment_*/option_*",
        "Share of texts in which that option wrote that segment; the last segment stands for all later ones.",
        of=("options",),
    ),
    Logged("train/beta", "The weight of the KL penalty of the environment, which is their beta.", of=("dpo", "kto")),
    Logged("train/pairs", "Pairs that were learned from in this update.", of=("dpo", "sft+rm")),
    Logged("train/ties", "Pairs left out, as both answers are worth the same.", of=("dpo",)),
    Logged("rewards/chosen", "Beta times log(p/p_ref) of the preferred answers, mean (TRL's name).", of=("dpo",)),
    Logged("rewards/rejected", "The same of the answers that lost.", of=("dpo",)),
    Logged(
        "rewards/accuracies", "Share of pairs of which the preferred answer has the larger such reward.", of=("dpo",)
    ),
    Logged("rewards/margins", "Mean of the difference of the two.", of=("dpo",)),
    Logged("train/desirable", "Answers learned from as good.", of=("kto",)),
    Logged("train/undesirable", "Answers learned from as bad.", of=("kto",)),
    Logged("train/not_judged", "Answers that are neither, and left out.", of=("kto",)),
    Logged(
        "train/reference_point",
        "The estimate of KL to the reference from which gains and losses are measured.",
        of=("kto",),
    ),
    Logged(
        "train/right_side", "Share of answers whose log(p/p_ref) is on their side of the reference point.", of=("kto",)
    ),
    Logged("train/kept", "Texts kept and learned from.", of=("rejection",)),
    Logged("train/kept_reward", "Their mean reward.", of=("rejection",)),
    Logged(
        "train/perplexity",
        "Exp of the mean loss of a token of this update's texts, before its step.",
        of=("sft", "sft+rm"),
    ),
    Logged("train/tokens", "Tokens that were learned.", of=("sft",)),
    Logged("train/texts", "Texts in this update; with sft+rm, demonstrations.", of=("sft", "sft+rm")),
    Logged(
        "train/reward_loss",
        "Mean of -log sigmoid(score(chosen) - score(rejected)) over this update's pairs, before its step.",
        look="ln 2 = 0.69 says nothing.",
        of=("sft+rm",),
    ),
    Logged("train/accuracy", "In how many of these pairs the preferred answer scored higher.", of=("sft+rm",)),
    Logged("train/demonstration_share", "Of the tokens that were read, those of demonstrations.", of=("sft+rm",)),
    Logged("train/skipped_texts", "Texts in which nothing is to be learned.", of=("sft",)),
    Logged(
        "train/nats_per_token",
        "Mean over tokens, before the step, of the divergence between teacher and policy; with 'sequence', of -log p "
        "of the teacher's tokens.",
        of=("distill",),
    ),
    Logged("train/taught", "Share of texts that the teacher wrote.", of=("distill",)),
    # ------------------------------------------------------------ wrappers
    Logged("replay/groups", "Groups in the buffer.", of=("replay",)),
    Logged("replay/bytes", "Size of the buffer.", of=("replay",)),
    Logged("replay/beta", "Power of the importance weights, annealed to 1.", of=("replay",)),
    Logged("replay/age", "Updates since the replayed texts were written, mean.", of=("replay",)),
    Logged("replay/ess", "Effective sample size of the weights of what was drawn, as a share.", of=("replay",)),
    Logged("replay/*", "What the agent inside logs (`train/...`) of its steps on replayed texts.", of=("replay",)),
    Logged("prompts/spread", "Mean spread of past rewards of the prompts that were asked.", of=("prompt_sampling",)),
    Logged("prompts/asked", "Share of all prompts that were asked at least once.", of=("prompt_sampling",)),
    Logged(
        "dynamic/groups_left_out",
        "Groups of this update without spread, left out and counted.",
        of=("dynamic_sampling",),
    ),
    Logged("dynamic/groups_pending", "Groups kept for the next update.", of=("dynamic_sampling",)),
    Logged("tasks/*/share", "Share of that task of the mixture in the next rollout.", of=("task_sampling",)),
    Logged("tasks/*/score", "Mean score of that task in this rollout.", of=("task_sampling",)),
    Logged("curriculum/level", "The level that this update's texts were asked at.", of=("curriculum",)),
    Logged(
        "curriculum/success",
        "Success at the present level: over its window with `by` success, else in this rollout.",
        of=("curriculum",),
    ),
    Logged(
        "curriculum/share_of_level_*",
        "How likely that level was to be drawn for this rollout, with `by` progress.",
        of=("curriculum",),
    ),
    Logged(
        "backward/stage",
        "The stage of this update's texts; at the last one none is begun.",
        of=("backward_curriculum",),
    ),
    Logged(
        "backward/success",
        "Mean of its part of the reward at the present stage, over its window.",
        look="At `threshold` the prefix becomes shorter.",
        of=("backward_curriculum",),
    ),
    Logged(
        "backward/prefix_tokens",
        "Mean number of tokens that were in a text before the agent wrote (its prefix).",
        of=("backward_curriculum",),
    ),
    Logged("temperature/factor", "What the temperature of writing was multiplied by.", of=("temperature",)),
    Logged(
        "temperature/ess",
        "Effective sample size of the weights of the policy to its hot writer, as a share of the texts.",
        look="Near 1 over the number of texts, one of them decides the step: a lower temperature, or shorter texts.",
        of=("temperature",),
    ),
)


def number_called(key: str) -> Logged | None:
    """What the number under `key` is; None where nobody has said. An exact key comes before a pattern."""
    exact = [entry for entry in LOGGED if entry.key == key]
    return next(iter(exact or [entry for entry in LOGGED if fnmatchcase(key, entry.key)]), None)
