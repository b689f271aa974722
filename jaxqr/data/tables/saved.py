"""Collections as parquet tables: `save`, and readers that trust what it wrote."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxqr.data.tables.columns import factorize
from jaxqr.data.tables.rows import COLUMNS
from jaxqr.records import Collection, Judgements, Labels, Product


def save(folder: str | os.PathLike[str], collection: Collection) -> None:
    """Writes a collection as parquet tables that `load` reads back unchanged.

    Every table is written under a temporary name and renamed once all are complete,
    so a call that is interrupted, or finds the disk full, leaves no half-written table
    and the former tables as they were.

    Raises:
      OSError: the disk is full, say.
      ValueError: `folder` has one of the tables as .csv, so that it would have two of
        the name; or a text cannot be encoded as UTF-8.
    """
    folder = Path(folder)
    tables = _tables(collection)
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
            pq.write_table(table, temporary[name], compression="zstd")
        for name in tables:
            temporary[name].replace(folder / f"{name}.parquet")
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def read_products(folder: str | os.PathLike[str]) -> dict[str, Product]:
    """The products that `save` wrote, unchecked."""
    table = _read(folder, "products")
    columns = [table[COLUMNS[field]].to_pylist() for field in Product._fields]
    products = map(Product._make, zip(*columns, strict=True))
    return dict(zip(columns[0], products, strict=True))


def read_queries(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, str], frozenset[str] | None]:
    """The split of every query and the fully judged queries, unchecked."""
    table = _read(folder, "queries")
    queries = table["query"].to_pylist()
    codes, names = factorize(table["split"])
    split = dict(zip(queries, names[codes], strict=True))
    if "fully_judged" not in table.column_names:
        return split, None
    return split, frozenset(table["query"].filter(table["fully_judged"]).to_pylist())


def read_judgements(folder: str | os.PathLike[str]) -> Judgements:
    """The judgements that `save` wrote, unchecked; equal texts share one object."""
    table = _read(folder, "judgements")
    query, queries = factorize(table["query"])
    product, ids = factorize(table["product_id"])
    label, names = factorize(table["label"])
    weight = None
    if "weight" in table.column_names:
        weight = table["weight"].to_numpy()
    return Judgements(queries[query], ids[product], names.astype(str)[label], weight)


def read_labels(folder: str | os.PathLike[str]) -> Labels:
    """The labels that `save` wrote, unchecked."""
    table = _read(folder, "labels")
    relevant = table["label"].filter(table["relevant"])
    return Labels(
        tuple(table["label"].to_pylist()),
        tuple(table["gain"].to_pylist()),
        tuple(relevant.to_pylist()),
    )


def _read(folder: str | os.PathLike[str], name: str) -> pa.Table:
    with pq.ParquetFile(Path(folder) / f"{name}.parquet") as file:
        return file.read()


def _tables(collection: Collection) -> dict[str, pa.Table]:
    """The tables of a collection by name."""
    rows = zip(*collection.products.values(), strict=True)
    columns = rows if collection.products else [()] * len(Product._fields)
    products = dict(zip(COLUMNS.values(), columns, strict=True))
    queries: dict[str, list[Any]] = {
        "query": list(collection.split),
        "split": list(collection.split.values()),
    }
    if collection.fully_judged is not None:
        queries["fully_judged"] = [
            q in collection.fully_judged for q in queries["query"]
        ]
    judgements = collection.judgements._asdict()
    if collection.judgements.weight is None:
        del judgements["weight"]
    labels = collection.labels
    return {
        "queries": _table("queries", queries),
        "products": _table("products", products),
        "judgements": _table("judgements", judgements),
        "labels": _table(
            "labels",
            {
                "label": labels.names,
                "gain": labels.gains,
                "relevant": [name in labels.relevant for name in labels.names],
            },
        ),
    }


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    types = {
        "price": pa.float64(),
        "gain": pa.float64(),
        "weight": pa.float64(),
        "relevant": pa.bool_(),
        "fully_judged": pa.bool_(),
    }
    arrays = {}
    for column, values in columns.items():
        try:
            arrays[column] = pa.array(values, types.get(column, pa.string()))
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}, column {column!r}: {error.object!r} cannot be encoded as "
                f"UTF-8 ({error.reason}); replace such characters"
            ) from error
    return pa.table(arrays)
