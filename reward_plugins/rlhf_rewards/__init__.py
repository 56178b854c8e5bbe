"""The list of the built-in rewards, one file each. Importing it imports no torch."""

from __future__ import annotations

from rlhf_env.plugins import Register, hookimpl


@hookimpl
def register_rewards(register: Register) -> None:
    register("bradley_terry", "rlhf_rewards.bradley_terry:BradleyTerry")
    register("ensemble", "rlhf_rewards.ensemble:Ensemble")
    register("fairness", "rlhf_rewards.fairness:Fairness")
    register("kl", "rlhf_rewards.kl:KL")
    register("http", "rlhf_rewards.http:Http")
    register("judge", "rlhf_rewards.judge:Judge")
    register("judge_pairs", "rlhf_rewards.judge_pairs:JudgePairs")
    register("diversity", "rlhf_rewards.diversity:Diversity")
    register("math", "rlhf_rewards.math_answers:MathAnswers", needs="math")
    register("code", "rlhf_rewards.code_tests:CodeTests")
    register("length", "rlhf_rewards.length:Length")
    register("missing_end", "rlhf_rewards.missing_end:MissingEnd")
    register("novelty_embedding", "rlhf_rewards.novelty_embedding:NoveltyEmbedding")
    register("novelty_ngrams", "rlhf_rewards.novelty_ngrams:NoveltyNgrams")
    register("novelty_rnd", "rlhf_rewards.novelty_rnd:NoveltyRND")
    register("overlong", "rlhf_rewards.overlong:Overlong")
    register("repetition", "rlhf_rewards.repetition:Repetition")
    register("shaping", "rlhf_rewards.shaping:PotentialShaping")
    register("sentiment", "rlhf_rewards.sentiment:Sentiment", needs="demo")
    register("teacher", "rlhf_rewards.teacher:Teacher")
    register("upbeat", "rlhf_rewards.upbeat:Upbeat", needs="demo")
