"""Interactions with a category, from a table in which every number is known by hand."""

import csv
import datetime
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxqr.data import categories, tables
from jaxqr.data.categories import Part
from jaxqr.records import Labels, Product

HEAD = ["query", "product_id", "title", "volume", "in_category", "date"]
# Ten days: seven of training, one of validation, two of test. P and S are in the
# category, B and T are not.
ROWS = [
    ["spoon", "P", "Pill, 20 mg", 6, True, 10],  # the newest of P; seen on day 8
    # 1 of 20 is on the category: In at 5 %.
    ["pain relief", "P", "Pill", 1, True, 1],
    ["pain relief", "B", "Bandage", 19, False, 2],
    # Out, taken in through B.
    ["gauze", "B", "Bandage", 5, False, 3],
    ["lego", "T", "Toy", 7, False, 4],  # shares nothing with the core: left out
    ["gauze", "B", "Bandage", 3, False, 5],
    # 1 of 21 is on the category: Out.
    ["cough", "S", "Syrup", 1, True, 6],
    ["cough", "B", "Bandage", 20, False, 7],
    # Validation: 1 of 40 is Out, taken in through S.
    ["syrup", "S", "Syrup A", 2, True, 8],
    ["spoon", "S", 'Syrup "B", sweet', 1, True, 8],
    ["spoon", "T", "Toy", 39, False, 8],
    ["gauze", "P", "Pill", 100, True, 8],  # seen in training
    # Test: 3 of 5 are In.
    ["fever", "P", "Pill", 3, True, 9],
    ["lego", "P", "Pill", 5, True, 9],  # seen in training, if left out there
    ["fever", "T", "Toy", 2, False, 10],
    ["doll", "T", "Toy", 9, False, 10],
    ["robot", "B", "Bandage", 4, False, 10],  # B is of the training's core alone
]
JUDGEMENTS = [
    ("pain relief", "P", "In", 1.0),
    ("pain relief", "B", "In", 19.0),
    ("gauze", "B", "Out", 8.0),  # 5 and 3
    ("cough", "S", "Out", 1.0),
    ("cough", "B", "Out", 20.0),
    ("syrup", "S", "In", 2.0),
    ("spoon", "S", "Out", 1.0),
    ("spoon", "T", "Out", 39.0),
    ("fever", "P", "In", 3.0),
    ("fever", "T", "In", 2.0),
    ("doll", "T", "Out", 9.0),
]
SPLIT = {
    **dict.fromkeys(["pain relief", "gauze", "cough"], "train"),
    **dict.fromkeys(["syrup", "spoon"], "validation"),
    **dict.fromkeys(["fever", "doll"], "test"),
}


def day(number):
    return datetime.date(2024, 2, number)


def write_csv(folder, rows=ROWS):
    with open(folder / "interactions.csv", "w", newline="", encoding="utf-8") as file:
        lines = [[*row[:5], day(row[5])] for row in rows]
        csv.writer(file).writerows([HEAD, *lines])
    return folder


def columns():
    values = dict(zip(HEAD, map(list, zip(*ROWS, strict=True)), strict=True))
    return values | {"date": [day(number) for number in values["date"]]}


def write_parquet(folder, **changed):
    table = pa.table(columns() | changed)
    pq.write_table(table, folder / "interactions.parquet")
    return folder


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_every_number(tmp_path, write):
    found, parts = categories.read(write(tmp_path))
    assert list(zip(*found.judgements, strict=True)) == JUDGEMENTS
    assert found.split == SPLIT
    assert found.labels == Labels(("In", "Out"), (1.0, 0.0), ("In",))
    assert found.fully_judged == frozenset()
    # The newest row of each; S has two of one day.
    assert found.products == {
        "P": Product("P", "Pill, 20 mg"),
        "B": Product("B", "Bandage"),
        "T": Product("T", "Toy"),
        "S": Product("S", 'Syrup "B", sweet'),
    }
    assert parts == {
        "train": Part(day(1), day(7), core=1, expanded=2, left_out=1, seen_earlier=0),
        "validation": Part(day(8), day(8), 1, 1, left_out=0, seen_earlier=1),
        "test": Part(day(9), day(10), 1, 1, left_out=1, seen_earlier=2),
    }
    tables.save(tmp_path / "saved", found)
    again = tables.load(tmp_path / "saved")
    assert list(zip(*again.judgements, strict=True)) == JUDGEMENTS
    assert again._replace(judgements=None) == found._replace(judgements=None)


def test_load_is_the_first_of_what_is_read(tmp_path):
    given = {"threshold": 0.04, "validation_share": 0.2, "test_share": 0.2}
    loaded = categories.load(write_csv(tmp_path), **given)
    found, _ = categories.read(tmp_path, **given)
    assert loaded._replace(judgements=None) == found._replace(judgements=None)
    np.testing.assert_equal(loaded.judgements, found.judgements)


def test_the_threshold(tmp_path):
    write_csv(tmp_path)
    # Between 1 of 40 and 1 of 21.
    found, parts = categories.read(tmp_path, threshold=0.03)
    assert found.split == SPLIT
    assert set(found.judgements.label[found.judgements.query == "cough"]) == {"In"}
    assert (parts["train"].core, parts["train"].expanded) == (2, 1)
    with pytest.raises(
        ValueError,
        match=r"the validation part, 2024-02-08 to 2024-02-08: 2 queries are "
        '"In" and 0 "Out", 0 were left out and 1 seen earlier; .* than 0.025',
    ):
        categories.load(tmp_path, threshold=0.025)
    with pytest.raises(
        ValueError,
        match=r"the train part, 2024-02-01 to 2024-02-07: 0 queries are "
        '"In" and 0 "Out", 4 were left out and 0 seen earlier; .* than 0.06',
    ):
        categories.load(tmp_path, threshold=0.06)


def test_a_part_that_knows_its_queries_already(tmp_path):
    rows = [row for row in ROWS if row[0] not in ("syrup", "spoon")]
    message = 'validation part.*0 queries are "In" and 0 "Out", 0 were.* 1 seen earlier'
    with pytest.raises(ValueError, match=message):
        categories.load(write_csv(tmp_path, rows), validation_share=1 / 10)


def test_a_label_comes_from_its_own_part_alone(tmp_path):
    found, parts = categories.read(write_csv(tmp_path), validation_share=0.2)
    # What "cough" was clicked on in day 7 would have made it Out.
    rows = found.judgements.query == "cough"
    assert found.judgements.label[rows].tolist() == ["In"]
    assert found.judgements.weight[rows].tolist() == [1.0]
    assert parts["train"][:2] == (day(1), day(6))
    assert parts["validation"] == Part(day(7), day(8), 1, 1, 0, seen_earlier=2)


def test_columns_of_products(tmp_path):
    extra = {name: ["old"] * len(ROWS) for name in ("description", "bullets", "brand")}
    for values in extra.values():
        values[0] = "new"
    write_parquet(tmp_path, **extra, price=[9.5, *[None] * (len(ROWS) - 1)])
    product = categories.load(tmp_path).products["P"]
    assert product == Product("P", "Pill, 20 mg", "new", "new", "new", price=9.5)


def write_with(folder, row, column, value):
    """The table with another text in one field of one data row."""
    path = write_csv(folder) / "interactions.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[row][HEAD.index(column)] = value
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("query", ["", " "], "fill it in or drop the row"),
        ("product_id", ["", " "], "fill it in or drop the row"),
        (
            "volume",
            ["", "0", "-3", "1.5", "nan", "inf", "few"],
            "expected a whole number above 0, such as 12; correct it or drop the row",
        ),
        ("in_category", ["", "yes", "2"], "expected true or false"),
        (
            "date",
            [
                *["", "today", "1.2.2024", "20240201", "2024-W05-4", "2024-2-1"],
                *["2024-02-30", "0000-01-01", "2024-02-01T00:00:00"],
            ],
            "expected a date such as 2024-01-31",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, column, values, expected):
    for value in values:
        write_with(tmp_path, 9, column, value)
        with pytest.raises(
            ValueError, match=r"interactions\.csv, data row 9 "
        ) as error:
            categories.load(tmp_path)
        shown = repr(value) if value.strip() else "empty"
        assert f"column {column!r}: {shown}; {expected}" in str(error.value)


def test_a_product_is_in_the_category_or_not(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"csv, data row 9 .*'in_category': false for product 'S', true in row 7; "
        "a product is in the category or not, make the two the same",
    ):
        categories.load(write_with(tmp_path, 9, "in_category", "False"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("volume", [None] + [1] * 16, "data row 1 .*'volume': empty"),
        ("volume", [1.0] * 16 + [math.nan], "data row 17 .*'volume'.*whole number"),
        ("volume", [True] * 17, "'volume': bool values; expected numbers"),
        ("date", [None] + [day(1)] * 16, "data row 1 .*'date': empty"),
        (
            "date",
            [datetime.datetime(2024, 2, 1)] * 17,
            r"'date': timestamp\[us\] values; expected dates",
        ),
        ("in_category", [True] * 16 + [None], "data row 17 .*'in_category': empty"),
        ("in_category", [day(1)] * 17, "'in_category': date32.* expected bools"),
    ],
)
def test_bad_values_of_parquet_files(tmp_path, column, values, message):
    write_parquet(tmp_path, **{column: values})
    with pytest.raises(ValueError, match=rf"interactions\.parquet, .*{message}"):
        categories.load(tmp_path)


def test_types_of_parquet_files(tmp_path):
    given = columns()
    expected = categories.load(write_parquet(tmp_path)).judgements
    for changed in (
        {"volume": pa.array(given["volume"], pa.float32())},
        {"volume": [str(volume) for volume in given["volume"]]},
        {"date": pa.array(given["date"], pa.date64())},
        {"date": [f" {date} " for date in given["date"]]},
        {"date": pa.array([str(d) for d in given["date"]]).dictionary_encode()},
        {"in_category": [int(inside) for inside in given["in_category"]]},
    ):
        found = categories.load(write_parquet(tmp_path, **changed)).judgements
        np.testing.assert_equal(found, expected)


def test_settings_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder.*\.parquet"):
        categories.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither interactions\.parquet nor"):
        categories.load(tmp_path)
    write_csv(tmp_path)
    for threshold in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"threshold={threshold}; expected"):
            categories.load(tmp_path, threshold=threshold)
    for validation, test in ((0.0, 0.2), (0.1, 0.0), (0.5, 0.5), (math.nan, 0.2)):
        shares = {"validation_share": validation, "test_share": test}
        with pytest.raises(ValueError, match=f"test_share={test}; expected two"):
            categories.load(tmp_path, **shares)
    with pytest.raises(ValueError, match=r"10 distinct days.* none for validation; "):
        categories.load(tmp_path, validation_share=0.01)
    with pytest.raises(ValueError, match=r"10 distinct days.* none for train; "):
        categories.load(tmp_path, validation_share=0.48, test_share=0.5)
