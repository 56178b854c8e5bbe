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
    """One key, or a pattern of keys, and what the number is. `look`: what to look at it for, where that is known."""

    key: str
    meaning: str
    look: str = ""


LOGGED: tuple[Logged, ...] = (
    Logged("update", "Updates of the agent so far; row 0 is the evaluation before training."),
    # ------------------------------------------------------------ the texts of this update
    Logged("rollout/reward", "Mean reward of a text, all parts times their weights: what training maximises, sampled."),
    Logged("rollout/reward_std", "Its standard deviation over the texts."),
    Logged(
        "rollout/reward_without_kl_std",
        "Standard deviation of what texts earned but for the KL penalty.",
        "Near 0, the texts are all worth the same, and only the penalty is learned from.",
    ),
    Logged("rollout/part/*_std", "Standard deviation of that part over the texts it scored, unweighted."),
    Logged("rollout/part/*", "Mean of that part of the reward, unweighted, over the texts that it scored."),
    Logged(
        "rollout/kl",
        "KL of the policy to the reference, in nats a text: the mean of log p - log p_ref, summed over the text (k1).",
        "It grows as the policy moves away; `max_kl` ends a run by it.",
    ),
    Logged("rollout/kl_std", "Standard deviation of that sum over the texts."),
    Logged(
        "rollout/kl_k3",
        "The same KL by Schulman's k3, (p_ref/p - 1) - log(p_ref/p): never negative, less noisy near the reference.",
        "Far from the reference its tails are heavy: where k1 and k3 disagree widely, neither is precise.",
    ),
    Logged(
        "rollout/entropy",
        "Entropy of the policy in nats a token, sampled: the mean of -log p over the tokens that it drew.",
        "A fall to near 0 early is a policy that no longer tries anything else.",
    ),
    Logged("rollout/length", "Tokens that the agent wrote, a text; the end token counts."),
    Logged(
        "rollout/cut_at_limit",
        "Share of texts that `max_new_tokens` ended.",
        "A rise says that texts outgrow their limit; a part `missing_end` or `overlong` makes that cost something.",
    ),
    Logged("rollout/cut_from_outside", "Share of texts that something outside the task stopped, such as a TimeLimit."),
    Logged(
        "rollout/groups_without_spread",
        "Share of groups (answers to one prompt) whose members all earned the same, KL left aside.",
        "They teach an agent that compares answers nothing: near 1, the task is too hard or solved.",
    ),
    Logged("rollout/failed/*", 'Texts on which that part of the reward failed (`on_error` is not "stop").'),
    Logged("rollout/abstained/*", "Texts of which that part said nothing (None)."),
    Logged("rollout/unscored", "Texts without a score, as some part said nothing of them: they are not learned from."),
    Logged("rollout/logged/*", "What a reward function logged itself (`log_metric`)."),
    Logged(
        "rollout/ess",
        "Where a copy of the policy writes (`writer_dtype`): effective sample size of the importance weights of a few "
        "texts, as a share (1: copy and policy are one).",
        "Low, the copy is far from the policy and corrections are noisy.",
    ),
    Logged("rollout/ratio_p*", "Quantile (5, 50, 95 %) of the tokens' probability ratio, policy over its copy."),
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
    # ------------------------------------------------------------ learning, of several agents
    Logged("train/lr", "Learning rate of the last step, after its schedule."),
    Logged(
        "train/grad_norm",
        "Norm of the gradient before clipping, mean over this update's steps.",
        "Above `max_grad_norm` most of the time, the steps are as long as the limit and not as long as the gradient.",
    ),
    Logged(
        "train/steps_without_signal",
        "Share of steps whose gradient was exactly 0, which the optimizer did not take.",
        "1: nothing was learned in this update, as where no group has a spread.",
    ),
    Logged("train/gradient_steps", "Steps of this update (fewer than planned where a `target_kl` ended it)."),
    Logged("train/policy_loss", "The loss that moves the policy, mean over steps. Its value is no progress."),
    Logged("train/loss", "The agent's loss, mean over this update's steps."),
    Logged("train/kl_loss", "grpo with `kl_in_loss`: the KL term of the loss, times its weight (beta)."),
    Logged("train/ptx_loss", "Mean loss of a token of the demonstrations that are mixed in, before its weight."),
    Logged("train/entropy", "Entropy of the policy's distributions over the vocabulary, in nats a token, exact."),
    Logged(
        "train/approx_kl",
        "KL of the policy that wrote to the one that learned, a token, by k3, mean over steps.",
        "Large (above some 0.1), steps leave the region where the clipped loss means something: lower `lr` or epochs.",
    ),
    Logged(
        "train/clip_fraction",
        "Share of tokens whose probability ratio left the clipping range, mean over steps.",
        "Near 0 the clipping never acts; above 0.3 most of the batch is no longer learned from.",
    ),
    Logged(
        "train/explained_variance", "1 - var(return - value) / var(return): 1 is a perfect value model, 0 a constant."
    ),
    Logged("train/value_loss", "Squared error of the value model, mean over steps."),
    Logged("train/clip_range", "Stable-Baselines3's clipping range."),
    Logged("train/groups_without_spread", "Of what is learned from: the share of groups whose advantages are all 0."),
    Logged("train/rows_without_score", "Texts that are not learned from, as no score was given."),
    Logged("train/baseline", "reinforce: the running mean of returns that is subtracted."),
    Logged("train/importance_weight", "reinforce: mean importance weight of the texts (1: written by this policy)."),
    Logged("train/option_loss", "options: the loss that moves the choice of options."),
    Logged(
        "train/option_kl", "options: KL between the choices of options before and after the update, in nats a choice."
    ),
    Logged(
        "train/option_entropy",
        "options: entropy of the choice of an option, in nats.",
        "0: only one option is still chosen.",
    ),
    Logged("train/first_option", "options: share of segments that the first option wrote."),
    Logged("train/beta", "dpo, kto: the weight of the KL penalty of the environment, which is their beta."),
    Logged("train/pairs", "dpo: pairs that were learned from in this update."),
    Logged("train/ties", "dpo: pairs left out, as both answers are worth the same."),
    Logged("rewards/chosen", "dpo: beta times log(p/p_ref) of the preferred answers, mean (TRL's name)."),
    Logged("rewards/rejected", "dpo: the same of the answers that lost."),
    Logged("rewards/accuracies", "dpo: share of pairs of which the preferred answer has the larger such reward."),
    Logged("rewards/margins", "dpo: mean of the difference of the two."),
    Logged("train/desirable", "kto: answers learned from as good."),
    Logged("train/undesirable", "kto: answers learned from as bad."),
    Logged("train/not_judged", "kto: answers that are neither, and left out."),
    Logged(
        "train/reference_point", "kto: the estimate of KL to the reference from which gains and losses are measured."
    ),
    Logged("train/right_side", "kto: share of answers whose log(p/p_ref) is on their side of the reference point."),
    Logged("train/kept", "rejection: texts kept and learned from."),
    Logged("train/kept_reward", "rejection: their mean reward."),
    Logged("train/perplexity", "sft: exp of the mean loss of a token of this update's texts, before its step."),
    Logged("train/tokens", "sft: tokens that were learned."),
    Logged("train/texts", "sft: texts in this update."),
    Logged("train/skipped_texts", "sft: texts in which nothing is to be learned."),
    # ------------------------------------------------------------ wrappers
    Logged("replay/groups", "replay: groups in the buffer."),
    Logged("replay/bytes", "replay: size of the buffer."),
    Logged("replay/beta", "replay: power of the importance weights, annealed to 1."),
    Logged("replay/age", "replay: updates since the replayed texts were written, mean."),
    Logged("replay/ess", "replay: effective sample size of the weights of what was drawn, as a share."),
    Logged("replay/*", "replay: what the agent inside logs (`train/...`) of its steps on replayed texts."),
    Logged("prompts/spread", "prompt_sampling: mean spread of past rewards of the prompts that were asked."),
    Logged("prompts/asked", "prompt_sampling: share of all prompts that were asked at least once."),
    Logged("dynamic/groups_left_out", "dynamic_sampling: groups of this update without spread, left out and counted."),
    Logged("dynamic/groups_pending", "dynamic_sampling: groups kept for the next update."),
    Logged("tasks/*/share", "task_sampling: share of that task of the mixture in the next rollout."),
    Logged("tasks/*/score", "task_sampling: mean score of that task in this rollout."),
    Logged("curriculum/level", "curriculum: the level that the next texts are asked at."),
    Logged("curriculum/success", "curriculum: success at the present level, over its window."),
)


def number_called(key: str) -> Logged | None:
    """What the number under `key` is; None where nobody has said. An exact key comes before a pattern."""
    exact = [entry for entry in LOGGED if entry.key == key]
    return next(iter(exact or [entry for entry in LOGGED if fnmatchcase(key, entry.key)]), None)
