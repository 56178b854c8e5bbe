"""The referee: what it measures is what `rlhf-env lab exact` measures, and it tells an objective from another."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.estimators import Batches
from rlhf_env.lab.studies.exact.losses import measure_pair_loss, measure_token_loss, pair_losses, token_losses
from rlhf_env.lab.studies.referee import second
from rlhf_env.lab.studies.referee.entries import Differs, LibraryObjective
from rlhf_env.lab.studies.referee.measuring import Measurable, how_far_apart, measure_expected, share_gained
from rlhf_env.lab.studies.referee.ours import objectives, pair_entry, token_entry
from rlhf_env.lab.studies.referee.page import by_library, referee_page, referee_tables
from rlhf_env.lab.studies.referee.rows import Refereed, Worlds, read_refereed, referee
from rlhf_env.lab.studies.referee.texts import Draws, Texts
from rlhf_env.lab.studies.referee.wheels import LIBRARIES, Library, importing, of_wheel, require_wheels

PUBLISHED = Path(__file__).resolve().parents[3] / "docs" / "referee.json"
WORLDS = Worlds()


def likelihood(texts: Texts, advantages: Tensor) -> Tensor:
    """REINFORCE as a library might have it: the mean over texts of -A log pi."""
    return -(texts.logprobs.sum(1) * advantages).mean()


def returns(texts: Texts) -> Tensor:
    return texts.penalised.sum(1)


REINFORCE = Measurable(likelihood, returns)


def test_what_is_unbiased_is_measured_as_such_and_ends_at_the_optimum() -> None:
    draws, other = WORLDS.groups[0], WORLDS.groups[1]
    found = measure_expected(REINFORCE, draws, WORLDS.at_large)
    assert found.bias < 1e-12
    assert found.cosine == pytest.approx(1.0)
    assert measure_expected(REINFORCE, other, WORLDS.at_small).bias < 1e-12
    assert share_gained(REINFORCE, other) > 0.999


@pytest.mark.parametrize("name", ["clip", "dapo", "dr-grpo", "reinforce++"])
def test_our_losses_are_measured_as_lab_exact_measures_them(name: str) -> None:
    """There, batches are summed up in one formula; here, each loss is called."""
    (loss,) = (loss for loss in token_losses() if loss.name == name)
    exact = measure_token_loss(WORLDS.small, WORLDS.at_small, loss, Batches.of(WORLDS.small.tree, 3))
    found = measure_expected(token_entry(loss).theirs, WORLDS.groups[1], WORLDS.at_small)
    assert torch.allclose(found.mean, exact.mean, rtol=0, atol=1e-12)
    assert found.noise == pytest.approx(exact.noise, rel=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "simpo"])
def test_pair_losses_too(name: str) -> None:
    (loss,) = (loss for loss in pair_losses() if loss.name == name)
    entry = pair_entry(loss)
    exact = measure_pair_loss(WORLDS.small, WORLDS.at_small, loss)
    found = measure_expected(entry.theirs, WORLDS.pairs(entry.wrong)[1], WORLDS.at_small)
    assert torch.allclose(found.mean, exact.mean, rtol=0, atol=1e-12)


def test_a_loss_whose_batches_do_not_add_up_is_called_for_each_of_them() -> None:
    """The advantages of several batches are whitened together; those of one batch by itself."""

    def whitened(texts: Texts) -> Tensor:
        values = texts.penalised.sum(1)
        return (values - values.mean()) / (values.std(correction=0) + 1.0)

    def of_square(texts: Texts, advantages: Tensor) -> Tensor:
        return likelihood(texts, advantages) ** 2

    draws = WORLDS.groups[2]
    for loss in (likelihood, of_square):
        one = Measurable(loss, whitened)
        together = one.gradients(draws, WORLDS.at_small, WORLDS.at_small)
        alone = one.gradients(draws, WORLDS.at_small, WORLDS.at_small, alone=True)
        assert torch.allclose(together, alone, rtol=0, atol=1e-12)


def test_a_sum_is_told_from_a_mean() -> None:
    def summed(texts: Texts, advantages: Tensor) -> Tensor:
        return 0.5 * likelihood(texts, advantages) * len(advantages)

    found = measure_expected(Measurable(summed, returns), WORLDS.groups[2], WORLDS.at_small)
    assert found.bias < 1e-12


def test_the_second_derivation_flags_a_line_and_says_how_far_it_explains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_env.lab.studies.referee.rows.share_gained", lambda *_: 1.0)  # seconds, and not asked

    def grpo(epsilon: float) -> Measurable:
        return second.derived(partial(second.of_group, epsilon=epsilon), second.uncapped, "token-mean")

    differs = Differs(line="+ 1e-4", module="made.up", why="another constant", explained=grpo(1e-4))
    entry = LibraryObjective(maker="made up", name="grpo", theirs=grpo(1e-4), second=grpo(1e-6), differs=differs)
    row = WORLDS.row(entry, lambda found: f"{found.module}:1")
    assert not row.agrees
    assert (row.line, row.source) == ("made.up:1", "+ 1e-4")
    assert row.explained is not None and row.explained < 1e-14
    same = WORLDS.row(replace(entry, second=grpo(1e-4)), lambda found: found.module)
    assert same.agrees
    assert (same.line, same.explained) == ("", None)


def test_no_number_is_no_agreement() -> None:
    def nothing(texts: Texts, advantages: Tensor) -> Tensor:
        return likelihood(texts, advantages) * torch.nan

    assert how_far_apart(Measurable(nothing, returns), REINFORCE, WORLDS.groups[2], WORLDS.at_small) == torch.inf


def test_every_pair_is_drawn_and_wrong_labels_are_the_other_way_round() -> None:
    right, wrong = (Draws.pairs(WORLDS.small, share) for share in (0.0, 1.0))
    reference = WORLDS.small.reference
    one, other = (draws.chance(reference) for draws in (right, wrong))
    assert float(one.sum()) == pytest.approx(1.0)
    swapped = {tuple(pair): float(chance) for pair, chance in zip(wrong.members.tolist(), other, strict=True)}
    for (first, then), chance in zip(right.members.tolist(), one.tolist(), strict=True):
        assert swapped[then, first] == pytest.approx(chance)


def test_a_library_is_entered_without_what_its_losses_do_not_call(tmp_path: Path) -> None:
    folder = tmp_path / "madeup" / "madeup"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('entered')")
    (folder / "loss.py").write_text("import absent.deep\nfrom absent import Anything\nTWO = 2\n")
    library = Library(name="madeup", version="1", sha256="", entered=("madeup",), stand_ins=("absent",))
    with importing(library, tmp_path):
        assert of_wheel("madeup.loss", library, tmp_path).TWO == 2
    assert not {"madeup", "madeup.loss", "absent", "absent.deep"} & set(sys.modules)
    assert not any("madeup" in place for place in sys.path)


def test_a_missing_wheel_and_another_file_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no wheel of trl, verl, .* `make referee` downloads"):
        require_wheels(tmp_path, LIBRARIES)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "trl").mkdir()
    (tmp_path / "wheels" / "trl-1.16.0-py3-none-any.whl").write_bytes(b"another file")
    with pytest.raises(ConfigError, match="another file than the one that the table is of"):
        require_wheels(tmp_path, LIBRARIES[:1])


def test_our_own_rows_need_no_wheel_and_come_back_from_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = [entry for entry in objectives() if entry.name in ("dr-grpo", "RLOO")]
    monkeypatch.setattr("rlhf_env.lab.studies.referee.rows.ours.objectives", lambda: iter(few))
    found = referee(tmp_path, "rlhf-env")
    assert [row.name for row in found.rows] == ["dr-grpo", "RLOO"]
    rloo = found.rows[1]
    assert rloo.large.bias < 1e-12
    assert rloo.gained is not None and rloo.gained > 0.999
    assert read_refereed(found.as_json()).rows == found.rows
    assert referee_tables(found) is not None
    with pytest.raises(ConfigError, match="no wheel of"):
        referee(tmp_path, "verl")


def published() -> Refereed:
    return read_refereed(PUBLISHED.read_text())


def test_the_page_is_made_of_the_published_numbers() -> None:
    page = PUBLISHED.with_suffix(".md")
    assert page.read_text() == referee_page(published()), "rlhf-env lab referee --markdown > docs/referee.md"


def test_the_readme_has_the_table_of_libraries() -> None:
    readme = (PUBLISHED.parents[1] / "README.md").read_text(encoding="utf-8")
    found = published()
    assert by_library(found) in readme
    words = " ".join(readme.split())
    assert f"{found.theirs} objectives, {found.theirs - len(found.flagged)} as we derive them again to 1e-10" in words


def test_the_published_table_is_of_these_wheels_and_wide_enough() -> None:
    found = published()
    assert {(each.name, each.version, each.sha256) for each in found.releases} <= {
        (each.name, each.version, each.sha256) for each in LIBRARIES
    }
    assert found.theirs >= 40
    assert len({row.maker for row in found.rows}) - 1 >= 4
    for row in found.flagged:
        assert "the line is gone" not in row.line, row
        assert row.explained is not None and row.explained <= 1e-7, row  # float32 has no more digits
    assert json.loads(PUBLISHED.read_text())["processor_seconds"] < 2 * 300
