"""Amazon's Shopping Queries data set, ESCI (Reddy et al. 2022, arXiv:2206.06588).

Reads a folder with the two files of the official release,
`shopping_queries_dataset_examples.parquet` and
`shopping_queries_dataset_products.parquet`, or an extract of it under the shorter
names `examples.parquet` and `products.parquet`, with the same columns.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxqr.data import tables
from jaxqr.records import Collection, Labels

_COLUMNS = {
    "id": "product_id",
    "title": "product_title",
    "description": "product_description",
    "bullets": "product_bullet_point",
    "brand": "product_brand",
    "color": "product_color",
    "category": "category",
    "price": "price",
}
_ROW = "row number"


def load(
    folder: str | os.PathLike[str],
    *,
    locale: str = "us",
    version: Literal["small", "large"] | None = None,
) -> Collection:
    """Reads the judgements and products of one locale.

    The same product id can stand for different texts in different locales; within
    one it is unique. A judgement whose product has no text is kept. A query is in
    "test" if any of its rows officially is; all others, of unknown split too, are in
    "train".

    An extract knows only some products of most queries. It marks the rows of those
    whose whole list it has in the column `fully_judged`; without the column, as in
    the official release, every list is whole (`Collection.fully_judged` is None).

    Args:
      folder: holds the two files.
      locale: "us", "es" or "jp".
      version: only judgements that the file marks as part of this version, and only
        the products they name. By default all judgements, and the locale's whole
        catalogue.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a column is missing, a row is at fault (see `jaxqr.data.tables`),
        or nothing is left of the locale and version.
    """
    path = _find(Path(folder), "examples")
    flag = [] if version is None else [f"{version}_version"]
    examples = tables.read(
        path,
        required=["query", "product_id", "product_locale", "esci_label", *flag],
        optional=["split", "fully_judged"],
        typed=["fully_judged", *flag],
    )
    examples = _of_locale(path, examples, locale)
    if version is not None:
        rows = examples[_ROW].to_numpy()
        chosen = tables.to_bools(path, examples, flag[0], rows)
        examples = examples.filter(pa.array(chosen, pa.bool_()))
        if not len(examples):
            raise ValueError(
                f"{path} has no rows of {locale=} whose {flag[0]} is 1; try without "
                "`version`"
            )
    rows = examples[_ROW].to_numpy()
    labels = Labels()
    judgements = tables.to_judgements(path, examples, rows, labels, "esci_label")
    split = dict.fromkeys(judgements.query, "train")
    if "split" in examples.column_names:
        codes, names = tables.factorize(examples["split"])
        for code, name in enumerate(names):
            if name not in ("", "train", "test"):
                problem = f"{name!r} is not a split; expected train or test"
                raise tables.fault(path, rows[codes == code][0], "split", problem)
        tested = examples.filter(pc.field("split") == "test")["query"]
        split |= dict.fromkeys(tested.unique().to_pylist(), "test")
    fully_judged = None
    if "fully_judged" in examples.column_names:
        whole = tables.to_bools(path, examples, "fully_judged", rows)
        query, queries = tables.factorize(examples["query"])
        counted = np.bincount(query, weights=np.array(whole, bool))
        fully_judged = frozenset(queries[counted == np.bincount(query)])

    path = _find(Path(folder), "products")
    catalogue = tables.read(
        path,
        required=["product_id", "product_locale", "product_title"],
        optional=_COLUMNS.values(),
        typed=["price"],
    )
    catalogue = _of_locale(path, catalogue, locale)
    if version is not None:
        judged = examples["product_id"].unique()
        catalogue = catalogue.filter(pc.field("product_id").isin(judged))
    rows = catalogue[_ROW].to_numpy()
    products = tables.to_products(path, catalogue, _COLUMNS, rows)
    return Collection(products, split, judgements, labels, fully_judged)


def _find(folder: Path, name: str) -> Path:
    names = (f"shopping_queries_dataset_{name}.parquet", f"{name}.parquet")
    for path in (folder / file for file in names):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{folder} has neither {names[0]} nor {names[1]}; expected the folder of the "
        "ESCI release or of an extract"
    )


def _of_locale(path: Path, table: pa.Table, locale: str) -> pa.Table:
    """The rows of one locale; a further column has their numbers in the file."""
    table = table.append_column(_ROW, pa.array(tables.data_rows(table)))
    inside = table.filter(pc.field("product_locale") == locale)
    if not len(inside):
        known = table["product_locale"].unique().drop_null().to_pylist()
        raise ValueError(f"{path} has no rows of {locale=}; it has {sorted(known)}")
    return inside
