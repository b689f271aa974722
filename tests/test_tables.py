import csv
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxqr.data import tables
from jaxqr.records import Collection, Judgements, Product

GOOD = {
    "queries": [["query", "split"], ["red sofa", "test"], ["tent, 2 person", ""]],
    "products": [
        ["product_id", "title", "price", "color", "ignored"],
        ["007", 'Sofa "Lisa"', "12.50", "red", "x"],
        ["8", "Tent\nfor two", "", "", "x"],
    ],
    "judgements": [
        ["query", "product_id", "label"],
        ["red sofa", "007", "E"],
        ["tent, 2 person", "8", "S"],
        ["red sofa", "007", "E"],
        ["red sofa", "8", "I"],
    ],
}


def write(folder, **changed):
    for name, rows in {**GOOD, **changed}.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def with_row(name, *row):
    return {name: [*GOOD[name], list(row)]}


def test_csv(tmp_path):
    products, split, judgements = tables.load(write(tmp_path))
    # Leading zeros survive, quotes and line breaks are data, empty is unknown.
    assert products == {
        "007": Product("007", 'Sofa "Lisa"', color="red", price=12.5),
        "8": Product("8", "Tent\nfor two"),
    }
    assert split == {"red sofa": "test", "tent, 2 person": "train"}
    # The repeated row counts once, the order stays.
    assert judgements.query.tolist() == ["red sofa", "tent, 2 person", "red sofa"]
    assert judgements.product_id.tolist() == ["007", "8", "8"]
    assert judgements.label.tolist() == ["E", "S", "I"]


def test_csv_with_byte_order_mark(tmp_path):
    write(tmp_path)
    path = tmp_path / "queries.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(tables.load(tmp_path).split) == ["red sofa", "tent, 2 person"]


def test_split_is_optional(tmp_path):
    queries = [["query"], ["red sofa"], ["tent, 2 person"]]
    assert set(tables.load(write(tmp_path, queries=queries)).split.values()) == {
        "train"
    }


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"queries": [["text"], ["red sofa"]]}, ["queries.csv", "query", "text"]),
        (with_row("queries", "red sofa", "train"), ["data row 3", "second time"]),
        (with_row("queries", " ", "train"), ["data row 3", "'query'", "empty"]),
        (with_row("queries", "rug", "dev"), ["data row 3", "'split'", "'dev'"]),
        ({"queries": [["query", "split"]]}, ["queries.csv", "no rows"]),
        (with_row("products", "8", "Rug", "", "", ""), ["row 3", "'product_id'", "8"]),
        (with_row("products", "", "Rug", "", "", ""), ["data row 3", "empty"]),
        (
            with_row("products", "9", "Rug", "9,99", "", ""),
            ["row 3", "'price'", "9,99"],
        ),
        (with_row("products", "9", "Rug", "-1", "", ""), ["row 3", "'price'", "-1"]),
        (with_row("products", "9", "Rug", "nan", "", ""), ["row 3", "'price'", "nan"]),
        (
            with_row("products", "9", "Rug"),
            ["products.csv", "data row 3", "has 2 fields"],
        ),
        (with_row("judgements", "red sofa", "8", "X"), ["row 5", "'label'", "E, S"]),
        (with_row("judgements", "red sofa", "8", "e"), ["row 5", "'label'", "'e'"]),
        (
            with_row("judgements", "red sofa", "8", "C"),
            ["judgements.csv", "data row 5", "'label'", "'C'", "row 4", "'I'"],
        ),
        (with_row("judgements", "sofa", "8", "E"), ["row 5", "'query'", "queries"]),
        (with_row("judgements", "red sofa", "9", "E"), ["row 5", "'9'", "products"]),
        (with_row("judgements", "", "8", "E"), ["row 5", "'query'", "empty"]),
    ],
)
def test_bad_rows_are_named(tmp_path, changed, words):
    with pytest.raises(ValueError, match="csv") as error:
        tables.load(write(tmp_path, **changed))
    for word in words:
        assert word in str(error.value)


def test_invalid_utf8_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "products.csv"
    path.write_bytes(path.read_bytes().replace(b"for two", b"f\xfcr zwei"))
    with pytest.raises(ValueError, match=r"products.csv, data row 2 .*'title'.*UTF-8"):
        tables.load(tmp_path)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tables.load(tmp_path / "nowhere")
    write(tmp_path)
    (tmp_path / "products.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither products\.parquet nor"):
        tables.load(tmp_path)
    (tmp_path / "products.csv").touch()
    with pytest.raises(ValueError, match=r"products\.csv"):
        tables.load(tmp_path)
    (tmp_path / "products.parquet").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match="both"):
        tables.load(tmp_path)
    (tmp_path / "products.csv").unlink()
    with pytest.raises(ValueError, match=r"products\.parquet.*pointer"):
        tables.load(tmp_path)


def test_parquet_types(tmp_path):
    write(tmp_path)
    for name in ("products", "judgements"):
        (tmp_path / f"{name}.csv").unlink()
    ids = pa.array([7, 8])
    products = {"product_id": ids, "title": ["Sofa", "Tent"], "price": [1, None]}
    pq.write_table(pa.table(products), tmp_path / "products.parquet")
    query = pa.array(["red sofa", "red sofa"]).dictionary_encode()
    judgements = {"query": query, "product_id": ids, "label": ["E", "S"]}
    pq.write_table(pa.table(judgements), tmp_path / "judgements.parquet")
    collection = tables.load(tmp_path)
    assert collection.products["7"] == Product("7", "Sofa", price=1.0)
    assert collection.judgements.product_id.tolist() == ["7", "8"]

    products["product_id"] = pa.array([7.0, 8.0])
    pq.write_table(pa.table(products), tmp_path / "products.parquet")
    with pytest.raises(ValueError, match=r"'product_id': double"):
        tables.load(tmp_path)


@pytest.fixture
def collection():
    return Collection(
        {
            "1": Product("1", "Ünï ✓", "a\nb", "c", "d", "e", "f", math.pi),
            "2": Product("2", ""),
        },
        {"b": "test", "a": "train", "unjudged": "train"},
        Judgements(
            np.array(["b", "a"], object),
            np.array(["1", "gone"], object),
            np.array(["E", "C"]),
        ),
    )


def test_round_trip(tmp_path, collection):
    tables.save(tmp_path / "new", collection)
    with pytest.raises(ValueError, match=r"data row 2.*'gone'"):
        tables.load(tmp_path / "new")
    loaded = tables.load(tmp_path / "new", allow_missing_products=True)
    assert loaded.products == collection.products
    assert list(loaded.split.items()) == list(collection.split.items())
    for got, expected in zip(loaded.judgements, collection.judgements, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_interrupted_save_leaves_the_former_tables(tmp_path, collection, monkeypatch):
    tables.save(tmp_path, collection)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    write_table = pq.write_table

    def full_disk(table, path, **options):
        write_table(table, path, **options)
        if "judgements" in str(path):
            raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="disk full"):
        tables.save(tmp_path, collection._replace(split={"other": "train"}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_beside_csv_is_refused(tmp_path, collection):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"queries\.csv exists"):
        tables.save(tmp_path, collection)
    assert not list(tmp_path.glob("*.parquet"))
