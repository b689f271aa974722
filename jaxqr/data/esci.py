"""Amazon's Shopping Queries data set, ESCI (Reddy et al. 2022, arXiv:2206.06588).

Reads a folder with the two files of the official release,
`shopping_queries_dataset_examples.parquet` and
`shopping_queries_dataset_products.parquet`, or an extract of it under the shorter
names `examples.parquet` and `products.parquet`, with the same columns.
"""

import os
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from jaxqr.data import tables
from jaxqr.records import Collection

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
        optional=["split"],
    )
    examples = _of_locale(path, examples, locale)
    if version is not None:
        # `read` turns whole numbers of required columns into texts.
        examples = examples.filter(pc.field(flag[0]) == "1")
        if not len(examples):
            raise ValueError(
                f"{path} has no rows of {locale=} whose {flag[0]} is 1; try without "
                "`version`"
            )
    rows = examples[_ROW].to_numpy()
    judgements = tables.to_judgements(path, examples, rows, "esci_label")
    split = dict.fromkeys(judgements.query, "train")
    if "split" in examples.column_names:
        side, sides = tables.factorize(examples["split"])
        for code, text in enumerate(sides):
            if text not in ("", "train", "test"):
                problem = f"{text!r} is not a split; expected train or test"
                raise tables.fault(path, rows[side == code][0], "split", problem)
        tested = examples.filter(pc.field("split") == "test")["query"]
        split |= dict.fromkeys(tested.unique().to_pylist(), "test")

    path = _find(Path(folder), "products")
    catalogue = tables.read(
        path,
        required=["product_id", "product_locale", "product_title"],
        optional=_COLUMNS.values(),
    )
    catalogue = _of_locale(path, catalogue, locale)
    if version is not None:
        judged = examples["product_id"].unique()
        catalogue = catalogue.filter(pc.field("product_id").isin(judged))
    rows = catalogue[_ROW].to_numpy()
    products = tables.to_products(path, catalogue, _COLUMNS, rows)
    return Collection(products, split, judgements)


def fully_judged(folder: str | os.PathLike[str], *, locale: str = "us") -> list[str]:
    """The queries that carry their whole list of judged products, all labels.

    Judged-only nDCG means something on these alone: elsewhere an extract knows only
    some of the exact products. An extract marks them in the column `fully_judged`;
    without it, as in the official release, every list is whole.
    """
    path = _find(Path(folder), "examples")
    required = ["query", "product_locale"]
    table = tables.read(path, required=required, optional=["fully_judged"])
    table = _of_locale(path, table, locale)
    if "fully_judged" in table.column_names:
        table = table.filter(pc.field("fully_judged"))
    return table["query"].unique().to_pylist()


def _find(folder: Path, name: str) -> Path:
    names = (f"shopping_queries_dataset_{name}.parquet", f"{name}.parquet")
    for path in (folder / file for file in names):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} has neither {names[0]} nor {names[1]}")


def _of_locale(path: Path, table: pa.Table, locale: str) -> pa.Table:
    """The rows of one locale; a further column has their numbers in the file."""
    table = table.append_column(_ROW, pa.array(tables.data_rows(table)))
    inside = table.filter(pc.field("product_locale") == locale)
    if not len(inside):
        known = table["product_locale"].unique().drop_null().to_pylist()
        raise ValueError(f"{path} has no rows of {locale=}; it has {sorted(known)}")
    return inside
