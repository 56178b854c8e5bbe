"""The page of model families says what the installed transformers does; the check behind it sees what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rlhf_env.errors import ConfigError
from rlhf_env.policies import decoding
from rlhf_env.testing.families import FamilyCheck, check_families, check_family, families_page
from rlhf_env.testing.tiny_models import families, tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
# One of each kind: fused, cached, cached in float32, whole, an encoder, one that writes no text.
SOME = ("llama", "gpt_neox", "gpt_neo", "openai-gpt", "mamba", "bert", "musicgen")


def rows_of(page: str) -> dict[str, tuple[str, list[str]]]:
    """Of each family of a page, the heading that it stands under and its cells."""
    rows: dict[str, tuple[str, list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").partition(" (")[0]
        elif line.startswith("| `"):
            cells = line.strip("| ").split(" | ")
            rows[cells[0].split("`")[1]] = heading, cells[1:]
    return rows


@pytest.fixture(scope="module")
def checks() -> list[FamilyCheck]:
    return list(check_families(SOME))


def same_size(one: str, other: str) -> bool:
    """Within a factor of 1,000, and both on one side of 1e-10: rounding differs from machine to machine."""
    if "-" in (one, other):
        return one == other
    small, large = sorted(max(float(it), 1e-14) for it in (one, other))
    return large <= 1e-10 or (small > 1e-10 and large / small <= 1000) or large < 1e-8


def test_the_page_is_what_the_installed_version_does(checks: list[FamilyCheck]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" not in page:
        pytest.skip("the page is of another version of transformers")
    written, now = rows_of(page), rows_of(families_page(checks))
    assert set(now) == set(SOME)
    for family, (heading, cells) in now.items():
        assert written[family][0] == heading, family
        if len(cells) > 1:
            assert written[family][1][0] == cells[0], family  # its path
            for before, after in zip(written[family][1][1:], cells[1:], strict=True):
                assert same_size(before, after), (family, written[family], cells)


def test_every_family_has_a_row() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" not in page:
        pytest.skip("the page is of another version of transformers")
    assert set(rows_of(page)) == set(families())
    assert "## WRONG" not in page


def test_the_readme_counts_as_the_page_does() -> None:
    readme = " ".join((PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    headings = [heading for heading, _ in rows_of(PAGE.read_text(encoding="utf-8")).values()]
    exact, right, refused, tried = (headings.count(it) for it in ("Exact", "Right", "Refused", "Not tried"))
    assert f"all {len(headings)} families: {exact} exact to 1e-10, {right} right" in readme
    assert f"own error, {refused} refused, {tried} not tried." in readme
    assert f"in the {exact} families of" in readme and f"in {right} others" in readme


def test_what_is_found_is_told(checks: list[FamilyCheck]) -> None:
    by_family = {it.family: it for it in checks}
    paths = {it.family: (it.verdict, it.path) for it in checks}
    assert paths == {
        "llama": ("exact", "fused"),
        "gpt_neox": ("exact", "cached"),
        "gpt_neo": ("right", "cached"),
        "openai-gpt": ("exact", "whole"),
        "mamba": ("right", "whole"),
        "bert": ("refused", ""),
        "musicgen": ("not tried", ""),
    }
    assert by_family["llama"].write <= 1e-10 and math.isnan(by_family["llama"].windows)
    assert 1e-10 < by_family["gpt_neo"].windows < 1e-4
    assert "no causal language model" in by_family["bert"].reason
    assert by_family["musicgen"].reason == "it writes four codes of sound at a time, and no text"
    assert by_family["bert"].as_json()["write"] is None


def test_a_wrong_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decoding.draw

    def a_little_off(*arguments: Any) -> Any:
        tokens, logprobs = honest(*arguments)
        return tokens, logprobs + 0.01 * (len(tokens) > 4)  # of more texts than are written at load

    monkeypatch.setattr(decoding, "draw", a_little_off)
    told = check_family("llama")
    assert (told.verdict, told.reason) == ("WRONG", "its log-probabilities")
    assert "## WRONG (1)" in families_page([told])


def test_a_name_that_is_no_family() -> None:
    with pytest.raises(ConfigError, match=r"'lama' is no family of causal language models in transformers \(near it: "):
        check_families(["llama", "lama"])


def test_a_tiny_model_is_the_same_every_time() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = tiny_model("gpt2"), tiny_model("gpt2")
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert np.array_equal(a.detach().numpy(), b.detach().numpy())
