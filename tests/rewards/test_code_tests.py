"""Code that a model wrote: it passes tests or it does not, and whatever it tries, the limits hold."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rlhf_rewards import code_tests
from rlhf_rewards.code_tests import CodeTests, program_in

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode

ADD = "def add(a, b):\n    return a + b\n"
APART = subprocess.run(["unshare", "-Urpnf", "true"], check=False, capture_output=True).returncode == 0


def written(code: str, *tests: str) -> Episode:
    return make_episode("q", code, meta={"tests": list(tests) or ["pass"]})


def score(code: str, *tests: str, **settings: Any) -> float:
    return float(CodeTests(trust=True, **{"seconds": 5.0, **settings})([written(code, *tests)])[0])


def test_the_share_of_tests_that_pass() -> None:
    tests = "assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add('a', 'b') == 'ab'", "assert sub(1, 2)"
    assert score(ADD, *tests) == 0.5 and score(ADD, *tests, score="all") == 0.0
    assert score(ADD, tests[0], tests[2], score="all") == 1.0
    reward = CodeTests(trust=True)
    assert reward([make_episode("q", ADD, meta={"tests": tests[0]}), written("def (", tests[0])]).tolist() == [1.0, 0.0]
    # One test changes nothing for the next.
    assert score("seen = []", "seen.append(1)", "assert not seen") == 1.0


def test_which_part_of_a_response_is_the_code() -> None:
    assert program_in(f"Sure:\n```python\nx = 1\n```\nBetter:\n```python\n{ADD}```\nDone.") == ADD
    assert program_in(f"```\n{ADD}```") == program_in(f"```py\r\n{ADD}") == program_in(ADD) == ADD


TRIES = {
    "it says it is done": "import os\nos._exit(0)",
    "it leaves": "raise SystemExit(0)",
    "an endless loop": "while True:\n    pass",
    "it waits": "import time\ntime.sleep(60)",
    "it eats memory": "x = bytearray(3 << 30)",
    "it writes a large file": "open('x', 'wb').write(b'x' * (8 << 20))",
    "a recursion without end": "def f():\n    f()\nf()",
    "NUL": "x = 1\0",
    "a lone surrogate": "x = '\ud800'\nraise ValueError",
}


@pytest.mark.parametrize("what", TRIES)
def test_what_breaks_its_limits_has_not_passed(what: str) -> None:
    assert score(TRIES[what], "pass", seconds=1.0, file_mb=4) == 0.0


def test_it_works_in_an_empty_folder_that_goes_and_sees_no_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary")
    looks = (
        "import os\nassert 'canary' not in str(os.environ) and os.listdir() == []\nopen('x', 'w').write(os.getcwd())"
    )
    assert score(looks, f"assert os.getcwd() != {str(Path.cwd())!r} and os.listdir() == ['x']") == 1.0
    assert score(f"open({str(tmp_path / 'where')!r}, 'w').write(__import__('os').getcwd())") == 1.0
    assert not Path((tmp_path / "where").read_text()).exists()


@pytest.mark.skipif(not APART, reason="this system has no namespaces of users for us")
def test_it_has_no_network_and_leaves_no_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        socket.create_connection(("127.0.0.1", port), 2).close()
        reward = CodeTests(trust=True, network="must be cut")
        assert reward([written(reach)]).tolist() == [0.0] and reward.take_logged() == {"code/offline": [1.0]}
    # A child in a session of its own goes with the test.
    stays = "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(7777)"
    assert score(stays) == 1.0
    running = [it.read_bytes() for it in Path("/proc").glob("[0-9]*/cmdline") if _readable(it)]
    assert not any(b"code_process" in line and b"7777" in line for line in running)
    assert score("import os, signal\nos.killpg(0, signal.SIGKILL)\nos.kill(1, signal.SIGKILL)") in (0.0, 1.0)
    if os.getuid() == 0:
        return  # the system counts nobody's processes less than root's
    many = "import os\nfor _ in range(20):\n    if not os.fork():\n        os._exit(0)"
    assert score(many.replace("os._exit(0)", "__import__('time').sleep(9)"), processes=4) == 0.0


def _readable(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:
        return False


def test_a_system_that_does_not_cut_the_network_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = Path(code_tests.__file__).with_name("code_process.py").read_text()
    assert process.count("return bool(ctypes") == 1
    (tmp_path / "connected.py").write_text(process.replace("return bool(ctypes", "return False and bool(ctypes"))
    monkeypatch.setattr(code_tests, "_PROCESS", tmp_path / "connected.py")
    reward = CodeTests(trust=True)
    assert reward([written(ADD, "assert add(1, 2) == 3")]).tolist() == [1.0]
    assert reward.take_logged() == {"code/offline": [0.0]}
    assert score("while True:\n    pass", seconds=0.5) == 0.0
    with pytest.raises(RewardError, match="network: this system does not let it be cut off"):
        CodeTests(trust=True, network="must be cut")([written(ADD)])


def test_it_passes_what_every_reward_must() -> None:
    check_reward(_Few(CodeTests(trust=True, seconds=2.0)), meta={"tests": ["pass", "assert 0"]}, longest=50)


class _Few:
    """The reward, asked about what it has not been asked yet: each text costs processes."""

    low, high = 0.0, 1.0

    def __init__(self, reward: CodeTests) -> None:
        self.reward, self.known = reward, {}

    def __call__(self, episodes: Any, /) -> Any:
        import numpy as np

        for it in episodes:
            if it.response not in self.known and len(self.known) < 6:
                self.known[it.response] = float(self.reward([it])[0])
        return np.array([self.known.get(it.response, 0.0) for it in episodes])


def test_nothing_runs_unless_it_is_said() -> None:
    with pytest.raises(ConfigError, match="reward 'code': trust must be true: this reward runs code that a model"):
        load_rewards({"code": 1.0}, Count("a", 4))
    for given in (None, [], 3, [3], {"a": 1}):
        with pytest.raises(RewardError, match=r"column 'tests': prompt .* has no tests there"):
            CodeTests(trust=True)([make_episode("q", ADD, meta={"tests": given})])
