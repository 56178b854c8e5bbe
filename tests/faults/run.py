"""Every fault of the catalogue, injected for real: `N of N survived`.

    make faults                            # all of them
    python tests/faults/run.py F1 F21      # some, by number or by a word of their names

Each line says what was done, how long it took, and how much processor time: the measure on a machine that is busy with
other work. What was not survived says why; the exit status is 1 then. Ctrl-C ends it with what was done so far.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import signal
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


def processor_time() -> float:
    """Seconds, of this process and of those it has waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("words", nargs="*", help="numbers (F1), or words of the names (default: all)")
    options.add_argument("--quick", action="store_true", help="those that the suite runs")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left running
    load()
    start, outcomes = time.monotonic(), []
    prepare(wanted := chosen(given.words, quick=given.quick))
    try:
        for one in wanted:
            began, used = time.monotonic(), processor_time()
            outcome = survive(one)
            outcomes.append(outcome.survived)
            word = {True: "survived", False: "LOST", None: "not here"}[outcome.survived]
            more = f": {outcome.said}" if outcome.said and outcome.survived is not False else ""
            took = f"{time.monotonic() - began:6.1f} s {processor_time() - used:6.1f} s CPU"
            print(f"{word:8} {took}  {one}{more}", flush=True)
            if outcome.survived is False:
                print("    " + outcome.said.strip().replace("\n", "\n    "), flush=True)
    except KeyboardInterrupt:
        print(f"stopped: {len(wanted) - len(outcomes)} were not injected")
    had = len(outcomes) - outcomes.count(None)
    took = f"{time.monotonic() - start:.0f} s, {processor_time():.0f} s of processor time"
    print(f"{outcomes.count(True)} of {had} survived; {took}")
    sys.exit(False in outcomes or len(outcomes) < len(wanted))
