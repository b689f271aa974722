"""Home Depot's product search relevance, a Kaggle competition of 2016.

Reads a folder with the files of the release, in ISO-8859-1 and separated by commas:
`train.csv`, and where they are there `product_descriptions.csv` and `attributes.csv`.
`test.csv` has no relevance and is not read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jaxqr.data import tables
from jaxqr.data.split import random_split
from jaxqr.records import (
    EXACT_PARTIAL_IRRELEVANT,
    Collection,
    Judgements,
    Product,
)

PERCENTILES = (33.0, 66.0)
ENCODING = "iso-8859-1"

BRAND = "MFG Brand Name"
COLORS = ("Color Family", "Color", "Color/Finish")
"""Attributes that name a color, the first one that a product has counts."""


class Cuts(NamedTuple):
    """Where the mean of the raters becomes a label.

    Up to `low` a product is Irrelevant, up to `high` Partial, and above it Exact.
    """

    low: float
    high: float

    @classmethod
    def of(cls, relevance: Sequence[float]) -> "Cuts":
        """The 33rd and 66th percentile, by linear interpolation.

        >>> Cuts.of([1.0, 2.0, 3.0, 4.0])
        Cuts(low=1.99, high=2.98)
        """
        low, high = np.percentile(relevance, PERCENTILES)
        return cls(float(low), float(high))

    def label(self, relevance: float) -> str:
        """The label of one mean."""
        if relevance <= self.low:
            return "Irrelevant"
        return "Partial" if relevance <= self.high else "Exact"


def load(folder: str | os.PathLike[str], *, seed: int = 0) -> Collection:
    """Reads search terms, products and relevance.

    The queries are split at random first (`random_split`), and relevance is cut at the
    percentiles of the training part alone (`cuts` says where). Of a query and product
    that were rated twice, the mean counts; of a product with two titles, the first. Of
    the attributes, the brand, a color and the bullets are kept.

    Args:
      folder: holds the files.
      seed: decides the split, and so the cuts.

    Raises:
      FileNotFoundError: the folder or `train.csv` is missing.
      ValueError: a column is missing, or a row is at fault (see `jaxqr.data.tables`):
        a relevance outside 1 to 3, a product that is no number, an empty text.
    """
    folder = Path(folder)
    ratings, titles = _ratings(folder)
    split = random_split((query for query, _ in ratings), seed)
    found = _cuts(ratings, split)
    rows = [(*pair, found.label(mean)) for pair, mean in ratings.items()]
    judgements = Judgements(*(np.array(c, object) for c in zip(*rows, strict=True)))
    judgements = judgements._replace(label=judgements.label.astype(str))
    products = _products(folder, titles)
    return Collection(products, split, judgements, EXACT_PARTIAL_IRRELEVANT)


def cuts(folder: str | os.PathLike[str], *, seed: int = 0) -> Cuts:
    """Where `load` with the same arguments cuts relevance, for reports."""
    ratings, _ = _ratings(Path(folder))
    return _cuts(ratings, random_split((query for query, _ in ratings), seed))


def _cuts(ratings: dict[tuple[str, str], float], split: dict[str, str]) -> Cuts:
    return Cuts.of([x for (query, _), x in ratings.items() if split[query] == "train"])


def _ratings(folder: Path) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
    """Mean relevance of every (query, product id), and the products' titles."""
    path = folder / "train.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected the folder of the Home Depot release"
        )
    columns = ["product_uid", "product_title", "search_term", "relevance"]
    typed = ["product_uid", "relevance"]
    table = tables.read(path, required=columns, typed=typed, encoding=ENCODING)
    rows = tables.data_rows(table)
    ids = _ids(path, table)
    relevance = tables.to_numbers(path, table, "relevance", rows, highest=3.0)
    texts = (table[name].fill_null("").to_pylist() for name in columns[1:3])
    given: dict[tuple[str, str], list[float]] = defaultdict(list)
    titles: dict[str, str] = {}
    for row, id, title, query, value in zip(rows, ids, *texts, relevance, strict=True):
        if id is None or value is None or value < 1:
            column = "product_uid" if id is None else "relevance"
            problem = "expected a product's number, and a relevance from 1 to 3"
            raise tables.fault(path, row, column, problem)
        for column, text in (("product_title", title), ("search_term", query)):
            if not text.strip():
                raise tables.fault(path, row, column, "it is empty; fill it in")
        titles.setdefault(id, title)
        given[query, id].append(value)
    return {pair: float(np.mean(values)) for pair, values in given.items()}, titles


def _products(folder: Path, titles: dict[str, str]) -> dict[str, Product]:
    made = {id: Product(id, title) for id, title in titles.items()}
    path = folder / "product_descriptions.csv"
    if path.exists():
        table = tables.read(
            path,
            required=["product_uid", "product_description"],
            typed=["product_uid"],
            encoding=ENCODING,
        )
        texts = table["product_description"].fill_null("").to_pylist()
        for id, text in zip(_ids(path, table), texts, strict=True):
            if id in made:
                made[id] = made[id]._replace(description=text)
    path = folder / "attributes.csv"
    if path.exists():
        for id, attributes in _attributes(path, titles).items():
            made[id] = made[id]._replace(
                brand=attributes.get(BRAND, ""),
                color=next((attributes[c] for c in COLORS if c in attributes), ""),
                bullets="\n".join(_bullets(attributes)),
            )
    return made


def _attributes(path: Path, titles: dict[str, str]) -> dict[str, dict[str, str]]:
    """Values by product and name; rows without a product say nothing."""
    table = tables.read(
        path,
        required=["product_uid", "name", "value"],
        typed=["product_uid"],
        encoding=ENCODING,
    )
    texts = (table[name].fill_null("").to_pylist() for name in ("name", "value"))
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for id, name, value in zip(_ids(path, table), *texts, strict=True):
        if id in titles and value:
            found[id].setdefault(name, value)
    return found


def _bullets(attributes: dict[str, str]) -> list[str]:
    """The values of `Bullet01`, `Bullet02`, ..., in the order of their numbers."""
    numbered = {
        int(match[1]): value
        for name, value in attributes.items()
        if (match := re.fullmatch(r"Bullet(\d+)", name))
    }
    return [numbered[number] for number in sorted(numbered)]


def _ids(path: Path, table: pa.Table) -> list[str | None]:
    """Product numbers as texts, `100001.0` as `100001`; None where there is none."""
    rows = tables.data_rows(table)
    numbers = tables.to_numbers(path, table, "product_uid", rows)
    return [None if number is None else str(int(number)) for number in numbers]
