"""Queries that mean a category of products, and queries that only touch it.

Data of the shape of "Ecom-Pharma" (Jagatap et al. 2025, ACL Industry Track): what was
clicked for which query, and whether it belongs to the category. Reads a folder with
one table, `interactions.csv` or `interactions.parquet` (how they are written:
`jaxqr.data.tables`):

===============  ===================================================================
`query`          what was searched for
`product_id`     the product that was clicked
`title`          of the product; optional `description`, `bullets`, `brand`, `color`,
                 `category`, `price`
`volume`         how many interactions there were, a whole number above 0
`in_category`    whether the product belongs to the category; the same in all its rows
`date`           the day, such as 2024-01-31
===============  ===================================================================
"""

import os
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int, Shaped

from jaxqr.data import tables
from jaxqr.records import Collection, Labels

LABELS = Labels(("In", "Out"), (1.0, 0.0), ("In",))
"""A query means the category, or it does not."""


class Part(NamedTuple):
    """What became of the queries of one part: training, validation or test.

    Every query of the part is counted once, in one of the last four.
    """

    first: date
    last: date
    core: int
    """Labeled "In"."""
    expanded: int
    """Labeled "Out": below the threshold, but shares a product with the core."""
    left_out: int
    """Below the threshold, and shares no product with the core."""
    seen_earlier: int
    """Searched for in an earlier part, too, and so dropped from this one."""


def load(
    folder: str | os.PathLike[str],
    *,
    threshold: float = 0.05,
    validation_share: float = 0.1,
    test_share: float = 0.2,
) -> Collection:
    """Reads interactions, labels queries and splits them by time.

    The days are cut into three parts, which follow one another: training, validation
    and test. A query belongs to the first part in which it occurs; its rows of later
    parts are dropped. What follows is done in each part by itself, from its own rows.

    - A query's share is the volume of its clicks on products of the category, divided
      by the volume of all its clicks. The core is every query whose share is at least
      `threshold`: its label is "In", so a weak intent is a positive, too. All others
      are below it, and "Out".
    - The core is expanded through its products: a query below the threshold is taken
      in if it shares a product, of the category or not, with a query of the core.
      These are hard negatives. Queries that share none are left out.

    There is one judgement for each product that a query was clicked on. Its label is
    that of the query, its weight the volume of the pair in the part. Since no list of
    products was judged one by one, `fully_judged` is empty. All products of the file
    are kept, those of queries that were left out, too; a product is described by its
    newest row, of several of one day by the last in the file.

    Args:
      folder: holds the table.
      threshold: smallest share of a query that is "In", above 0 and up to 1.
      validation_share: how much of the distinct days, before those of the test, is
        validation; rounded to whole days.
      test_share: how much of the distinct days, the last ones, is test; likewise.

    Raises:
      FileNotFoundError: the folder or the table does not exist.
      ValueError: a setting is out of its range; a column is missing or a row at fault
        (see `jaxqr.data.tables`): an empty query, a volume that is no whole number
        above 0, a product in the category in one row and not in another, ...; or a
        part has no days, or not queries of both labels.
    """
    return read(
        folder,
        threshold=threshold,
        validation_share=validation_share,
        test_share=test_share,
    )[0]


def read(
    folder: str | os.PathLike[str],
    *,
    threshold: float = 0.05,
    validation_share: float = 0.1,
    test_share: float = 0.2,
) -> tuple[Collection, dict[str, Part]]:
    """As `load`, and for reports what became of the queries, by the part's name."""
    if not 0 < threshold <= 1:
        raise ValueError(
            f"{threshold=}; expected a share above 0 and up to 1, such as 0.05"
        )
    shares = f"{validation_share=} and {test_share=}"
    if not (validation_share > 0 < test_share and validation_share + test_share < 1):
        raise ValueError(f"{shares}; expected two above 0 that add up to less than 1")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected one with interactions.csv or "
            "interactions.parquet"
        )
    path = tables.find(folder, "interactions")
    table = tables.read(
        path,
        required=["query", "product_id", "title", "volume", "in_category", "date"],
        optional=tables.COLUMNS.values(),
        typed=["price", "volume", "in_category", "date"],
    )
    rows = tables.data_rows(table)
    query, queries = tables.to_keys(path, table, "query", rows)
    product, ids = tables.to_keys(path, table, "product_id", rows)
    volume = tables.to_amounts(path, table, "volume", rows, whole=True)
    inside = _in_category(path, table, product, ids)
    day = tables.to_dates(path, table, "date", rows)
    newest = _newest(product, day)
    described = table.take(pa.array(newest))
    products = tables.to_products(path, described, tables.COLUMNS, rows[newest])

    days, day = np.unique(day, return_inverse=True)
    counts = [round(share * len(days)) for share in (validation_share, test_share)]
    counts = [len(days) - sum(counts), *counts]
    for name, count in zip(tables.SPLITS, counts, strict=True):
        if count < 1:
            raise ValueError(
                f"{path} has {len(days)} distinct days, of which {shares} leave none "
                f"for {name}; give interactions of more days, or other shares"
            )
    part = np.repeat(np.arange(len(counts)), counts)[day]
    home, core, kept = _label(query, product, part, volume, inside, threshold)
    parts = {}
    for number, name in enumerate(tables.SPLITS):
        here, own = part == number, home == number
        parts[name] = Part(
            days[day[here].min()].item(),
            days[day[here].max()].item(),
            core=int(np.sum(own & core)),
            expanded=int(np.sum(own & kept & ~core)),
            left_out=int(np.sum(own & ~kept)),
            seen_earlier=len(np.unique(query[here & (home[query] < number)])),
        )
        _require_both(path, name, parts[name], threshold)

    chosen = kept[query] & (part == home[query])
    label = np.where(core, *LABELS.names)[query]
    judged = table.select(["query", "product_id"])
    judged = judged.append_column("label", pa.array(label))
    judged = judged.append_column("weight", pa.array(volume)).filter(pa.array(chosen))
    judgements = tables.to_judgements(path, judged, rows[chosen], LABELS)
    split = {queries[i]: tables.SPLITS[home[i]] for i in np.flatnonzero(kept)}
    return Collection(products, split, judgements, LABELS, frozenset()), parts


class _Labeled(NamedTuple):
    """What is known about each query."""

    home: Int[np.ndarray, " Q"]  # the part of each query
    core: Bool[np.ndarray, " Q"]  # whether it is "In"
    kept: Bool[np.ndarray, " Q"]  # whether it is in the core or shares a product


def _label(
    query: Int[np.ndarray, " R"],
    product: Int[np.ndarray, " R"],
    part: Int[np.ndarray, " R"],
    volume: Float64[np.ndarray, " R"],
    inside: Bool[np.ndarray, " R"],
    threshold: float,
) -> _Labeled:
    """Labels and expands the queries of all parts; see `load`."""
    home = np.full(query.max() + 1, part.max())
    np.minimum.at(home, query, part)
    # A query's rows are all of one part now, so one sum serves all three.
    new = part == home[query]
    query, product, part = query[new], product[new], part[new]
    total = np.bincount(query, volume[new])
    core = np.bincount(query, (volume * inside)[new]) / total >= threshold
    # Which products the core of each part was clicked on.
    touched = np.zeros((part.max() + 1, product.max() + 1), bool)
    touched[part[core[query]], product[core[query]]] = True
    kept = np.zeros(len(home), bool)
    kept[query[touched[part, product]]] = True
    return _Labeled(home, core, kept)


def _newest(
    product: Int[np.ndarray, " R"], day: Shaped[np.ndarray, " R"]
) -> Int[np.ndarray, " P"]:
    """The newest row of each product; of several of one day, the last."""
    newest = np.zeros(product.max() + 1, np.int64)
    by_day = np.argsort(day, kind="stable")
    # Of an index that is assigned more than once, NumPy keeps the last value.
    newest[product[by_day]] = by_day
    return newest


def _in_category(
    path: Path, table: pa.Table, product: Int[np.ndarray, " R"], ids: np.ndarray
) -> Bool[np.ndarray, " R"]:
    """Whether each row's product is in the category; all rows of a product agree."""
    column, rows = "in_category", tables.data_rows(table)
    told = tables.to_bools(path, table, column, rows)
    if None in told:
        problem = "empty; expected true or false"
        raise tables.fault(path, rows[told.index(None)], column, problem)
    inside = np.array(told, bool)
    _, first = np.unique(product, return_index=True)
    conflict = inside != inside[first][product]
    if conflict.any():
        at = int(np.argmax(conflict))
        before = first[product[at]]
        problem = (
            f"{str(inside[at]).lower()} for product {ids[product[at]]!r}, "
            f"{str(inside[before]).lower()} in row {rows[before]}; a product is in "
            "the category or not, make the two the same"
        )
        raise tables.fault(path, rows[at], column, problem)
    return inside


def _require_both(path: Path, name: str, part: Part, threshold: float) -> None:
    """A part without queries, or with one label, teaches and measures nothing."""
    if not (part.core and part.expanded):
        raise ValueError(
            f"{path}, the {name} part, {part.first} to {part.last}: {part.core} "
            f'queries are "In" and {part.expanded} "Out", {part.left_out} were left '
            f"out and {part.seen_earlier} seen earlier; expected some of each label. "
            f"Give more interactions, other shares of days, or another threshold than "
            f"{threshold:g}"
        )
