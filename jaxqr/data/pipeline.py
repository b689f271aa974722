"""Rows to padded, bucketed batches whose place in the data can be saved.

Rows are tokenized once, shuffled every epoch by grain, and padded to the
smallest bucket that holds them, so that a step compiles once per bucket. An iterator
saves as a few numbers: restored, it goes on with the very next batch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from jaxqr.data.tokenize import EncoderRow, Row, pad_pairs, pad_right
from jaxqr.types import LabeledBatch, Pairs, TrainState

R = TypeVar("R")
Batch = TypeVar("Batch")

BUCKETS = (1, 16, 32, 64, 128, 256, 512, 1024)


class Batches(Generic[Batch]):
    """Endless shuffled batches of `rows`, and the place among them.

    Args:
        rows: any sequence.
        collate: `batch_size` rows to a batch.
        batch_size: rows per batch; an epoch's last rows share a batch with the first
            rows of the next epoch.
        seed: decides the order, a new one every epoch.

    Raises:
        ValueError: no rows.

    >>> batches = Batches([1, 2, 3], sorted, batch_size=3, seed=0)
    >>> batches.next(None)
    [1, 2, 3]
    """

    def __init__(
        self,
        rows: Sequence[R],
        collate: Callable[[Sequence[R]], Batch],
        *,
        batch_size: int,
        seed: int,
    ):
        import grain  # takes a second

        if not len(rows):
            raise ValueError("no rows to make batches of: look at the data stage")
        self._iterator = iter(
            grain.MapDataset.source(rows)
            .seed(seed)
            .shuffle()
            .repeat()
            # Endless rows leave no remainder, but grain counts one in floats.
            .batch(batch_size, drop_remainder=True, batch_fn=collate)
            .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        )

    def next(self, state: TrainState | None) -> Batch:
        """The next batch; the state plays no part here."""
        del state
        return next(self._iterator)

    def save(self) -> dict[str, Any]:
        """The place in the data, as JSON."""
        return self._iterator.get_state()

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._iterator.set_state(saved)


def bucket(length: int, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest bucket that holds `length`.

    Raises:
        ValueError: none does.

    >>> bucket(17)
    32
    """
    for size in buckets:
        if length <= size:
            return size
    raise ValueError(f"length {length} exceeds the largest bucket, {buckets[-1]}")


def collate_pairs(rows: Sequence[Row], *, fill: int) -> Pairs:
    """Pads both sides to their buckets."""
    source = bucket(max(len(row.source) for row in rows))
    target = bucket(max(len(row.target) for row in rows))
    return pad_pairs(rows, source, target, fill)


def collate_encoder(rows: Sequence[EncoderRow], *, fill: int) -> LabeledBatch:
    """Pads text pairs to their bucket."""
    width = bucket(max(len(row.tokens) for row in rows))
    tokens, mask = pad_right([row.tokens for row in rows], width, fill)
    segments, _ = pad_right([row.segments for row in rows], width, 0)
    label = np.array([row.label for row in rows], np.int32)
    weight = np.array([row.weight for row in rows], np.float32)
    return LabeledBatch(tokens, mask, segments, label, weight)


def pair_batches(
    rows: Sequence[Row], *, batch_size: int, seed: int, fill: int
) -> Batches[Pairs]:
    """Shuffled batches of tokenised pairs."""
    collate = partial(collate_pairs, fill=fill)
    return Batches(rows, collate, batch_size=batch_size, seed=seed)


def in_order(
    rows: Sequence[R], collate: Callable[[Sequence[R]], Batch], *, batch_size: int
) -> Iterator[tuple[Batch, int]]:
    """Batches of all rows once, in order, each with its number of real rows.

    The last batch is filled up with copies of its last row, so that all have one
    number of rows; rows are sorted by nothing, widths follow the buckets.
    """
    for start in range(0, len(rows), batch_size):
        part = list(rows[start : start + batch_size])
        real = len(part)
        yield collate(part + [part[-1]] * (batch_size - real)), real
