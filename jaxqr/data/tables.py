"""One's own shop: a folder with three tables, each a `.parquet` or a `.csv` file.

==============  ====================================================================
`queries`       `query`; optional `split`: "train" (also when empty), "validation",
                "test"
`products`      `product_id`, `title`; optional `description`, `bullets`, `brand`,
                `color`, `category`, `price`
`judgements`    `query`, `product_id`, `label` (one of E, S, C, I)
==============  ====================================================================

CSV is comma-separated UTF-8 with a header; a field with commas, quotes or line
breaks stands in double quotes. Further columns are ignored. Every fault in a file is
a ValueError that names the file, the data row (the first after the header is 1), the
column, and what to do.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from pyarrow import csv

from jaxqr.records import LABELS, Collection, Judgements, Product

COLUMNS = {field: field for field in Product._fields} | {"id": "product_id"}
"""Column of the `products` table for each field of `Product`."""

SIDES = ("train", "validation", "test")


def load(
    folder: str | os.PathLike[str], *, allow_missing_products: bool = False
) -> Collection:
    """Reads a folder of three tables (columns: see the module).

    A judgement that is repeated with the same label counts once.

    Args:
      folder: holds `queries`, `products` and `judgements`, each `.parquet` or `.csv`.
      allow_missing_products: accept judgements of products that are not in
        `products`, as `save` writes them for a collection read from ESCI.

    Raises:
      FileNotFoundError: the folder or one of its tables does not exist.
      ValueError: a table is empty, a column is missing, or a row is at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected one with the tables queries, "
            "products and judgements"
        )
    path = _find(folder, "queries")
    queries = read(path, required=["query"], optional=["split"])
    split = _split(path, queries)

    path = _find(folder, "products")
    table = read(path, required=["product_id", "title"], optional=COLUMNS.values())
    products = to_products(path, table, COLUMNS, data_rows(table))

    path = _find(folder, "judgements")
    table = read(path, required=["query", "product_id", "label"])
    judgements = to_judgements(path, table, data_rows(table))
    _require_known(path, table, "query", split, "add it to the queries table")
    if not allow_missing_products:
        remedy = "add it to the products table or drop the judgement"
        _require_known(path, table, "product_id", products, remedy)
    return Collection(products, split, judgements)


def save(folder: str | os.PathLike[str], collection: Collection) -> None:
    """Writes a collection as three parquet tables that `load` reads back unchanged.

    Every table is written under a temporary name and renamed once all three are
    complete, so an interrupted call leaves no half-written table behind.

    Raises:
      ValueError: `folder` has a table as .csv, beside which a .parquet of the same
        name would be ambiguous.
    """
    folder = Path(folder)
    rows = zip(*collection.products.values(), strict=True)
    columns = rows if collection.products else [()] * len(Product._fields)
    tables = {
        "queries": {
            "query": pa.array(collection.split.keys(), pa.string()),
            "split": pa.array(collection.split.values(), pa.string()),
        },
        "products": {
            COLUMNS[field]: pa.array(
                values, pa.float64() if field == "price" else pa.string()
            )
            for field, values in zip(Product._fields, columns, strict=True)
        },
        "judgements": {
            name: pa.array(values, pa.string())
            for name, values in collection.judgements._asdict().items()
        },
    }
    for name in tables:
        if (folder / f"{name}.csv").exists():
            raise ValueError(
                f"{folder / name}.csv exists; save to another folder, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers off each other's temporary files.
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in tables}
    try:
        for name, table in tables.items():
            pq.write_table(pa.table(table), temporary[name], compression="zstd")
        for name in tables:
            temporary[name].replace(folder / f"{name}.parquet")
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def read(
    path: Path, *, required: Sequence[str], optional: Iterable[str] = ()
) -> pa.Table:
    """Reads the named columns of one `.parquet` or `.csv` file, texts as strings.

    Absent optional columns are left out. Whole numbers in a required column (ids, say)
    become their decimal digits.

    Raises:
      ValueError: unreadable, no rows, a required column is missing, invalid UTF-8.
    """
    wanted = list(dict.fromkeys([*required, *optional]))
    try:
        table = (
            _read_csv(path) if path.suffix == ".csv" else _read_parquet(path, wanted)
        )
    except pa.ArrowException as error:
        raise ValueError(
            f"{path} is not a readable {path.suffix} file: {error} (a Git LFS pointer "
            "or an interrupted download? fetch it again)"
        ) from error
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing}; it has {table.column_names}. "
            "Rename or add them."
        )
    if not len(table):
        raise ValueError(f"{path} has no rows; expected at least one")
    table = table.select([name for name in wanted if name in table.column_names])
    for position, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_binary(column.type):
            column = _decode(path, name, column)
        elif name in required or _stands_for_text(column.type):
            column = _to_text(path, name, column)
        table = table.set_column(position, name, column)
    return table


def data_rows(table: pa.Table) -> Int[np.ndarray, " R"]:
    """Row numbers as error messages count them: 1 is the first after the header."""
    return np.arange(1, len(table) + 1)


def to_products(
    path: Path,
    table: pa.Table,
    columns: Mapping[str, str],
    rows: Int[np.ndarray, " R"],
) -> dict[str, Product]:
    """Turns a table into products; absent columns and nulls are empty texts.

    Args:
      path: named in errors, as are the columns.
      table: one row per product.
      columns: column of the table for each field of `Product`.
      rows: row numbers in the file, for errors.

    Raises:
      ValueError: an id is empty or occurs twice, or a price is not a number >= 0.
    """
    fields = []
    for field in Product._fields:
        if columns[field] not in table.column_names:
            fields.append([None if field == "price" else ""] * len(table))
        elif field == "price":
            prices = table[columns[field]].to_pylist()
            fields.append(
                [
                    _price(path, row, columns[field], price)
                    for row, price in zip(rows.tolist(), prices, strict=True)
                ]
            )
        else:
            fields.append([text or "" for text in table[columns[field]].to_pylist()])
    products: dict[str, Product] = {}
    for row, values in zip(rows, zip(*fields, strict=True), strict=True):
        product = Product(*values)
        if not product.id.strip():
            raise fault(path, row, columns["id"], "empty; every product needs an id")
        if product.id in products:
            problem = f"{product.id!r} occurs a second time; keep one row per product"
            raise fault(path, row, columns["id"], problem)
        products[product.id] = product
    return products


def to_judgements(
    path: Path,
    table: pa.Table,
    rows: Int[np.ndarray, " R"],
    label_column: str = "label",
) -> Judgements:
    """Checks the columns `query`, `product_id` and a label, and drops repetitions.

    Works on whole columns; equal texts share one string object, so that millions of
    rows stay small.

    Raises:
      ValueError: an empty query or id, an unknown label, or two labels for one
        (query, product).
    """
    query, queries = factorize(table["query"])
    product, ids = factorize(table["product_id"])
    label, labels = factorize(table[label_column])
    for column, codes, texts in (
        ("query", query, queries),
        ("product_id", product, ids),
    ):
        for code, text in enumerate(texts):
            if not text.strip():
                row = rows[np.argmax(codes == code)]
                raise fault(path, row, column, "empty; fill it in or drop the row")
    for code, text in enumerate(labels):
        if text not in LABELS:
            problem = f"{text!r} is not a label; expected one of {', '.join(LABELS)}"
            raise fault(path, rows[np.argmax(label == code)], label_column, problem)
    pair = query.astype(np.int64) * len(ids) + product
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    conflict = label != label[first][inverse]
    if conflict.any():
        at = int(np.argmax(conflict))
        before = int(first[inverse[at]])
        problem = (
            f"{labels[label[at]]!r} for query {queries[query[at]]!r} and product "
            f"{ids[product[at]]!r}, which row {rows[before]} labels "
            f"{labels[label[before]]!r}; keep one of the two"
        )
        raise fault(path, rows[at], label_column, problem)
    first.sort()
    return Judgements(
        queries[query[first]], ids[product[first]], labels[label[first]].astype("U1")
    )


def factorize(
    column: pa.ChunkedArray,
) -> tuple[Int[np.ndarray, " R"], np.ndarray]:
    """Codes [R] and the distinct texts they stand for, in order of appearance."""
    encoded = column.fill_null("").dictionary_encode().combine_chunks()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    return encoded.indices.to_numpy(), texts


def fault(path: Path, row: int | np.integer, column: str, problem: str) -> ValueError:
    """The error for one field of one row of a user's file."""
    return ValueError(
        f"{path}, data row {row} (the first after the header is 1), column "
        f"{column!r}: {problem}"
    )


def _find(folder: Path, name: str) -> Path:
    found = [
        path
        for path in (folder / f"{name}.parquet", folder / f"{name}.csv")
        if path.exists()
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} has neither {name}.parquet nor {name}.csv; add one of them"
        )
    if len(found) == 2:
        raise ValueError(
            f"{folder} has both {name}.parquet and {name}.csv; remove one of them"
        )
    return found[0]


def _read_parquet(path: Path, wanted: Sequence[str]) -> pa.Table:
    names = pq.read_schema(path).names
    # With none of the columns there, read all: the error then says what there is.
    present = [name for name in wanted if name in names] or None
    return pq.read_table(path, columns=present)


def _read_csv(path: Path) -> pa.Table:
    """Reads every column as bytes, so that `_decode` can name a row with bad UTF-8."""
    ragged = []

    def remember(row: csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    # Without threads rows come in order and know their number.
    options = csv.ReadOptions(use_threads=False)
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember)
    with csv.open_csv(path, options, parse) as reader:
        names = reader.schema.names
    ragged.clear()
    binary = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
    table = csv.read_csv(path, options, parse, binary)
    if ragged:
        raise fault(
            path,
            ragged[0].number - 1,
            names[-1],
            f"the row has {ragged[0].actual_columns} fields, the header "
            f"{ragged[0].expected_columns}; quote fields that contain commas",
        )
    return table


def _decode(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        for row, value in enumerate(column.to_pylist(), start=1):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                problem = f"invalid UTF-8 ({error.reason}); save the file as UTF-8"
                raise fault(path, row, name, problem) from error
        raise


def _stands_for_text(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or pa.types.is_null(kind)


def _to_text(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if pa.types.is_integer(kind) or _stands_for_text(kind):
        return column.cast(pa.string())
    raise ValueError(f"{path}, column {name!r}: {kind} values; expected text")


def _price(path: Path, row: int, column: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        problem = f"{value!r} is not a price; write a number such as 12.99, or nothing"
        raise fault(path, row, column, problem)
    return price


def _split(path: Path, table: pa.Table) -> dict[str, str]:
    queries = table["query"].to_pylist()
    sides = (
        table["split"].to_pylist()
        if "split" in table.column_names
        else [None] * len(table)
    )
    split: dict[str, str] = {}
    for row, (query, side) in enumerate(zip(queries, sides, strict=True), start=1):
        if not (query or "").strip():
            raise fault(path, row, "query", "empty; fill it in or drop the row")
        if query in split:
            problem = f"{query!r} occurs a second time; keep one row per query"
            raise fault(path, row, "query", problem)
        if side not in (None, "", *SIDES):
            expected = ", ".join(SIDES)
            problem = f"{side!r} is not a split; expected {expected}, or nothing"
            raise fault(path, row, "split", problem)
        split[query] = side or "train"
    return split


def _require_known(
    path: Path, table: pa.Table, column: str, known: Mapping[str, Any], remedy: str
) -> None:
    codes, texts = factorize(table[column])
    for code, text in enumerate(texts):
        if text not in known:
            row = int(np.argmax(codes == code)) + 1
            raise fault(path, row, column, f"{text!r} is unknown; {remedy}")
