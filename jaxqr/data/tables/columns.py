"""Columns to values: Arrow columns of any type become texts, numbers or bools."""

import math
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int

_BOOLS = {"": None, "nan": None}
_BOOLS |= dict.fromkeys(("true", "1", "1.0"), True)
_BOOLS |= dict.fromkeys(("false", "0", "0.0"), False)
_WHOLE = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}
"""Up to where floats of so many bits hold every whole number."""


def fault(path: Path, row: int | np.integer, column: str, problem: str) -> ValueError:
    """The error for one field of one row of a user's file; row 0 is the header."""
    where = f"data row {row} (the first after the header is 1)" if row else "the header"
    return ValueError(f"{path}, {where}, column {column!r}: {problem}")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, or bytes that may be texts."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    )


def to_text(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as they are, whole numbers as decimal digits; nulls stay.

    Floats and decimals may be whole numbers too: pandas makes floats of a column of
    ids in which one is missing. Their NaN is null.

    Raises:
      ValueError: another type, a number that is not whole, or invalid UTF-8.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_text(path, name, column.cast(kind.value_type))
    if is_text(kind):
        return _decode(path, name, column)
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if _is_number(kind):
        return _digits(path, name, column)
    raise ValueError(
        f"{path}, column {name!r}: {kind} values; expected texts or whole numbers. "
        "Make texts of them when the table is written."
    )


def to_numbers(
    path: Path,
    table: pa.Table,
    column: str,
    rows: Int[np.ndarray, " R"],
    highest: float = math.inf,
) -> list[float | None]:
    """Numbers from 0 to `highest`; None where there is none.

    Args:
      path: named in errors.
      table: has the column, of texts or numbers.
      column: its name.
      rows: row numbers in the file, for errors.
      highest: largest number allowed.

    Raises:
      ValueError: the column has another type, or a value is not such a number.
    """
    values = _numeric(path, table, column)
    numbers = [_number(value) for value in values]
    for row, value, number in zip(rows.tolist(), values, numbers, strict=True):
        if number is not None and not (
            math.isfinite(number) and 0 <= number <= highest
        ):
            raise fault(path, row, column, _number_wanted(value, highest))
    return numbers


def to_amounts(
    path: Path,
    table: pa.Table,
    column: str,
    rows: Int[np.ndarray, " R"],
    *,
    whole: bool = False,
) -> Float64[np.ndarray, " R"]:
    """Numbers above 0, one in every row: weights, or with `whole` counts.

    Raises:
      ValueError: the column has another type, or a value is not such a number.
    """
    values = _numeric(path, table, column)
    numbers = [_number(value) for value in values]
    wanted = "a whole number above 0, such as 12" if whole else "a number above 0"
    for row, value, number in zip(rows.tolist(), values, numbers, strict=True):
        if (
            number is None
            or not (math.isfinite(number) and number > 0)
            or (whole and number != math.floor(number))
        ):
            shown = "empty" if number is None else repr(value)
            problem = f"{shown}; expected {wanted}; correct it or drop the row"
            raise fault(path, row, column, problem)
    return np.array(numbers, np.float64)


def to_bools(
    path: Path, table: pa.Table, column: str, rows: Int[np.ndarray, " R"]
) -> list[bool | None]:
    """Bools, which may be written as true and false or as 1 and 0; None where empty.

    Raises:
      ValueError: a value is none of these.
    """
    kind = table[column].type
    if pa.types.is_boolean(kind):
        return table[column].to_pylist()
    if not (is_text(kind) or _is_number(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"{path}, column {column!r}: {kind} values; expected bools. Make bools of "
            "them when the table is written."
        )
    codes, texts = factorize(table[column].cast(pa.string()))
    for code, text in enumerate(texts):
        if text.strip().lower() not in _BOOLS:
            problem = f"{text!r}; expected true or false"
            raise fault(path, rows[np.argmax(codes == code)], column, problem)
    values = [_BOOLS[text.strip().lower()] for text in texts]
    return [values[code] for code in codes]


def to_dates(
    path: Path, table: pa.Table, column: str, rows: Int[np.ndarray, " R"]
) -> np.ndarray:
    """Days as datetime64[D] [R]: dates, or texts such as 2024-01-31, in every row.

    Raises:
      ValueError: the column has another type, or a value is no such date.
    """
    kind = table[column].type
    if not (is_text(kind) or pa.types.is_date(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"{path}, column {column!r}: {kind} values; expected dates. Make dates of "
            "them when the table is written."
        )
    codes, texts = factorize(table[column].cast(pa.string()))
    for code, text in enumerate(texts):
        try:
            # `fromisoformat` would also take 20240131 and weeks.
            known = re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip())
            date.fromisoformat(text.strip() if known else "")
        except ValueError:
            shown = repr(text) if text.strip() else "empty"
            problem = f"{shown}; expected a date such as 2024-01-31"
            raise fault(path, rows[np.argmax(codes == code)], column, problem) from None
    return np.array([text.strip() for text in texts], "datetime64[D]")[codes]


def factorize(
    column: pa.ChunkedArray,
) -> tuple[Int[np.ndarray, " R"], np.ndarray]:
    """Codes [R] and the distinct texts they stand for, in order of appearance."""
    encoded = column.fill_null("").dictionary_encode().combine_chunks()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    return encoded.indices.to_numpy(), texts


def _decode(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Checks the UTF-8 of strings too, which parquet files need not keep to."""
    kind = column.type
    short = pa.types.is_string(kind) or pa.types.is_binary(kind)
    column = column.cast(pa.binary() if short else pa.large_binary())
    try:
        return column.cast(pa.string() if short else pa.large_string())
    except pa.ArrowInvalid:
        for row, value in enumerate(column, start=1):
            try:
                (value.as_py() or b"").decode()
            except UnicodeDecodeError as error:
                problem = f"invalid UTF-8 ({error.reason}); save the file as UTF-8"
                raise fault(path, row, name, problem) from error
        raise


def _digits(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats or decimals that are whole numbers, as digits."""
    encoded = column.dictionary_encode().combine_chunks()
    highest = math.inf
    if pa.types.is_floating(column.type):
        highest = _WHOLE[column.type.bit_width]
    texts = []
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        if value is None or math.isnan(value):
            texts.append(None)
        elif abs(value) <= highest and value == math.floor(value):
            texts.append(str(int(value)))
        else:
            row = pc.index(encoded.indices, code).as_py() + 1
            exact = "" if highest == math.inf else f" up to {highest:,}"
            problem = (
                f"{value} in a column of {column.type}; expected texts or whole "
                f"numbers{exact}. Make texts of them when the table is written"
            )
            raise fault(path, row, name, problem)
    return pa.chunked_array([pa.array(texts, pa.string()).take(encoded.indices)])


def _numeric(path: Path, table: pa.Table, column: str) -> list[Any]:
    """The values of a column of numbers, or of texts that may be numbers."""
    kind = table[column].type
    if not (is_text(kind) or _is_number(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"{path}, column {column!r}: {kind} values; expected numbers. Make numbers "
            "of them when the table is written."
        )
    return table[column].to_pylist()


def _number_wanted(value: str | int | float | Decimal, highest: float) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d+,\d+", value.strip()):
        point = value.strip().replace(",", ".")
        return f"{value!r}; write a decimal point in place of the comma, as in {point}"
    if highest < math.inf:
        return f"{value!r}; expected a number from 0 to {highest:g}, such as 0.5"
    return (
        f"{value!r}; expected a number such as 12.99, not negative, without signs of "
        "currencies or thousands; correct it or leave it empty"
    )


def _number(value: str | int | float | Decimal | None) -> float | None:
    """The number; NaN for a text that is none."""
    if not isinstance(value, str):
        return None if value is None else float(value)
    if not value.strip():
        return None
    # float() would also take 1_000 and the digits of other scripts.
    if not value.isascii() or "_" in value:
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
