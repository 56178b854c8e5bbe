"""How many seeds a verdict takes is said before a grid starts: by `check`, by `bench` and in Python."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.cli.main import main
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.statistics import compare, least_p, seeds_for_a_verdict

EXPERIMENT: dict[str, Any] = {
    "task": {"name": "echo", "length": 2},
    "policy": {"tokenizer": "alphabet:ab="},
    "environment": {"num_envs": 4, "max_new_tokens": 3, "max_prompt_tokens": 3},
    "budget": {"updates": 1},
    "evaluation": {"prompts": 2},
}


@pytest.mark.parametrize(
    ("agents", "needed"), [(2, 6), (3, 7), (4, 7), (5, 8), (8, 9), (9, 9), (17, 10)]
)  # 1 + log2((agents - 1) / 0.05): 5.3, 6.3, 6.9, 7.3, 8.1, 8.3, 9.3
def test_one_seed_fewer_shows_nothing_however_large_the_difference(agents: int, needed: int) -> None:
    assert seeds_for_a_verdict(agents - 1) == needed
    for seeds, verdict in ((needed - 1, "inconclusive"), (needed, "better")):
        scores = {str(agent): np.full(seeds, 1000.0) + np.arange(seeds) for agent in range(agents - 1)}
        scores["reference"] = np.zeros(seeds)
        made = compare(scores, "reference", stream=np.random.default_rng(0))
        assert {it.verdict for it in made.values()} == {verdict}
        assert min(it.adjusted for it in made.values()) == least_p(seeds, agents - 1)


def test_a_grid_says_what_would_do() -> None:
    for agents, seeds in product((1, 2, 8), (1, 5, 9)):
        grid = Grid(agents={f"a{number}": {"name": "ppo"} for number in range(agents)}, seeds=seeds)
        assert bool(grid.too_few_seeds) == (agents > 1 and seeds < 9)
    few = Grid(agents={f"a{number}": {"name": "ppo"} for number in range(8)}, seeds=5).too_few_seeds
    assert few.startswith("5 seeds can give no verdict on 8 agents") and "the least p after Holm's correction" in few
    assert "is 0.44. It takes seeds = 9" in few


def test_check_bench_and_python_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid(agents={"reference": {}, "random": {}}, experiment=EXPERIMENT, seeds=1)
    file = tmp_path / "grid.toml"
    file.write_text(grid.to_toml(), encoding="utf-8")

    def command(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["rlhf-env", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    said = "1 seed can give no verdict on 2 agents"
    assert said in command("check", str(file))
    out = command("bench", str(file), "--out", str(tmp_path / "bench"), "--jobs", "1")
    assert out.count(said) == 1 and out.index(said) < out.index("numbers, no claim")
    with pytest.warns(RuntimeWarning, match=said) as warned:
        run_benchmark(grid, tmp_path / "python", jobs=0)
    assert [Path(it.filename).name for it in warned if said in str(it.message)] == ["test_few_seeds.py"]
