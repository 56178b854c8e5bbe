"""Bugs of texts that are too long, of demonstrations in conversations, and of margins."""

from __future__ import annotations

from bugs.mutant import Mutant

_OVER_LONG, _LENGTHS = "rlhf_env/envs/over_long.py", "rlhf_env/feedback/interchange/lengths.py"
_DEMONSTRATIONS, _SOURCES = "rlhf_env/learning/demonstrations.py", "rlhf_env/learning/sources.py"
_DPO = "agents/rlhf_agents/dpo.py"
_SEES_PROMPTS, _SEES_PAIRS = "tests/env/test_over_long.py", "tests/feedback/test_fit_lengths.py"
_SEES_ANSWERS = "tests/learning/test_demonstrations.py"

MUTANTS = (
    Mutant("K14", "left is right", _OVER_LONG, 'if how == "cut right":', 'if how != "cut right":', _SEES_PROMPTS),
    Mutant(
        "K14",
        "one token less than fits is kept",
        _OVER_LONG,
        "    return low\n",
        "    return max(low - 1, min(low, 1))\n",
        _SEES_PROMPTS,
    ),
    Mutant(
        "K14",
        "what was cut is not known by the whole prompt",
        "rlhf_env/lab/evaluation/asked.py",
        "    if prompt.uncut is not None:\n",
        "    if False:\n",
        _SEES_PAIRS,
    ),
    Mutant(
        "K14",
        "prompts that were left out are counted as there",
        _OVER_LONG,
        "        return None if self.task.size is None else len(self._places)\n",
        "        return self.task.size\n",
        _SEES_PROMPTS,
    ),
    Mutant(
        "K14",
        "held-out prompts are not looked at",
        _OVER_LONG,
        "            self._aside = FittedTask(aside, self._tokenizer, self.most, self.how)\n",
        "            return aside\n",
        _SEES_PROMPTS,
    ),
    Mutant(
        "K14",
        "the sides of a pair get prompts of different lengths",
        _LENGTHS,
        "        if tokens > max(most, needed[key][0] if key in needed else 0):\n",
        "        if tokens > most:\n",
        _SEES_PAIRS,
    ),
    Mutant(
        "K14",
        "an answer that was cut ends like a finished one",
        _LENGTHS,
        'return replace(response, text=response.text[:characters], finish_reason="length")',
        "return replace(response, text=response.text[:characters])",
        _SEES_PAIRS,
    ),
    Mutant(
        "K14",
        "a prompt is cut to nothing for the sake of its answer",
        _LENGTHS,
        "        room = max(most - (tokens - asked), most // 2)\n",
        "        room = max(most - (tokens - asked), 1)\n",
        _SEES_PAIRS,
    ),
    Mutant(
        "SFT",
        "what others say between two answers is learned",
        _DEMONSTRATIONS,
        "np.zeros(between, np.bool_)",
        "np.ones(between, np.bool_)",
        _SEES_ANSWERS,
    ),
    Mutant(
        "SFT",
        "turns are put together whose prompt does not begin with the text before",
        _DEMONSTRATIONS,
        "if before is None or not fits or not np.array_equal(before.ids, episode.prompt_ids[:length]):",
        "if before is None or not fits:",
        _SEES_ANSWERS,
    ),
    Mutant(
        "SFT",
        "what follows the end token is learned",
        _DEMONSTRATIONS,
        "    return [] if closing is None else ids[: closing + 1]\n",
        "    return [] if closing is None else ids\n",
        _SEES_ANSWERS,
    ),
    Mutant(
        "SFT",
        "a text that does not fit a step is lost",
        _SOURCES,
        "                drawn.place -= 1  # it begins the next rollout\n",
        "",
        _SEES_ANSWERS,
    ),
    Mutant(
        "ODPO",
        "margins stay behind when pairs are put in another order",
        _DPO,
        "offset=None if offset is None else offset[pairs],",
        "offset=None if offset is None else offset[: len(pairs)],",
        "tests/agents/test_dpo.py",
    ),
    Mutant(
        "ODPO",
        "the offset has the wrong sign",
        "rlhf_env/learning/functional.py",
        "above, below = above - offset, below + offset",
        "above, below = above + offset, below - offset",
        "tests/learning/test_functional.py",
    ),
    Mutant(
        "ODPO",
        "a margin of a stored pair is paid as a reward",
        "rlhf_env/learning/rollout.py",
        "**dict.fromkeys(known, 0.0)}",
        "**dict.fromkeys(known, 1.0)}",
        "tests/feedback/test_margins.py",
    ),
)
