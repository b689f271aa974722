"""One's own shop: a folder of tables, each a `.parquet` or a `.csv` file.

==============  ====================================================================
`queries`       `query`; optional `split`: "train" (also when empty), "validation",
                "test"; optional `fully_judged`: whether the query's whole list of
                products was judged (empty: no; without the column: every query's was)
`products`      `product_id`, `title`; optional `description`, `bullets`, `brand`,
                `color`, `category`, `price`
`judgements`    `query`, `product_id`, `label`; optional `weight`, a number above 0: how
                much the row counts (without the column: all count the same)
`labels`        may be missing: then the labels are E, S, C and I of ESCI. `label`, the
                best first; `gain` in [0, 1]; optional `relevant`, by default whether
                the gain is at least 0.1
==============  ====================================================================

CSV is UTF-8 with a header. Fields are separated by commas, semicolons, tabs or `|`,
whichever the header uses; a field with separators, quotes or line breaks is in double
quotes, which are doubled inside it; lines without any character are skipped. A record
may be up to 2 GiB long. In parquet files, texts may be strings, categories or UTF-8
bytes; whole numbers become their decimal digits. Further columns are ignored.

Every fault in a file is a ValueError that names the file, the data row where there is
one (the first record after the header is 1), the column, and what to do.

`save` writes a collection in this form; `read_products`, `read_queries`,
`read_judgements` and `read_labels` read single tables of it without checking again.
"""

import os
from pathlib import Path

from jaxqr.data.tables.columns import (
    factorize,
    fault,
    to_amounts,
    to_bools,
    to_dates,
    to_numbers,
)
from jaxqr.data.tables.files import data_rows, find, read
from jaxqr.data.tables.rows import (
    COLUMNS,
    SPLITS,
    require_known,
    to_judgements,
    to_keys,
    to_labels,
    to_products,
    to_split,
)
from jaxqr.data.tables.saved import (
    read_judgements,
    read_labels,
    read_products,
    read_queries,
    save,
)
from jaxqr.records import Collection, Labels

__all__ = [
    "COLUMNS",
    "SPLITS",
    "data_rows",
    "factorize",
    "fault",
    "load",
    "read",
    "read_judgements",
    "read_labels",
    "read_products",
    "read_queries",
    "save",
    "to_amounts",
    "to_bools",
    "to_dates",
    "to_judgements",
    "to_keys",
    "to_labels",
    "to_numbers",
    "to_products",
    "to_split",
]


def load(
    folder: str | os.PathLike[str], *, allow_missing_products: bool = False
) -> Collection:
    """Reads a folder of three or four tables (columns: see the module).

    A judgement that is repeated with the same label counts once; its weights are
    added.

    Args:
      folder: holds `queries`, `products`, `judgements` and optionally `labels`, each
        `.parquet` or `.csv`.
      allow_missing_products: accept judgements of products that are not in
        `products`, as `save` writes them for a collection read from ESCI.

    Raises:
      FileNotFoundError: the folder or one of its tables does not exist.
      PermissionError: a table may not be read.
      ValueError: a table is empty or not what its name says, a column is missing, or
        a row is at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected one with the tables queries, "
            "products and judgements"
        )
    labels = Labels()
    if any((folder / f"labels.{kind}").exists() for kind in ("parquet", "csv")):
        path = find(folder, "labels")
        labels = to_labels(
            path,
            read(
                path,
                required=["label", "gain"],
                optional=["relevant"],
                typed=["gain", "relevant"],
            ),
        )

    path = find(folder, "queries")
    table = read(
        path,
        required=["query"],
        optional=["split", "fully_judged"],
        typed=["fully_judged"],
    )
    split, fully_judged = to_split(path, table)

    path = find(folder, "products")
    table = read(
        path,
        required=["product_id", "title"],
        optional=COLUMNS.values(),
        typed=["price"],
    )
    products = to_products(path, table, COLUMNS, data_rows(table))

    path = find(folder, "judgements")
    table = read(
        path,
        required=["query", "product_id", "label"],
        optional=["weight"],
        typed=["weight"],
    )
    judgements = to_judgements(path, table, data_rows(table), labels)
    require_known(path, table, "query", split, "add it to the queries table")
    if not allow_missing_products:
        remedy = "add it to the products table or drop the judgement"
        require_known(path, table, "product_id", products, remedy)
    return Collection(products, split, judgements, labels, fully_judged)
