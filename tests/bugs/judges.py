"""Bugs in judges, verified answers and tools."""

from __future__ import annotations

from bugs.mutant import Mutant

MUTANTS = (
    Mutant(
        "N46",
        "the verdict on a pair that was turned around is not turned back",
        "rlhf_env/feedback/judging/judge.py",
        "            backward = [None if it is None else _OTHER[it] for it in next(read)] if swap else forward\n",
        "            backward = next(read) if swap else forward\n",
        "tests/rewards/test_judge.py",
    ),
    Mutant(
        "N46",
        "several votes are one answer from the cache",
        "rlhf_env/feedback/judging/chat_model.py",
        'key_of({"url": self._server.shown_url, "vote": vote, "request": request})',
        'key_of({"url": self._server.shown_url, "request": request})',
        "tests/rewards/test_judge.py",
    ),
    Mutant(
        "N46",
        "a judge that cannot be read gives no points instead of no opinion",
        "reward_plugins/rlhf_rewards/judge.py",
        "        return [math.fsum(each) / len(each) if each else None for each in votes]\n",
        "        return [math.fsum(each) / len(each) if each else 0.0 for each in votes]\n",
        "tests/rewards/test_judge.py",
    ),
    Mutant(
        "N46",
        "a response that names a place of the rubric writes into the question",
        "rlhf_env/feedback/judging/rubrics.py",
        "        return _PLACE.sub(lambda found: named.get(found[1], found[0]), self.text)\n",
        "        text = self.text\n"
        "        for name in reversed(named):\n"
        '            text = text.replace(f"{{{name}}}", named[name])\n'
        "        return text\n",
        "tests/rewards/test_judge.py",
    ),
    Mutant(
        "N46",
        "Retry-After is not waited for",
        "rlhf_env/web_calls.py",
        "                pause = max(float(self.jitter.uniform(0.5 * longest, longest)), error.wait)\n",
        "                pause = float(self.jitter.uniform(0.5 * longest, longest))\n",
        "tests/rewards/test_http.py",
    ),
    Mutant(
        "N46",
        "the end token of a turn with a call stands there twice",
        "rlhf_env/envs/chat_replies.py",
        "    return ids[closings[turns - 1] + (closed_by is not None) :]\n",
        "    return ids[closings[turns - 1] :]\n",
        "tests/env/test_tools.py",
    ),
    Mutant(
        "N46",
        "calls of earlier turns are forgotten",
        "rlhf_env/envs/tool_task.py",
        '        made = sum(message["role"] == "tool" for message in episode.messages)\n',
        "        made = 0\n",
        "tests/env/test_tools.py",
    ),
    Mutant(
        "N46",
        "a new text goes on with the conversation of the one before",
        "rlhf_env/envs/text_vector_env.py",
        "            self._messages.pop(row, None)\n",
        "",
        "tests/env/test_tools.py",
    ),
    Mutant(
        "N46",
        "code passes its test before the test has run",
        "reward_plugins/rlhf_rewards/code_process.py",
        '    exec(compile(test, "<test>", "exec"), names)\n    os.write(verdict, _PASSED)\n',
        '    os.write(verdict, _PASSED)\n    exec(compile(test, "<test>", "exec"), names)\n',
        "tests/rewards/test_code_tests.py",
    ),
    Mutant(
        "N46",
        "what could not be verified in time is right",
        "reward_plugins/rlhf_rewards/math_answers.py",
        "            self._late.append(float(error.lost))\n            return False\n",
        "            self._late.append(float(error.lost))\n            return True\n",
        "tests/rewards/test_math_answers.py",
    ),
)
