"""Bad inputs: each is refused with exit status 2 and a line for each problem, which names it and says what to do.

    python tests/bad_inputs.py              # all of them: `N of N`
    python tests/bad_inputs.py budget csv   # those with a word in their names

Each goes through the command line and, where there is one, through the same door of the Python API, which raises a
ConfigError of the same text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from wrong import (
    boards,
    commands,
    data,
    experiments,
    grids,
    judges,
    layouts,
    lengths,
    own_code,
    pipelines,
    plugins,
    settings,
    shaping,
)
from wrong.table import BAD, Bad

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError
from rlhf_env.shown_text import for_terminal

# Each adds its rows when it is imported.
AREAS = (
    boards,
    experiments,
    settings,
    plugins,
    shaping,
    own_code,
    judges,
    grids,
    data,
    layouts,
    lengths,
    commands,
    pipelines,
)


def wrong_with(bad: Bad, folder: Path) -> str:
    """ "" where it is refused as it must be; else what is not so. `folder` is empty, and the working directory."""
    for name, content in bad.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    status, lines = _said(bad.command)
    if status != 2:
        return f"exit status {status}, said {lines}"
    if len(lines) != len(bad.says) or any(said not in line for line, said in zip(lines, bad.says, strict=False)):
        return f"said {lines}, expected {list(bad.says)}"
    if any(not line.startswith("rlhf-env: ") for line in lines):
        return f"not a line of ours among {lines}"
    place = rf"^rlhf-env: {re.escape(bad.command[-1])}, line (\d+)[:,]"
    named = [int(number) for number in re.findall(place, "\n".join(lines), re.MULTILINE)]
    if bad.lines is not None and (len(named) < len(lines) or not set(named) <= set(bad.lines)):
        return f"said {lines}, and not each names one of the lines {bad.lines}"
    return "" if bad.python is None else _wrong_with_python(bad.python, lines)


def _wrong_with_python(call: Callable[[], object], lines: list[str]) -> str:
    try:
        call()
    except ConfigError as error:
        missing = [
            problem for problem in error.problems[:20] if not any(for_terminal(problem) in line for line in lines)
        ]
        return f"by Python it says {missing}, and the command {lines}" if missing else ""
    except Exception as error:
        return f"by Python {type(error).__name__}: {error}"
    return "Python takes it"


def _said(words: tuple[str, ...]) -> tuple[object, list[str]]:
    """Exit status and the lines on stderr of `rlhf-env WORDS`, run in this process."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["rlhf-env", *words]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as end:
        return end.code, errors.getvalue().splitlines()
    except Exception as error:
        return f"{type(error).__name__}: {error}", []
    finally:
        sys.argv = before
    return 0, []


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    selected = [bad for bad in BAD if all(word in bad.what for word in sys.argv[1:])]
    taken = 0
    for one in selected:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            why = wrong_with(one, Path(place))
        taken += bool(why)
        if why:
            print(f"NOT REFUSED {one}: {why}")
    print(f"{len(selected) - taken} of {len(selected)} refused")
    sys.exit(bool(taken))
