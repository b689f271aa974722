"""Wayfair's annotation data set, WANDS (Chen et al. 2022, ECIR).

Reads a folder with the three files of the release, all separated by tabs: `query.csv`,
`product.csv` and `label.csv`.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxqr.data import tables
from jaxqr.data.split import random_split
from jaxqr.records import EXACT_PARTIAL_IRRELEVANT, Collection

_COLUMNS = {
    "id": "product_id",
    "title": "product_name",
    "description": "product_description",
    "bullets": "product_features",
    "brand": "brand",
    "color": "color",
    "category": "category",
    "price": "price",
}
# The files have the first, the release's own description of them has the second.
_HIERARCHY = ("category hierarchy", "category_hierarchy")


def load(folder: str | os.PathLike[str], *, seed: int = 0) -> Collection:
    """Reads queries, products and labels.

    A product's category is its hierarchy, or its class where it has none; its bullets
    are its features, as they are written. There is no official split; it is that of
    `random_split`.

    Args:
      folder: holds the three files.
      seed: decides the split.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a column is missing, or a row is at fault (see `jaxqr.data.tables`):
        a label of a query that there is not, an unknown label, two labels for one
        query and product.
    """
    folder = Path(folder)
    path = _find(folder, "query")
    queries = tables.read(path, required=["query_id", "query"])
    texts = _by_id(path, queries, "query_id", "query")

    path = _find(folder, "product")
    optional = ["product_description", "product_features", "product_class"]
    catalogue = tables.read(
        path,
        required=["product_id", "product_name"],
        optional=[*optional, *_HIERARCHY],
    )
    places = [
        catalogue[name].fill_null("").to_pylist()
        for name in (*_HIERARCHY, "product_class")
        if name in catalogue.column_names
    ]
    blank = [""] * len(catalogue)
    category = [
        next(filter(None, found), "") for found in zip(blank, *places, strict=True)
    ]
    category = pa.array(category, pa.string())
    catalogue = catalogue.append_column("category", category)
    rows = tables.data_rows(catalogue)
    products = tables.to_products(path, catalogue, _COLUMNS, rows)

    path = _find(folder, "label")
    judged = tables.read(path, required=["query_id", "product_id", "label"])
    rows = tables.data_rows(judged)
    code, ids = tables.factorize(judged["query_id"])
    for number, id in enumerate(ids):
        if id not in texts:
            problem = (
                f"{id!r} is no query of query.csv; add the query or drop its labels"
            )
            raise tables.fault(
                path, rows[np.argmax(code == number)], "query_id", problem
            )
    query = np.array([texts[id] for id in ids], object)[code]
    judged = judged.append_column("query", pa.array(query, pa.string()))
    labels = EXACT_PARTIAL_IRRELEVANT
    judgements = tables.to_judgements(path, judged, rows, labels)
    return Collection(products, random_split(texts.values(), seed), judgements, labels)


def _find(folder: Path, name: str) -> Path:
    path = folder / f"{name}.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected the folder of the WANDS release, with "
            "query.csv, product.csv and label.csv"
        )
    return path


def _by_id(path: Path, table: pa.Table, key: str, value: str) -> dict[str, str]:
    """Texts by id; both are there, and no id occurs twice."""
    found: dict[str, str] = {}
    columns = (table[name].fill_null("").to_pylist() for name in (key, value))
    for row, (id, text) in enumerate(zip(*columns, strict=True), 1):
        for column, cell in ((key, id), (value, text)):
            if not cell.strip():
                raise tables.fault(path, row, column, "it is empty; fill it in")
        if id in found:
            problem = f"{id!r} occurs a second time; keep one row per query"
            raise tables.fault(path, row, key, problem)
        found[id] = text
    return found
