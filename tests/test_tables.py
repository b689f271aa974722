import csv
import datetime
import decimal
import gzip
import io
import math
import resource
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxqr.data import tables
from jaxqr.records import Collection, Judgements, Labels, Product

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
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


def with_row(name, *row):
    return {name: [*GOOD[name], list(row)]}


def write_small(folder, products, suffix="csv", **changed):
    """Three tables of one row each, but for the products and what is given."""
    texts = {
        "queries": "query\nsofa\n",
        "judgements": "query,product_id,label\nsofa,1,E\n",
        **changed,
    }
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    path = folder / f"products.{suffix}"
    if isinstance(products, str):
        path.write_text(products, encoding="utf-8", newline="")
    elif isinstance(products, bytes):
        path.write_bytes(products)
    else:
        pq.write_table(pa.table(products), path)
    return folder


def refused(folder, *words):
    """The message of the ValueError, which has all the words."""
    with pytest.raises(ValueError, match=r"\.(csv|parquet)") as error:
        tables.load(folder)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_csv(tmp_path):
    products, split, judgements, labels, fully_judged = tables.load(write(tmp_path))
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
    assert labels == Labels()
    assert fully_judged is None


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\r\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends(tmp_path, separator, start, line_end):
    names, first = ["product_id", " title", '"price"'], ["1", 'TV 32" wide', "12"]
    second = ["2", f'"a{separator} b{line_end}{line_end}c ""d"""', ""]
    lines = [separator.join(fields) for fields in (names, first, second)]
    text = start + line_end.join([*lines, "", ""])
    assert tables.load(write_small(tmp_path, text)).products == {
        "1": Product("1", 'TV 32" wide', price=12.0),
        "2": Product("2", f'a{separator} b{line_end}{line_end}c "d"'),
    }
    # Row numbers count records, not lines.
    text += separator.join("3xyz") + line_end
    what = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    write_small(tmp_path, text)
    refused(tmp_path, "products.csv, data row 3", "4 fields", what[separator])


@pytest.mark.parametrize("start", ["sep=;\r\n", "\ufeffsep=;\n", "sep=,\n", "sep=~\n"])
def test_excel_names_the_separator(tmp_path, start):
    separator = start.strip()[-1]
    lines = ["product_id|title", "1|Sofa", "2|Rug", "|Mat"]
    text = start + "\n".join(lines).replace("|", separator)
    write_small(tmp_path, text)
    refused(tmp_path, "data row 3", "'product_id'", "empty")
    write_small(tmp_path, text.replace("Mat", f"Mat{separator}"))
    refused(tmp_path, "data row 3", "3 fields")
    write_small(tmp_path, text.replace("Rug", '"Rug'))
    refused(tmp_path, "data row 2", "'title'", "closing quote")


def test_missing_values_are_empty_fields_alone(tmp_path):
    words = ["NA", "null", "NaN", "None", "nil", "#N/A", "-", '""""']
    rows = "".join(f"{i},{word}\n" for i, word in enumerate(words))
    write_small(tmp_path, f'product_id,title\n{rows}x,""\ny,\n')
    titles = [product.title for product in tables.load(tmp_path).products.values()]
    assert titles == [*words[:-1], '"', "", ""]


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
            with_row("products", "9", "Rug"),
            ["products.csv", "data row 3", "has 2 fields"],
        ),
        (with_row("judgements", "red sofa", "8", "X"), ["row 5", "'label'", "E, S"]),
        (with_row("judgements", "red sofa", "8", "e"), ["row 5", "'label'", "'e'"]),
        (
            with_row("judgements", "red sofa", "8", "Exact"),
            ["row 5", "'Exact'", "E, S, C, I"],
        ),
        (
            with_row("judgements", "red sofa", "8", "C"),
            ["judgements.csv", "data row 5", "'label'", "'C'", "row 4", "'I'"],
        ),
        (with_row("judgements", "sofa", "8", "E"), ["row 5", "'query'", "queries"]),
        (with_row("judgements", "red sofa", "9", "E"), ["row 5", "'9'", "products"]),
        (with_row("judgements", "", "8", "E"), ["row 5", "'query'", "empty"]),
        (
            {"queries": [["query", "query"], ["a", "b"]]},
            ["queries.csv", "2", "'query'"],
        ),
        (
            {"products": [["product_id", "title", " title"], ["1", "a", "b"]]},
            ["products.csv", "2 columns 'title'", "remove"],
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, changed, words):
    refused(write(tmp_path, **changed), *words)


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ("9,99", ["9.99"]),
        ("1.299,00", ["such as 12.99"]),
        ("1,299.00", ["thousands"]),
        ("€9.99", ["currencies"]),
        ("9.99 EUR", ["currencies"]),
        ("-1", ["not negative"]),
        ("nan", ["leave it empty"]),
        ("-Infinity", ["leave it empty"]),
        ("1e999", ["leave it empty"]),
        ("1_000", ["thousands"]),
        ("٣", ["number"]),
        ("unknown", ["leave it empty"]),
    ],
)
def test_bad_prices_are_named(tmp_path, price, words):
    write(tmp_path, **with_row("products", "9", "Rug", price, "", ""))
    refused(tmp_path, "products.csv, data row 3", "'price'", repr(price), *words)


def test_prices(tmp_path):
    rows = ["1,a,12", "2,b, 12.5 ", "3,c,1e2", "4,d,", '5,e,""', "6,f, ", "7,g,0"]
    write_small(tmp_path, "\n".join(["product_id,title,price", *rows]))
    prices = [product.price for product in tables.load(tmp_path).products.values()]
    assert prices == [12.0, 12.5, 100.0, None, None, None, 0.0]


@pytest.mark.parametrize(
    ("text", "row", "column"),
    [
        ('1,a\n2,"b\n3,c\n', 2, "title"),
        ('"1,a\n2,b\n3,c\n', 1, "product_id"),
        # The next quoted field closes it; rows 2 and 3 would be one product.
        ('1,"x\n\ny"\n\n2,"b\n3,"c"\n4,d\n', 2, "title"),
        ('1,a\n2,"b\n3,"c\n', 2, "title"),
        ('1,a\n2,"b" c\n3,c\n', 2, "title"),
        ('1,a\n2,"say \\"b\\""\n', 2, "title"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_quotes_that_do_not_close_are_named(tmp_path, text, row, column, line_end):
    text = ("product_id,title\n" + text).replace("\n", line_end)
    write_small(tmp_path, text)
    refused(tmp_path, f"products.csv, data row {row}", f"{column!r}", "closing quote")


def test_quotes_of_the_header(tmp_path):
    write_small(tmp_path, '"product_id","title","a\nb, ""c"""\n1,Sofa,x\n')
    assert tables.load(tmp_path).products == {"1": Product("1", "Sofa")}
    write_small(tmp_path, 'product_id,title,size"\n1,Sofa,32"\n')
    assert tables.load(tmp_path).products == {"1": Product("1", "Sofa")}
    write_small(tmp_path, 'product_id,"title\n1,Sofa\n')
    refused(tmp_path, "products.csv, the header", "closing quote")


@pytest.mark.parametrize("size", [(1 << 20) - 20, 1 << 20, 10_000_000])
@pytest.mark.parametrize("quoted", [True, False])
def test_records_larger_than_a_block(tmp_path, size, quoted):
    text = ('x"\n' * (size // 3)) if quoted else "x" * size
    field = '"' + text.replace('"', '""') + '"' if quoted else text
    lines = ["product_id,title,description", "1,a,short", f"2,b,{field}", "3,c,short"]
    write_small(tmp_path, "\n".join(lines))
    products = tables.load(tmp_path).products
    assert [len(product.description) for product in products.values()] == [
        5,
        len(text),
        5,
    ]
    assert products["2"].description == text
    write_small(tmp_path, "\n".join([*lines, "4,d"]))
    refused(tmp_path, "data row 4", "2 fields")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused(tmp_path, encoding):
    write_small(tmp_path, "product_id,title\n1,Sofa\n".encode(encoding))
    refused(tmp_path, "products.csv", "UTF-8")


def test_invalid_utf8_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "products.csv"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"for two", b"f\xfcr zwei"))
    refused(tmp_path, "products.csv, data row 2", "'title'", "UTF-8")
    # A lone surrogate, as some programs write half of an emoji.
    path.write_bytes(good.replace(b"for two", b"\xed\xa0\xbd"))
    refused(tmp_path, "products.csv, data row 2", "'title'", "UTF-8")
    path.write_bytes(good.replace(b"ignored", b"Gr\xf6\xdfe"))
    refused(tmp_path, "products.csv", "header", "UTF-8")
    path.write_bytes(good.replace(b"for two", b"for\0two"))
    refused(tmp_path, "products.csv, data row 2", "'title'", "NUL")
    path.write_bytes(good.replace(b"007,", b"0\x007,"))
    refused(tmp_path, "products.csv, data row 1", "'product_id'", "NUL")
    path.write_bytes(good.replace(b",x", b",x,\xfc"))
    refused(tmp_path, "products.csv, data row 1", "6 fields")
    # What nobody reads may be anything.
    path.write_bytes(good.replace(b",x", b",\xfc"))
    assert tables.load(tmp_path).products["8"].title == "Tent\nfor two"


def test_invalid_utf8_in_a_parquet_file(tmp_path):
    broken = pa.array([b"Sofa", b"Gr\xfcn"]).cast(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, broken.buffers())
    products = {"product_id": ["1", "2"], "title": broken}
    write_small(tmp_path, products, "parquet")
    refused(tmp_path, "products.parquet, data row 2", "'title'", "UTF-8")
    products = {"product_id": ["1", "2\0"], "title": ["a", "b"]}
    write_small(tmp_path, products, "parquet")
    refused(tmp_path, "products.parquet, data row 2", "'product_id'", "NUL")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tables.load(tmp_path / "nowhere")
    write(tmp_path)
    (tmp_path / "products.csv").rename(tmp_path / "Products.csv")
    with pytest.raises(FileNotFoundError, match=r"products\.parquet.*Products\.csv"):
        tables.load(tmp_path)
    (tmp_path / "products.csv").touch()
    (tmp_path / "products.parquet").touch()
    with pytest.raises(ValueError, match="both"):
        tables.load(tmp_path)


def parquet_bytes():
    file = io.BytesIO()
    pq.write_table(pa.table({"product_id": ["1"], "title": ["Sofa"]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "data", "words"),
    [
        ("csv", b"", ["empty"]),
        ("csv", b"\n\n", ["'product_id'"]),
        ("csv", b"product_id,title", ["no rows"]),
        ("csv", b"product_id,title\n\n\n", ["no rows"]),
        ("csv", parquet_bytes(), ["parquet"]),
        (
            "csv",
            gzip.compress(b"product_id,title\n1,Sofa\n", mtime=0),
            ["gzip", "unpack"],
        ),
        ("csv", b"PK\x03\x04\x14\0\x06", ["zip", "Excel"]),
        ("csv", b"\xd0\xcf\x11\xe0\xa1\xb1", ["Excel", "CSV"]),
        ("csv", b"<!DOCTYPE html>\n<html>", ["HTML"]),
        ("csv", b'[{"product_id": "1"}]', ["JSON"]),
        ("csv", b"version https://git-lfs.github.com/spec/v1\n", ["pointer"]),
        ("csv", b"x" * 200_000 + b"\n1\n", ["header"]),
        ("parquet", b"", ["empty"]),
        ("parquet", b"product_id,title\n1,Sofa\n", ["not a parquet file", ".csv"]),
        ("parquet", parquet_bytes()[:-9], ["interrupted"]),
        ("parquet", gzip.compress(parquet_bytes(), mtime=0), ["gzip"]),
        ("parquet", b"version https://git-lfs.github.com/spec/v1\n", ["pointer"]),
    ],
)
def test_what_is_no_table_is_told(tmp_path, suffix, data, words):
    write_small(tmp_path, data, suffix)
    refused(tmp_path, f"products.{suffix}", *words)


def test_folders_and_permissions(tmp_path, monkeypatch):
    write_small(tmp_path, "product_id,title\n1,Sofa\n")
    path = tmp_path / "queries.csv"
    path.unlink()
    path.mkdir()
    refused(tmp_path, "queries.csv is a folder")
    path.rmdir()

    # The user of the tests may be allowed everything.
    def denied(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    write_small(tmp_path, "product_id,title\n1,Sofa\n")
    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(PermissionError, match=r"queries\.csv.*chmod"):
        tables.load(tmp_path)


def test_folder_names_are_no_columns(tmp_path):
    folder = tmp_path / "split=test"
    folder.mkdir()
    write_small(folder, {"product_id": ["1"], "title": ["Sofa"]}, "parquet")
    (folder / "queries.csv").unlink()
    pq.write_table(pa.table({"query": ["sofa"]}), folder / "queries.parquet")
    assert tables.load(folder).split == {"sofa": "train"}


TEXTS = {
    "integers": (pa.array([7, None], pa.int64()), "7"),
    "small integers": (pa.array([7, None], pa.uint8()), "7"),
    "whole floats": (pa.array([12.0, None]), "12"),
    "floats with NaN": (pa.array(np.array([12.0, np.nan])), "12"),
    "narrow floats": (pa.array([12.0, None], pa.float32()), "12"),
    "decimals": (pa.array([decimal.Decimal("12.00"), None]), "12"),
    "large decimals": (
        pa.array([decimal.Decimal(10**38 + 1), None], pa.decimal256(40, 0)),
        str(10**38 + 1),
    ),
    "categories": (pa.array(["Ä", None]).dictionary_encode(), "Ä"),
    "categories of numbers": (pa.array([7, None]).dictionary_encode(), "7"),
    "string views": (pa.array(["Ä", None], pa.string_view()), "Ä"),
    "large strings": (pa.array(["Ä", None], pa.large_string()), "Ä"),
    "bytes": (pa.array(["Ä".encode(), None]), "Ä"),
    "large bytes": (pa.array(["Ä".encode(), None], pa.large_binary()), "Ä"),
    "byte views": (pa.array(["Ä".encode(), None], pa.binary_view()), "Ä"),
    "bytes of one length": (pa.array([b"ab", None], pa.binary(2)), "ab"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_every_type_that_is_text(tmp_path, kind):
    values, expected = TEXTS[kind]
    texts = ("title", "description", "bullets", "brand", "color", "category")
    write_small(
        tmp_path, {"product_id": ["1", "2"], **dict.fromkeys(texts, values)}, "parquet"
    )
    first, second = tables.load(tmp_path).products.values()
    assert first == Product("1", *[expected] * 6)
    assert second == Product("2", "")

    # The same in the columns that are keys.
    for path in tmp_path.iterdir():
        path.unlink()
    keys = values.slice(0, 1)
    for name, table in {
        "queries": {"query": keys},
        "products": {"product_id": keys, "title": keys},
        "judgements": {"query": keys, "product_id": keys, "label": keys},
        "labels": {"label": keys, "gain": [1]},
    }.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    collection = tables.load(tmp_path)
    assert list(collection.products) == list(collection.split) == [expected]
    assert [x.tolist() for x in collection.judgements[:3]] == [[expected]] * 3
    assert collection.labels == Labels((expected,), (1.0,), (expected,))


NO_TEXTS = {
    "bool": [True, None],
    "list<": [["soft", "red"], None],
    "struct<": [{"a": "b"}, None],
    "date": [datetime.date(2020, 1, 1), None],
    "timestamp": [datetime.datetime(2020, 1, 1), None],
    "data row 2": [1.0, 1.5],
    "inf": [1.0, math.inf],
    "9,007,199,254,740,992": [2.0**60, None],
    "5.50": [decimal.Decimal("5.50"), None],
}


@pytest.mark.parametrize("column", ["product_id", "title", "category"])
@pytest.mark.parametrize("word", NO_TEXTS)
def test_every_other_type_is_refused(tmp_path, word, column):
    products = {"product_id": ["1", "2"], "title": ["a", "b"], column: NO_TEXTS[word]}
    write_small(tmp_path, products, "parquet")
    refused(
        tmp_path, "products.parquet", repr(column), word, "when the table is written"
    )


@pytest.mark.parametrize("column", ["query", "split"])
def test_types_of_the_queries(tmp_path, column):
    write_small(tmp_path, {"product_id": ["1"], "title": ["Sofa"]}, "parquet")
    (tmp_path / "queries.csv").unlink()
    table = pa.table({"query": ["sofa"], "split": ["test"], column: [True]})
    pq.write_table(table, tmp_path / "queries.parquet")
    refused(tmp_path, "queries.parquet", repr(column), "bool")


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (pa.array([3, None]), 3.0),
        (pa.array([12.99, None]), 12.99),
        (pa.array([decimal.Decimal("12.99"), None]), 12.99),
        (pa.array(["12.99", None]), 12.99),
        (pa.array(["12.99", None]).dictionary_encode(), 12.99),
        (pa.array([b"12.99", None]), 12.99),
        (pa.nulls(2), None),
    ],
)
def test_types_of_prices(tmp_path, prices, expected):
    products = {"product_id": ["1", "2"], "title": ["a", "b"], "price": prices}
    write_small(tmp_path, products, "parquet")
    first, second = tables.load(tmp_path).products.values()
    assert (first.price, second.price) == (expected, None)


@pytest.mark.parametrize(
    ("prices", "word"),
    [
        ([1.0, math.nan], "data row 2"),
        ([1.0, -math.inf], "data row 2"),
        ([1, -1], "data row 2"),
        ([decimal.Decimal(1), decimal.Decimal("-1")], "data row 2"),
        ([True, False], "bool"),
        ([[1.0], [2.0]], "list"),
        ([datetime.date(2020, 1, 1)] * 2, "date"),
    ],
)
def test_types_that_are_no_prices(tmp_path, prices, word):
    products = {"product_id": ["1", "2"], "title": ["a", "b"], "price": prices}
    write_small(tmp_path, products, "parquet")
    refused(tmp_path, "products.parquet", "'price'", word, "number")


def test_repeated_parquet_columns(tmp_path):
    values = [pa.array(["1"]), pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    products = pa.table(values, ["product_id", "title", "x", "x"])
    write_small(tmp_path, products, "parquet")
    assert tables.load(tmp_path).products == {"1": Product("1", "a")}
    products = pa.table(values, ["product_id", "title", "brand", "brand"])
    write_small(tmp_path, products, "parquet")
    refused(tmp_path, "products.parquet", "2 columns 'brand'", "remove")


@pytest.mark.parametrize(
    ("known", "given", "shown"),
    [
        ("p1", "p1 ", "'p1'"),
        ("p1", " p1", "'p1'"),
        ("B07", "b07", "'B07'"),
        ("12", "12.0", "'12'"),
        ("caf\u00e9", "cafe\u0301", "'caf\\xe9'"),
        ("cafe\u0301", "caf\u00e9", "'cafe\\u0301'"),
        ("a b", "a\u00a0b", "'a b'"),
    ],
)
def test_ids_that_look_alike(tmp_path, known, given, shown):
    write_small(
        tmp_path,
        f"product_id,title\n9,Rug\n{known},Sofa\n",
        judgements=f"query,product_id,label\nsofa,9,E\nsofa,{given},E\n",
    )
    message = refused(tmp_path, "judgements.csv, data row 2", "'product_id'", shown)
    assert ascii(given) in message
    assert unicodedata.is_normalized("NFC", message)


def test_labels(tmp_path):
    rows = "label,gain\nExact,1\nPartial,0.5\nIrrelevant,0\n"
    judgements = "query,product_id,label\nsofa,1,Partial\nsofa,2,Irrelevant\n"
    products = "product_id,title\n1,Sofa\n2,Tent\n"
    write_small(tmp_path, products, labels=rows, judgements=judgements)
    collection = tables.load(tmp_path)
    names = ("Exact", "Partial", "Irrelevant")
    assert collection.labels == Labels(names, (1.0, 0.5, 0.0), ("Exact", "Partial"))
    assert collection.judgements.label.tolist() == ["Partial", "Irrelevant"]

    rows = "label,gain,relevant\nExact,1,\nPartial,.5,FALSE\nIrrelevant,0,1\n"
    write_small(tmp_path, products, labels=rows, judgements=judgements)
    assert tables.load(tmp_path).labels.relevant == ("Exact", "Irrelevant")

    write_small(tmp_path, products, labels=rows)
    refused(tmp_path, "judgements.csv, data row 1", "'E'", "Exact, Partial, Irrelevant")


@pytest.mark.parametrize("relevant", [[True, False], [1, 0], [1.0, None], ["true", ""]])
def test_labels_from_parquet(tmp_path, relevant):
    write_small(tmp_path, "product_id,title\n1,Sofa\n")
    labels = {"label": ["E", "S"], "gain": [1, 0], "relevant": relevant}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    assert tables.load(tmp_path).labels == Labels(("E", "S"), (1.0, 0.0), ("E",))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("label\nE\n", ["gain"]),
        ("label,gain\nE,1\n,0\n", ["row 2", "'label'", "empty"]),
        ("label,gain\nE,1\nE,0\n", ["row 2", "'label'", "second time"]),
        ("label,gain\nE,1\nS,\n", ["row 2", "'gain'", "empty"]),
        ("label,gain\nE,1.5\n", ["row 1", "'gain'", "from 0 to 1"]),
        ("label,gain\nE,nan\n", ["row 1", "'gain'", "from 0 to 1"]),
        ("label,gain\nI,0\nE,1\n", ["row 2", "'gain'", "best label first"]),
        ("label,gain\nE,0.05\n", ["no relevant label"]),
        ("label,gain,relevant\nE,1,yes\n", ["row 1", "'relevant'", "true or false"]),
    ],
)
def test_bad_labels_are_named(tmp_path, rows, words):
    write_small(tmp_path, "product_id,title\n1,Sofa\n", labels=rows)
    refused(tmp_path, "labels.csv", *words)


def test_fully_judged(tmp_path):
    products = "product_id,title\n1,Sofa\n"
    write_small(
        tmp_path, products, queries="query,fully_judged\nsofa,TRUE\nrug,\ntent,0\n"
    )
    assert tables.load(tmp_path).fully_judged == {"sofa"}
    write_small(tmp_path, products, queries="query,fully_judged\nsofa,\n")
    assert tables.load(tmp_path).fully_judged == frozenset()
    write_small(tmp_path, products, queries="query,fully_judged\nrug,1\nsofa,2\n")
    refused(tmp_path, "queries.csv, data row 2", "'fully_judged'", "'2'")
    (tmp_path / "queries.csv").unlink()
    for values in ([None, True], [0, 1], [None, 1.0]):
        table = pa.table({"query": ["rug", "sofa"], "fully_judged": values})
        pq.write_table(table, tmp_path / "queries.parquet")
        assert tables.load(tmp_path).fully_judged == {"sofa"}
    table = pa.table({"query": ["sofa"], "fully_judged": [[True]]})
    pq.write_table(table, tmp_path / "queries.parquet")
    refused(tmp_path, "queries.parquet", "'fully_judged'", "bool")


def test_weights(tmp_path):
    products = "product_id,title\n2,Tent\n1,Sofa\n"
    write_small(
        tmp_path,
        products,
        queries="query\nsofa\nrug\n",
        judgements="query,product_id,label,weight\n"
        "sofa,2,I,0.5\nrug,1,S, 3 \nsofa,1,E,1e1\nrug,1,S,4\nsofa,2,I,0.25\n",
    )
    judgements = tables.load(tmp_path).judgements
    # The weights of a repeated row are added, where it first stands.
    assert list(zip(*judgements, strict=True)) == [
        ("sofa", "2", "I", 0.75),
        ("rug", "1", "S", 7.0),
        ("sofa", "1", "E", 10.0),
    ]
    (tmp_path / "judgements.csv").unlink()
    table = {"query": ["sofa"], "product_id": [2], "label": ["E"]}
    for weights in ([3], [3.0], [decimal.Decimal("3.0")], ["3"]):
        path = tmp_path / "judgements.parquet"
        pq.write_table(pa.table(table | {"weight": weights}), path)
        weight = tables.load(tmp_path).judgements.weight
        assert (weight.tolist(), weight.dtype) == ([3.0], np.float64)
    for weights in ([True], [None], [math.nan], [math.inf]):
        pq.write_table(pa.table(table | {"weight": weights}), path)
        refused(tmp_path, "judgements.parquet", "'weight'", "number")


@pytest.mark.parametrize("weight", ["", "0", "-1", "nan", "inf", "1,5", "many", "1_0"])
def test_bad_weights_are_named(tmp_path, weight):
    judgements = f'query,product_id,label,weight\nsofa,1,E,1\nsofa,1,E,"{weight}"\n'
    write_small(tmp_path, "product_id,title\n1,Sofa\n", judgements=judgements)
    shown = repr(weight) if weight else "empty"
    wanted = f"{shown}; expected a number above 0; correct it or drop the row"
    refused(tmp_path, "judgements.csv, data row 2", "'weight'", wanted)


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
            np.array(["good", "bad"]),
        ),
        Labels(("good", "bad", "ugly"), (1.0, 0.3, 0.1), ("good", "ugly")),
        frozenset({"a", "unjudged"}),
    )


def assert_same(got, expected):
    assert got._replace(judgements=None) == expected._replace(judgements=None)
    assert list(got.products) == list(expected.products)
    assert list(got.split) == list(expected.split)
    for one, other in zip(got.judgements[:3], expected.judgements[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = got.judgements.weight, expected.judgements.weight
    assert (one is None) == (other is None)
    if other is not None:
        assert one.dtype == other.dtype == np.float64
        np.testing.assert_array_equal(one, other)


def read_trusting(folder):
    split, fully_judged = tables.read_queries(folder)
    return Collection(
        tables.read_products(folder),
        split,
        tables.read_judgements(folder),
        tables.read_labels(folder),
        fully_judged,
    )


@pytest.mark.parametrize("fully_judged", [None, frozenset(), frozenset({"a"})])
@pytest.mark.parametrize("weight", [None, np.array([0.1, 12.0])])
def test_round_trip(tmp_path, collection, fully_judged, weight):
    judgements = collection.judgements._replace(weight=weight)
    collection = collection._replace(fully_judged=fully_judged, judgements=judgements)
    tables.save(tmp_path / "new", collection)
    with pytest.raises(ValueError, match=r"data row 2.*'gone'"):
        tables.load(tmp_path / "new")
    loaded = tables.load(tmp_path / "new", allow_missing_products=True)
    assert_same(loaded, collection)
    trusted = read_trusting(tmp_path / "new")
    assert_same(trusted, collection)
    assert trusted.judgements.label.dtype == loaded.judgements.label.dtype
    written = pq.read_schema(tmp_path / "new" / "judgements.parquet").names
    assert ("weight" in written) == (weight is not None)


def test_round_trip_of_nothing(tmp_path):
    nothing = Collection({}, {}, Judgements(*[np.array([], object)] * 3))
    tables.save(tmp_path, nothing)
    assert_same(read_trusting(tmp_path), nothing)


def test_save_over_a_collection_of_other_labels(tmp_path, collection):
    tables.save(tmp_path, collection)
    judgements = Judgements(*(np.array([x], object) for x in ("b", "1", "C")))
    other = Collection(collection.products, collection.split, judgements)
    tables.save(tmp_path, other)
    assert_same(tables.load(tmp_path), other)


def test_a_full_disk_leaves_the_former_tables(tmp_path, collection):
    tables.save(tmp_path, collection)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4
    rng = np.random.default_rng(0)
    products = {
        str(i): Product(str(i), rng.bytes(100).hex()) for i in rng.permutation(1000)
    }
    larger = collection._replace(products=products, split={"other": "train"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this size: `queries` is written, `products` is not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for folder in (tmp_path, tmp_path / "new"):
            with pytest.raises(OSError, match="large"):
                tables.save(folder, larger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "new").rmdir()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    tables.save(tmp_path, larger)
    assert tables.read_products(tmp_path) == products


def test_save_refuses_what_cannot_be_read_again(tmp_path, collection):
    broken = {"1": Product("1", "half an emoji \ud83d")}
    with pytest.raises(ValueError, match=r"products, column 'title'.*ud83d"):
        tables.save(tmp_path, collection._replace(products=broken))
    assert not list(tmp_path.iterdir())
    write(tmp_path)
    with pytest.raises(ValueError, match=r"queries\.csv exists"):
        tables.save(tmp_path, collection)
    assert not list(tmp_path.glob("*.parquet"))
