"""Metrics as TensorBoard's files, in the run folder: the one file that imports `tensorboard`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from rlhf_env.errors import DiskRefused
from rlhf_env.learning.tracking import Histogram, LoggedRow, bin_edges, drawn, histograms, numbers, update_of


class _Writer(Protocol):
    """As much of SummaryWriter, which has no types, as is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def add_histogram_raw(
        self,
        tag: str,
        *,
        min: float,
        max: float,
        num: int,
        sum: float,
        sum_squares: float,
        bucket_limits: Sequence[float],
        bucket_counts: Sequence[int],
        global_step: int,
    ) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes the rows as events: of a long run fewer and fewer (see `drawn`), but every evaluation.

    A resumed run writes one more file, whose first event takes back the points that are drawn again.
    """

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._taken_back_from: int | None = None
        self._opened: _Writer | None = None

    def log(self, row: LoggedRow, /) -> None:
        update = update_of(row)
        writer = self._writer()
        shown = drawn(update)
        try:
            for key, value in numbers(row).items():
                if shown or key.startswith("eval/"):
                    writer.add_scalar(key, value, update)
            for key, histogram in histograms(row).items():
                if shown or key.startswith("eval/"):
                    self._add_histogram(key, histogram, update)
        except OSError as error:
            raise self._refused(error) from error

    def rewind(self, update: int, /) -> None:
        self._taken_back_from = update + 1

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _writer(self) -> _Writer:
        """Opened with the first row: only then is it known which points are to be taken back."""
        if self._opened is None:
            try:
                self._opened = SummaryWriter(str(self._folder), purge_step=self._taken_back_from)
            except OSError as error:
                raise self._refused(error) from error
        return self._opened

    def _add_histogram(self, key: str, histogram: Histogram, update: int) -> None:
        """Sums are those of values in the middle of their bins."""
        counts, edges = histogram["counts"], bin_edges(histogram).tolist()
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        self._writer().add_histogram_raw(
            key,
            min=edges[0],
            max=edges[-1],
            num=sum(counts),
            sum=sum(count * at for count, at in zip(counts, middles, strict=True)),
            sum_squares=sum(count * at**2 for count, at in zip(counts, middles, strict=True)),
            # Upper ends. An empty bin below the first says where that one begins.
            bucket_limits=edges,
            bucket_counts=[0, *counts],
            global_step=update,
        )

    def _refused(self, error: OSError) -> DiskRefused:
        return DiskRefused(
            f"{self._folder} cannot be written: {error.strerror or error}. The last checkpoint is whole: make room, "
            "then go on with --resume"
        )
