"""Pin everything that the tests run with: `make lock` writes constraints.txt anew.

    python tests/lock.py             # resolve today's newest versions within the ranges of pyproject.toml, and write
    python tests/lock.py --check     # write nothing; say what would change, exit status 1 if anything would

pip resolves the library with all its extras, without installing anything; what it picks is what constraints.txt holds.
Then `make clean test` tries it, and both are committed together. The ranges in pyproject.toml stay what the library
admits (`make compat` tries both ends); the pins are for whoever clones the project: a release upstream breaks nobody's
first run. The lines above "# pip picked" are held by hand, and pip has to keep to them.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"
PICKED = "# pip picked"
EXTRAS = "all,bench,dev"


def held(text: str) -> str:
    """The lines that are held by hand: those above what pip picked."""
    return text.partition(PICKED)[0].rstrip() + "\n"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved(report: dict[str, object], own: str) -> dict[str, str]:
    """Version by name, out of pip's report: without the library, and without what only names a build (+cpu)."""
    found: dict[str, str] = {}
    for each in report["install"]:  # type: ignore[attr-defined]
        name, version = canonical(each["metadata"]["name"]), each["metadata"]["version"].partition("+")[0]
        if name != own:
            found[name] = version
    return found


def resolve(constraints: str) -> dict[str, str]:
    """What pip would install today, on this Python, into an empty environment."""
    with tempfile.TemporaryDirectory() as place:
        by_hand, report = Path(place) / "held.txt", Path(place) / "report.json"
        by_hand.write_text(constraints, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
        options = ["--ignore-installed", "--report", str(report), "-c", str(by_hand), "-e", f"{ROOT}[{EXTRAS}]"]
        subprocess.run([*pip, *options], check=True)
        return resolved(json.loads(report.read_text(encoding="utf-8")), "rlhf-env")


def written(by_hand: str, versions: dict[str, str]) -> str:
    kept = {canonical(line.partition("==")[0]) for line in by_hand.splitlines() if "==" in line}
    pins = [f"{name}=={version}\n" for name, version in sorted(versions.items()) if name not in kept]
    return f"{by_hand}{PICKED} (make lock, Python {platform.python_version()}):\n{''.join(pins)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if anything would change")
    arguments = parser.parse_args()
    before = FILE.read_text(encoding="utf-8")
    print("Resolving rlhf-env with every extra: a minute or two", flush=True)
    after = written(held(before), resolve(held(before)))
    old, new = (set(text.partition(PICKED)[2].splitlines()[1:]) for text in (before, after))
    for line in sorted(old ^ new, key=lambda line: (line.partition("==")[0], line in new)):
        print("+" if line in new else "-", line)
    if not arguments.check:
        FILE.write_text(after, encoding="utf-8")
        print(f"{len(new)} pins in {FILE.name}, {len(new - old)} of them new: `make clean test` tries them")
    return int(arguments.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
