"""How long the library takes to be there: an import, the help, the list of plugins; none of them needs torch.

    python benchmarks/startup.py [--rounds 9]

Each is a process of its own; what a bare interpreter takes is measured in turns with it and taken off. Seconds of the
processor: this machine's. That torch stays unloaded is checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

AT_MOST = 0.5
CALL = "import sys; from rlhf_env.cli.main import main; sys.argv = {words}\ntry: main()\nexcept SystemExit: pass\n"
WORK = {
    "import rlhf_env": "import rlhf_env",
    "rlhf-env --help": CALL.format(words=["rlhf-env", "--help"]),
    "rlhf-env plugins": CALL.format(words=["rlhf-env", "plugins"]),
}


def seconds(code: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: %(default)s)")
    rounds = parser.parse_args().rounds
    print(f"{'seconds above a bare interpreter':64} {'median':>7} {'min':>7} {'max':>7}   at most", flush=True)
    for name, code in WORK.items():
        seconds(f"{code}\nimport sys; assert 'torch' not in sys.modules")
        took = []
        for _ in range(rounds):
            bare = seconds("pass")
            took.append(seconds(code) - bare)
        print(f"{name:64} {statistics.median(took):7.2f} {min(took):7.2f} {max(took):7.2f} {AT_MOST:9.2f}", flush=True)


if __name__ == "__main__":
    main()
