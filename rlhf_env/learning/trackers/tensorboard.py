"""Metrics as TensorBoard's files, in the run folder: the one file that imports `tensorboard`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch.utils.tensorboard import SummaryWriter

from rlhf_env.errors import DiskRefused
from rlhf_env.learning.tracking import Histogram, LoggedRow, bin_edges, drawn, histograms, numbers, update_of
from rlhf_env.whole_files import WAY_ON, refused


class TensorBoard:
    """Writes the rows as events: of a long run fewer and fewer (see `drawn`), but every evaluation.

    A resumed run writes one more file, whose first event takes back the points that are drawn again.
    """

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._taken_back_from: int | None = None
        self._opened: Any = None  # SummaryWriter has no types

    def log(self, row: LoggedRow, /) -> None:
        update = update_of(row)
        writer = self._writer()
        shown = drawn(update)
        # All of a row in one event: one for each number took longer than some updates.
        values = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in numbers(row).items()
            if shown or key.startswith("eval/")
        ]
        values += [
            _drawn_histogram(key, histogram)
            for key, histogram in histograms(row).items()
            if shown or key.startswith("eval/")
        ]
        if not values:
            return
        try:
            writer.file_writer.add_summary(Summary(value=values), update)
        except OSError as error:
            raise self._refused(error) from error

    def rewind(self, update: int, /) -> None:
        self._taken_back_from = update + 1

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _writer(self) -> Any:
        """Opened with the first row: only then is it known which points are to be taken back."""
        if self._opened is None:
            try:
                self._opened = SummaryWriter(str(self._folder), purge_step=self._taken_back_from)
            except OSError as error:
                raise self._refused(error) from error
        return self._opened

    def _refused(self, error: OSError) -> DiskRefused:
        return refused(str(self._folder), error, *WAY_ON, self._folder.parent)


def _drawn_histogram(key: str, histogram: Histogram) -> Any:
    """Sums are those of values in the middle of their bins."""
    counts, edges = histogram["counts"], bin_edges(histogram).tolist()
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return Summary.Value(
        tag=key,
        histo=HistogramProto(
            min=edges[0],
            max=edges[-1],
            num=sum(counts),
            sum=sum(count * at for count, at in zip(counts, middles, strict=True)),
            sum_squares=sum(count * at**2 for count, at in zip(counts, middles, strict=True)),
            # Upper ends. An empty bin below the first says where that one begins.
            bucket_limit=edges,
            bucket=[0, *counts],
        ),
    )
