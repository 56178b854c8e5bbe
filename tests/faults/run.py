"""Every fault of the catalogue, injected for real: `N of N survived`.

    make faults                            # all of them
    python tests/faults/run.py F1 F21      # some, by number or by a word of their names

Each line says what was done and how long it took; what was not survived says why. The exit status is 1 then.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.catalogue import Fault, chosen, survive
from faults.processes import warm_up

MODULES = sorted(
    file.stem
    for file in Path(__file__).parent.glob("*.py")
    if "@fault(" in file.read_text(encoding="utf-8") and file.stem != "catalogue"
)


def load() -> None:
    """Import every module of this folder that has faults: the catalogue is whole afterwards."""
    for module in MODULES:
        importlib.import_module(f"faults.{module}")


def prepare(faults: Sequence[Fault]) -> None:
    """Before they are injected: the imports, and what the faults of a module share (its function `prepare`)."""
    warm_up()
    for module in sorted({one.inject.__module__ for one in faults}):
        getattr(sys.modules[module], "prepare", lambda: None)()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("words", nargs="*", help="numbers (F1), or words of the names (default: all)")
    options.add_argument("--quick", action="store_true", help="those that the suite runs")
    given = options.parse_args()
    load()
    start, outcomes = time.monotonic(), []
    prepare(wanted := chosen(given.words, quick=given.quick))
    for one in wanted:
        began = time.monotonic()
        outcome = survive(one)
        outcomes.append(outcome.survived)
        word = {True: "survived", False: "LOST", None: "not here"}[outcome.survived]
        more = f": {outcome.said}" if outcome.said and outcome.survived is not False else ""
        print(f"{word:8} {time.monotonic() - began:6.1f} s  {one}{more}", flush=True)
        if outcome.survived is False:
            print("    " + outcome.said.strip().replace("\n", "\n    "), flush=True)
    had = len(outcomes) - outcomes.count(None)
    print(f"{outcomes.count(True)} of {had} survived; {time.monotonic() - start:.0f} s")
    sys.exit(False in outcomes)
