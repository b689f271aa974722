"""Rows to records: products, judgements, splits and labels, every row checked."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from jaxqr.data.tables.columns import (
    factorize,
    fault,
    to_amounts,
    to_bools,
    to_numbers,
)
from jaxqr.data.tables.files import data_rows
from jaxqr.records import Judgements, Labels, Product

COLUMNS = {field: field for field in Product._fields} | {"id": "product_id"}
"""Column of the `products` table for each field of `Product`."""

SPLITS = ("train", "validation", "test")
"""In order of distance from training."""

RELEVANT_GAIN = 0.1
"""Labels of at least this gain are relevant unless their table says otherwise."""


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
        name = columns[field]
        if name not in table.column_names:
            fields.append([None if field == "price" else ""] * len(table))
        elif field == "price":
            fields.append(to_numbers(path, table, name, rows))
        else:
            fields.append(table[name].fill_null("").to_pylist())
    ids = fields[0]
    if wrong := _first_unusable(ids):
        raise fault(path, rows[wrong[0]], columns["id"], wrong[1])
    made = map(Product._make, zip(*fields, strict=True))
    products = dict(zip(ids, made, strict=True))
    if len(products) < len(ids):
        at = _first_repeated(ids)
        problem = f"{ids[at]!r} occurs a second time; keep one row per product"
        raise fault(path, rows[at], columns["id"], problem)
    return products


def to_keys(
    path: Path, table: pa.Table, column: str, rows: Int[np.ndarray, " R"]
) -> tuple[Int[np.ndarray, " R"], np.ndarray]:
    """Codes [R] and distinct texts (see `factorize`) of a column of queries or ids.

    Raises:
      ValueError: a text is empty or has a NUL byte.
    """
    codes, texts = factorize(table[column])
    if wrong := _first_unusable(texts):
        raise fault(path, rows[np.argmax(codes == wrong[0])], column, wrong[1])
    return codes, texts


def to_judgements(
    path: Path,
    table: pa.Table,
    rows: Int[np.ndarray, " R"],
    labels: Labels,
    label_column: str = "label",
) -> Judgements:
    """Checks the columns `query`, `product_id` and a label, and drops repetitions.

    A repeated row counts once; where the table has the column `weight`, its weights
    are added. Works on whole columns; equal texts share one string object, so that
    millions of rows stay small.

    Args:
      path: named in errors.
      table: one row per judgement.
      rows: row numbers in the file, for errors.
      labels: the labels that there are.
      label_column: which column has them.

    Raises:
      ValueError: an empty query or id, an unknown label, two labels for one
        (query, product), or a weight that is no number above 0.
    """
    query, queries = to_keys(path, table, "query", rows)
    product, ids = to_keys(path, table, "product_id", rows)
    label, names = factorize(table[label_column])
    for code, text in enumerate(names):
        if text not in labels.names:
            problem = (
                f"{text!r} is not a label; expected one of {', '.join(labels.names)}"
            )
            raise fault(path, rows[np.argmax(label == code)], label_column, problem)
    pair = query.astype(np.int64) * len(ids) + product
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    conflict = label != label[first][inverse]
    if conflict.any():
        at = int(np.argmax(conflict))
        before = int(first[inverse[at]])
        problem = (
            f"{names[label[at]]!r} for query {queries[query[at]]!r} and product "
            f"{ids[product[at]]!r}, which row {rows[before]} labels "
            f"{names[label[before]]!r}; keep one of the two"
        )
        raise fault(path, rows[at], label_column, problem)
    order = np.argsort(first)  # as in the file
    first = first[order]
    weight = None
    if "weight" in table.column_names:
        amounts = to_amounts(path, table, "weight", rows)
        weight = np.bincount(inverse, amounts)[order]
    return Judgements(
        queries[query[first]],
        ids[product[first]],
        names.astype(str)[label[first]],
        weight,
    )


def to_split(
    path: Path, table: pa.Table
) -> tuple[dict[str, str], frozenset[str] | None]:
    """The split of every query, and which queries are fully judged (None: not told).

    Raises:
      ValueError: a query is empty or occurs twice, a split is none of `SPLITS`, or a
        value of `fully_judged` is no bool.
    """
    queries = table["query"].fill_null("").to_pylist()
    if wrong := _first_unusable(queries):
        raise fault(path, wrong[0] + 1, "query", wrong[1])
    names = ["train"] * len(table)
    if "split" in table.column_names:
        codes, texts = factorize(table["split"])
        for code, text in enumerate(texts):
            if text not in ("", *SPLITS):
                expected = ", ".join(SPLITS)
                problem = f"{text!r} is not a split; expected {expected}, or nothing"
                raise fault(path, int(np.argmax(codes == code)) + 1, "split", problem)
        texts[texts == ""] = "train"
        names = texts[codes].tolist()
    split = dict(zip(queries, names, strict=True))
    if len(split) < len(queries):
        at = _first_repeated(queries)
        problem = f"{queries[at]!r} occurs a second time; keep one row per query"
        raise fault(path, at + 1, "query", problem)
    if "fully_judged" not in table.column_names:
        return split, None
    fully = to_bools(path, table, "fully_judged", data_rows(table))
    return split, frozenset(q for q, whole in zip(queries, fully, strict=True) if whole)


def to_labels(path: Path, table: pa.Table) -> Labels:
    """The labels of a collection, the best first.

    Raises:
      ValueError: a label is empty or occurs twice, a gain is missing, not in [0, 1]
        or larger than that of the label above it, or no label is relevant.
    """
    rows = data_rows(table)
    names = table["label"].fill_null("").to_pylist()
    gains = to_numbers(path, table, "gain", rows, highest=1.0)
    relevant: list[bool | None] = [None] * len(table)
    if "relevant" in table.column_names:
        relevant = to_bools(path, table, "relevant", rows)
    if wrong := _first_unusable(names):
        raise fault(path, wrong[0] + 1, "label", wrong[1])
    if len(set(names)) < len(names):
        at = _first_repeated(names)
        problem = f"{names[at]!r} occurs a second time; keep one row per label"
        raise fault(path, at + 1, "label", problem)
    checked: list[float] = []
    for row, name, gain in zip(rows, names, gains, strict=True):
        if gain is None:
            raise fault(path, row, "gain", "empty; every label needs a gain in [0, 1]")
        if checked and gain > checked[-1]:
            problem = (
                f"{gain:g} for {name!r} exceeds the gain of the label above it, "
                f"{checked[-1]:g}; list the best label first"
            )
            raise fault(path, row, "gain", problem)
        checked.append(gain)
    chosen = tuple(
        name
        for name, gain, told in zip(names, checked, relevant, strict=True)
        if (gain >= RELEVANT_GAIN if told is None else told)
    )
    if not chosen:
        raise ValueError(
            f"{path} has no relevant label; give one a gain of at least "
            f"{RELEVANT_GAIN}, or set `relevant` to true"
        )
    return Labels(tuple(names), tuple(checked), chosen)


def require_known(
    path: Path, table: pa.Table, column: str, known: Mapping[str, object], remedy: str
) -> None:
    """Raises for the first text of a column that is not among the known ones.

    Raises:
      ValueError: names the row, and a known text that looks the same.
    """
    codes, texts = factorize(table[column])
    for code, text in enumerate(texts):
        if text not in known:
            near = {_look(other): other for other in known}.get(_look(text))
            if near is not None:
                remedy = (
                    f"it differs from {near!a} only in case, spaces, Unicode form or "
                    "a final .0; write both the same way"
                )
            shown = repr(text) if near is None or text.isascii() else ascii(text)
            row = int(np.argmax(codes == code)) + 1
            raise fault(path, row, column, f"{shown} is unknown; {remedy}")


def _first_unusable(texts: Sequence[str] | np.ndarray) -> tuple[int, str] | None:
    """The first text that cannot be an id, a query or a label, and why."""
    if all(map(str.strip, texts)) and "\0" not in "".join(texts):
        return None
    for index, text in enumerate(texts):
        if not text.strip():
            return index, "empty; fill it in or drop the row"
        if "\0" in text:
            return index, f"{text!r} has a NUL byte; remove it"
    return None


def _first_repeated(texts: Sequence[str]) -> int:
    seen = set()
    return next(i for i, text in enumerate(texts) if text in seen or seen.add(text))


def _look(text: str) -> str:
    """What a text looks like, for hints: ids that pandas made floats of, too."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\d)\.0$", "", text)
