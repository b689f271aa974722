"""Tokenized rows, and padding them to arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxqr.types import Pairs, PromptBatch


class Row(NamedTuple):
    """One tokenized pair, unpadded."""

    source: list[int]
    target: list[int]


class EncoderRow(NamedTuple):
    """One tokenized text pair for an encoder, unpadded, with its class and weight."""

    tokens: list[int]
    segments: list[int]
    label: int
    weight: float = 1.0


Padded = tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]


def pad_left(rows: Sequence[Sequence[int]], width: int, fill: int) -> Padded:
    """`[len(rows), width]` ids and mask; every row ends in the last column."""
    return _pad(rows, width, fill, left=True)


def pad_right(rows: Sequence[Sequence[int]], width: int, fill: int) -> Padded:
    """`[len(rows), width]` ids and mask; every row begins in the first column."""
    return _pad(rows, width, fill, left=False)


def _pad(rows: Sequence[Sequence[int]], width: int, fill: int, *, left: bool) -> Padded:
    tokens = np.full((len(rows), width), fill, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, columns], mask[i, columns] = row, True
    return tokens, mask


def pad_pairs(
    rows: Sequence[Row], source_width: int, target_width: int, fill: int
) -> Pairs:
    """`Pairs` of the given widths."""
    return Pairs(
        *pad_left([row.source for row in rows], source_width, fill),
        *pad_right([row.target for row in rows], target_width, fill),
    )


def pad_prompts(sources: Sequence[list[int]], width: int, fill: int) -> PromptBatch:
    """A `PromptBatch` of the given width."""
    return PromptBatch(*pad_left(sources, width, fill))


def longest_first(
    one: list[int], two: list[int], most: int
) -> tuple[list[int], list[int]]:
    """At most `most` ids of two lists, as the longer one loses its last id in turn."""
    if len(one) + len(two) <= most:
        return one, two
    half, odd = divmod(most, 2)
    kept = half + odd if len(one) > len(two) else half
    kept = min(len(one), max(kept, most - len(two)))
    return one[:kept], two[: most - kept]
