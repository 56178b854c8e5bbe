"""The catalogue's bugs, put back one at a time: every one must turn the numeric suite red.

    make mutants                                    # all of them: `N killed of N`
    python tests/mutants.py N21 N27 --jobs 1        # some of them

Each mutant is one edit of one source file, applied to a copy of the source, never to the checkout. First the suite runs
on the right code, where nothing may fail. The numbers are those of bugs that RLHF code has had: what happened, where.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("rlhf_env", "agents", "reward_plugins", "tests", "pyproject.toml")
NUMERIC = (
    "tests/learning/test_functional.py",
    "tests/policies",
    "tests/agents/test_sft.py",
    "tests/agents/test_ppo.py",
    "tests/agents/test_grpo.py",
    "tests/agents/test_dpo.py",
    "tests/agents/test_kto.py",
    "tests/agents/test_reinforce.py",
    "tests/agents/test_rloo.py",
    "tests/lab/studies/test_exact.py",
    "tests/rewards/test_kl.py",
    "tests/rewards/test_mix.py",
    "tests/feedback/reward_models/test_reward_model.py",
    "tests/feedback/reward_models/test_losses.py",
    "tests/env/test_multi_turn.py",
    "tests/env/test_tokenizers.py",
    "tests/env/test_views.py",
    "tests/learning/test_resume.py::test_checkpoints_far_apart_are_as_exact",
)
NOT_NUMERIC = "not learns and not resumes and not mix_keeps"  # long, and seldom the first to see a bug
PATIENCE = 300  # seconds for one run: a mutant that hangs is caught too


@dataclass(frozen=True)
class Mutant:
    """`right` stands exactly once in `file`; the bug is to have `wrong` there. `seen_by`: where to look first."""

    number: str
    bug: str
    file: str
    right: str
    wrong: str
    seen_by: str = "tests/learning/test_functional.py"


MUTANTS = (
    Mutant(
        "N1",
        "the first token of an answer is never trained",
        "rlhf_env/learning/rollout.py",
        "            actions[row, start:end] = episode.actions\n",
        "            actions[row, start + 1 : end] = episode.actions[1:]\n",
        "tests/agents/test_sft.py",
    ),
    Mutant(
        "N2",
        "the value after the last token is not 0",
        "rlhf_env/learning/functional.py",
        "    next_value = torch.zeros_like(values[:, 0])\n    if truncated",
        "    next_value = values[:, -1].clone()\n    if truncated",
    ),
    Mutant(
        "N3",
        "text is told from padding by comparing with the padding token",
        "rlhf_env/policies/language_model.py",
        "        self._check_scored(mask, where)\n        length = tokens.shape[1]\n",
        "        mask = mask & (tokens != self.pad_id)\n        length = tokens.shape[1]\n",
        "tests/policies",
    ),
    Mutant(
        "N4",
        "what stands after the end is trained",
        "rlhf_env/learning/rollout.py",
        "            actions[row, start:end] = episode.actions\n",
        "            actions[row, start:] = True\n",
        "tests/agents/test_ppo.py",
    ),
    Mutant(
        "N5",
        "padding on the left shifts the positions",
        "rlhf_env/policies/language_model.py",
        "        if (mask[:, 1:] & ~mask[:, :-1]).any():  # padding",
        "        if False:  # padding",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N5",
        "continued texts are read at the slot's number, not at their own position",
        "rlhf_env/policies/decoding.py",
        "            torch.from_numpy(lengths[:, None] - 1).to(self.model.device),\n",
        "            torch.full((len(lengths), 1), slots - 1, device=self.model.device),\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N6",
        "the reward model reads the last column, not the last token",
        "rlhf_env/feedback/reward_models/model.py",
        "hidden[torch.arange(len(ids), device=ids.device), lengths - 1]",
        "hidden[:, -1]",
        "tests/feedback/reward_models/test_reward_model.py",
    ),
    Mutant(
        "N8",
        "micro-batches sorted by length are not put back in order",
        "rlhf_env/policies/language_model.py",
        "                for row, index in enumerate(batch):\n",
        "                for row, index in enumerate(sorted(batch)):\n",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N10",
        "the temperature is missing when texts are scored",
        "rlhf_env/policies/lm_head.py",
        "    return scores.div_(temperature) if temperature != 1.0 else scores, slope\n",
        "    return scores, slope\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N10",
        "log-probabilities instead of logits are divided by the temperature",
        "rlhf_env/policies/language_model.py",
        "logprobs, entropy = head.score(states[scored], targets, temperature)\n",
        "logprobs, entropy = (value / temperature for value in head.score(states[scored], targets, 1.0))\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N11",
        "top-p in sampling and not in training, accepted",
        "rlhf_env/learning/functional.py",
        "    if not sampling.exact:\n",
        "    if False:\n",
        "tests/agents/test_ppo.py",
    ),
    Mutant(
        "N12",
        "dropout is on while texts are written and scored",
        "rlhf_env/policies/language_model.py",
        "    training = [part for part in module.modules() if part.training]\n",
        "    training: list[nn.Module] = []\n",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N12",
        "dropout stays on in PPO's gradient steps",
        "agents/rlhf_agents/ppo.py",
        "        self.policy.eval()  # with dropout",
        "        self.policy.train()  # with dropout",
        "tests/agents/test_ppo.py",
    ),
    Mutant(
        "N13",
        "the response is decoded and encoded again",
        "rlhf_env/learning/rollout.py",
        "            tokens[row, :start], tokens[row, start:end] = episode.prompt_ids, episode.response_ids\n",
        "            tokens[row, :start], tokens[row, start:end] = episode.prompt_ids, np.sort(episode.response_ids)\n",
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N14",
        "the tokenizer adds its special tokens to every text",
        "rlhf_env/envs/tokenizers.py",
        "add_special_tokens=False",
        "add_special_tokens=True",
        "tests/env/test_tokenizers.py",
    ),
    Mutant(
        "N15",
        "a gradient runs into the recorded log-probabilities",
        "rlhf_env/learning/functional.py",
        "(logprobs.double() - stated.detach())",
        "(logprobs.double() - stated)",
    ),
    Mutant(
        "N15",
        "the ratio is not 1 outside the actions",
        "rlhf_env/learning/functional.py",
        "(logprobs.double() - stated.detach()).masked_fill(~actions, 0.0)",
        "(logprobs.double() - stated.detach())",
    ),
    Mutant(
        "N16",
        "k3 without the -1: not 0 for equal policies",
        "rlhf_env/learning/functional.py",
        "        return torch.expm1(log_ratio) - log_ratio\n",
        "        return torch.exp(log_ratio) - log_ratio\n",
    ),
    Mutant(
        "N17",
        "the score is put on the place after the last token",
        "rlhf_env/learning/rollout.py",
        "                    paid[row, end - 1] += score.weights[name] * raw\n",
        "                    paid[row, min(end, paid.shape[1] - 1)] += score.weights[name] * raw\n",
        "tests/agents",
    ),
    Mutant(
        "N17",
        "a reward that falls due on the environment's words is lost",
        "rlhf_env/learning/functional.py",
        "        pending = pending.masked_fill(actions[:, t], 0.0)\n",
        "        pending = torch.zeros_like(pending)\n",
    ),
    Mutant(
        "N19",
        "the KL penalty has the wrong sign",
        "reward_plugins/rlhf_rewards/kl.py",
        "        return [0.0 - self.coefficient * values for values in differences]",
        "        return [0.0 + self.coefficient * values for values in differences]",
        "tests/rewards/test_kl.py",
    ),
    Mutant(
        "N20",
        "k1 and k3 swapped",
        "rlhf_env/learning/functional.py",
        '    if kind == "k1":\n        return -log_ratio\n',
        '    if kind == "k1":\n        return torch.expm1(log_ratio) - log_ratio\n',
    ),
    Mutant(
        "N21",
        "GAE goes on from values of places that are no actions",
        "rlhf_env/learning/functional.py",
        "        next_value = torch.where(acted, values[:, t], next_value)\n",
        "        next_value = values[:, t]\n",
    ),
    Mutant(
        "N23",
        "a text that was cut from outside is taken for ended",
        "rlhf_env/learning/functional.py",
        "        next_value = final_values.masked_fill(~truncated, 0.0).to(values.dtype)\n",
        "        next_value = torch.zeros_like(next_value)\n",
    ),
    Mutant(
        "N23",
        "the length limit is taken for a cut, and a value is bootstrapped",
        "rlhf_env/learning/rollout.py",
        'torch.tensor([episode.finish_reason == "truncated" for episode in episodes])',
        'torch.tensor([episode.finish_reason in ("truncated", "length") for episode in episodes])',
        "tests/agents/test_ppo.py",
    ),
    Mutant(
        "N25",
        "whitening by the statistics of the padding too",
        "rlhf_env/learning/functional.py",
        "    counted = values[mask]\n",
        "    counted = values.flatten()[: int(mask.sum())]\n",
    ),
    Mutant(
        "N26",
        "the batch's mean instead of the group's",
        "rlhf_env/learning/functional.py",
        "            advantages[rows] = of_group(values)\n",
        "            advantages[rows] = of_group(values) + values.mean() - returns.double().mean()\n",
    ),
    Mutant(
        "N27",
        "equal rewards divided by a rounding error",
        "rlhf_env/learning/functional.py",
        "        if len(values) > 1 and bool(values.min() != values.max()):\n",
        "        if len(values) > 1:\n",
    ),
    Mutant(
        "N27",
        "whitening of equals divides by rounding",
        "rlhf_env/learning/functional.py",
        "    if counted.numel() == 0 or counted.min() == counted.max():\n",
        "    if counted.numel() == 0:\n",
    ),
    Mutant(
        "N28",
        "groups of one are accepted",
        "rlhf_env/learning/agent.py",
        "        if group_size < least:\n",
        "        if group_size < 1:\n",
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N30",
        "a row without a score counts as a reward of 0",
        "rlhf_env/learning/functional.py",
        "        yield (inside if counted is None else inside & counted).nonzero().squeeze(1)\n",
        "        yield inside.nonzero().squeeze(1)\n",
    ),
    Mutant(
        "N31",
        "the reward is the sum of its parts, not the weighted one",
        "rlhf_env/learning/rollout.py",
        "                sum((score.weights[name] * raw for name, raw",
        "                sum((raw for name, raw",
        "tests/agents",
    ),
    Mutant(
        "N32",
        "the baseline of RLOO includes the response itself",
        "rlhf_env/learning/functional.py",
        "        return (values - values.mean()) * (len(values) / (len(values) - 1))\n",
        "        return values - values.mean()\n",
    ),
    Mutant(
        "N34",
        "every micro-batch is normalised by itself (SFT)",
        "agents/rlhf_agents/sft.py",
        'weighted_sum(-logprobs.double(), batch.extras["weight"])',
        'weighted_sum(-logprobs.double(), token_weights(batch.actions, "token-mean"))',
        "tests/agents/test_sft.py",
    ),
    Mutant(
        "N35",
        "sequence-mean weighs tokens, not sequences",
        "rlhf_env/learning/functional.py",
        "        return counted / (rows * counted.sum(dim=1, keepdim=True).clamp(min=1))\n",
        "        return counted / counted.sum().clamp(min=1)\n",
    ),
    Mutant(
        "N37",
        "the value loss lacks its half",
        "rlhf_env/learning/functional.py",
        "    return 0.5 * error\n",
        "    return error\n",
    ),
    Mutant(
        "N37",
        "the value is clipped around the target, not around the old value",
        "rlhf_env/learning/functional.py",
        "        bounded = old_values + (values - old_values).clamp(-clip, clip)\n",
        "        bounded = targets + (values - targets).clamp(-clip, clip)\n",
    ),
    Mutant(
        "N39",
        "chosen and rejected are swapped",
        "rlhf_env/learning/functional.py",
        "    margin = chosen - rejected\n",
        "    margin = rejected - chosen\n",
    ),
    Mutant(
        "PPO",
        "the clip takes the better of the two, not the worse",
        "rlhf_env/learning/functional.py",
        "    return -torch.minimum(ratio * advantages,",
        "    return -torch.maximum(ratio * advantages,",
    ),
    Mutant(
        "GAE",
        "lambda is forgotten",
        "rlhf_env/learning/functional.py",
        "delta + gamma * lam * next_advantage",
        "delta + gamma * next_advantage",
    ),
    Mutant(
        "N40",
        "the order of prompts starts anew after a resume",
        "rlhf_env/learning/loop.py",
        '        source.load_state_dict(state["source"])\n',
        "",
        "tests/learning/test_resume.py::test_checkpoints_far_apart_are_as_exact",
    ),
    Mutant(
        "N7",
        "texts without a token to learn count in the mean",
        "rlhf_env/learning/functional.py",
        "    rows = mask.any(dim=1).sum().clamp(min=1)\n",
        "    rows = torch.tensor(len(mask))\n",
    ),
    Mutant(
        "N24",
        "the step that only resets a row writes its action into the new text",
        "rlhf_env/envs/text_vector_env.py",
        """            resting = self._done.nonzero()[0]
            rewards, terminated, truncated, row_infos = self.advance(actions)
            row_infos |= self._start(resting)
""",
        """            row_infos = self._start(self._done.nonzero()[0])
            rewards, terminated, truncated, more = self.advance(actions)
            row_infos |= more
""",
        "tests/env/test_views.py",
    ),
    Mutant(
        "N15",
        "importance weights of old texts are not cut off",
        "rlhf_env/learning/functional.py",
        "    ratio = log_ratio.clamp(max=math.log(cap)).exp()\n",
        "    ratio = log_ratio.exp()\n",
    ),
    Mutant(
        "N20",
        "k1 in the loss is accepted",
        "agents/rlhf_agents/grpo.py",
        '            if self.kl_in_loss == "k1":\n',
        '            if self.kl_in_loss == "none":\n',
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N32",
        "the KL penalty is paid in the reward and a second time in the loss",
        "agents/rlhf_agents/grpo.py",
        "rollout.returns(without=() if self.config.kl_in_loss is None else self.setup.reward.kl_names)",
        "rollout.returns()",
        "tests/agents/test_grpo.py",
    ),
    Mutant(
        "N39",
        "prompt tokens are in DPO's sums",
        "agents/rlhf_agents/dpo.py",
        "scores = self.policy.evaluate(part.tokens, part.mask, part.actions)",
        "scores = self.policy.evaluate(part.tokens, part.mask, part.mask & (part.mask.cumsum(1) > 1))",
        "tests/agents/test_dpo.py",
    ),
    Mutant(
        "KTO",
        "the reference point may fall below zero",
        "agents/rlhf_agents/kto.py",
        "        return torch.cat(ratios).mean().clamp(min=0.0)\n",
        "        return torch.cat(ratios).mean()\n",
        "tests/agents/test_kto.py",
    ),
)


def environment(tree: Path) -> dict[str, str]:
    """Imports come from the copy, before the installed packages."""
    path = os.pathsep.join(str(tree / part) for part in ("", "agents", "reward_plugins"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_suite(tree: Path, first: str | None = None) -> tuple[str | None, float]:
    """What failed first (None: nothing did), and how many seconds that took."""
    order = NUMERIC if first is None else (first, *NUMERIC)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-k", NOT_NUMERIC, *order],
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it hangs", time.monotonic() - started
    seconds = time.monotonic() - started
    if done.returncode == 0:
        return None, seconds
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, flags=re.MULTILINE)
    return failed.group(1) if failed else f"pytest ended with {done.returncode}: {done.stdout[-300:]}", seconds


def copy_tree(into: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, into / name)
    return into


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("numbers", nargs="*", help="only these (N21 ...); default: all")
    arguments.add_argument("--jobs", type=int, default=2, help="runs side by side (default 2)")
    given = arguments.parse_args()
    mutants = [mutant for mutant in MUTANTS if not given.numbers or mutant.number in given.numbers]
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(given.jobs):
            trees.put(copy_tree(Path(folder) / str(job)))
        failed, seconds = run_suite(Path(folder) / "0")
        if failed is not None:
            print(f"the right code fails at {failed}: repair that first")
            return 1
        print(f"the right code passes the numeric suite in {seconds:.0f} s", flush=True)

        def attempt(mutant: Mutant) -> bool:
            tree = trees.get()
            file = tree / mutant.file
            right = file.read_text(encoding="utf-8")
            file.write_text(right.replace(mutant.right, mutant.wrong, 1), encoding="utf-8")
            try:
                killer, seconds = run_suite(tree, mutant.seen_by)
            finally:
                file.write_text(right, encoding="utf-8")
                trees.put(tree)
            verdict = "SURVIVED" if killer is None else f"killed by {killer}"
            print(f"{mutant.number:4} {mutant.bug}: {verdict} ({seconds:.0f} s)", flush=True)
            return killer is not None

        with ThreadPoolExecutor(given.jobs) as pool:
            killed = sum(pool.map(attempt, mutants))
    print(f"{killed} killed of {len(mutants)}")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
