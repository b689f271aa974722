import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxqr.data import esci
from jaxqr.records import Labels, Product

EXAMPLES = {
    "query": ["sofa", "sofa", "sofá", "tent", "tent", "rug", "sofa"],
    "product_id": ["A", "B", "A", "A", "C", "B", "A"],
    "product_locale": ["us", "us", "es", "us", "us", "us", "us"],
    "esci_label": ["E", "S", "E", "C", "I", "E", "E"],
    "small_version": pa.array([1, 1, 1, 0, None, 0, 1], pa.int8()),
    "split": ["train", "train", "test", None, "test", None, "train"],
}
PRODUCTS = {
    "product_id": ["A", "A", "B", "D"],
    "product_title": ["Sofá", "Sofa", None, "Lamp"],
    "product_description": [None, "<b>soft</b>", None, None],
    "product_bullet_point": [None, "x\ny", None, None],
    "product_brand": ["Lisa", "Lisa", None, None],
    "product_color": [None, "red", None, None],
    "product_locale": ["es", "us", "us", "us"],
}


@pytest.fixture(params=["shopping_queries_dataset_", ""])
def folder(request, tmp_path):
    for name, table in (("examples", EXAMPLES), ("products", PRODUCTS)):
        path = tmp_path / f"{request.param}{name}.parquet"
        pq.write_table(pa.table(table), path)
    return tmp_path


def test_load(folder):
    products, split, judgements, labels, fully_judged = esci.load(folder)
    assert labels == Labels()
    # Without a column that says otherwise every list is whole.
    assert fully_judged is None
    # "A" is another product in each locale; "C" is judged but has no text.
    assert products == {
        "A": Product("A", "Sofa", "<b>soft</b>", "x\ny", "Lisa", "red"),
        "B": Product("B", ""),
        "D": Product("D", "Lamp"),
    }
    # One official test row makes a test query; an unknown split is training data.
    assert split == {"sofa": "train", "tent": "test", "rug": "train"}
    assert list(zip(*judgements[:3], strict=True)) == [
        ("sofa", "A", "E"),
        ("sofa", "B", "S"),
        ("tent", "A", "C"),
        ("tent", "C", "I"),
        ("rug", "B", "E"),
    ]


def test_locale_and_version(folder):
    spanish = esci.load(folder, locale="es")
    assert spanish.products == {"A": Product("A", "Sofá", brand="Lisa")}
    assert spanish.split == {"sofá": "test"}
    small = esci.load(folder, version="small")
    assert list(small.split) == ["sofa"]
    assert list(small.products) == ["A", "B"]
    with pytest.raises(ValueError, match=r"examples\.parquet.*'jp'.*'es', 'us'"):
        esci.load(folder, locale="jp")
    with pytest.raises(ValueError, match="large_version"):
        esci.load(folder, version="large")


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.float64(), pa.string()])
def test_fully_judged(tmp_path, kind):
    pq.write_table(pa.table(PRODUCTS), tmp_path / "products.parquet")
    # All rows of a query must say so, in the locale alone.
    marks = pa.array([1, 1, 0, 1, None, 1, 1], pa.int8())
    if kind == pa.string():
        marks = marks.cast(pa.bool_())
    table = EXAMPLES | {"fully_judged": marks.cast(kind)}
    pq.write_table(pa.table(table), tmp_path / "examples.parquet")
    assert esci.load(tmp_path).fully_judged == {"sofa", "rug"}
    assert esci.load(tmp_path, locale="es").fully_judged == frozenset()
    assert esci.load(tmp_path, version="small").fully_judged == {"sofa"}
    table["fully_judged"] = ["true"] * 6 + ["perhaps"]
    pq.write_table(pa.table(table), tmp_path / "examples.parquet")
    with pytest.raises(ValueError, match=r"data row 7.*'fully_judged'.*'perhaps'"):
        esci.load(tmp_path)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int64(), pa.float64()])
def test_types_of_the_version(tmp_path, kind):
    pq.write_table(pa.table(PRODUCTS), tmp_path / "products.parquet")
    flag = EXAMPLES["small_version"].cast(kind)
    table = pa.table(EXAMPLES | {"small_version": flag})
    pq.write_table(table, tmp_path / "examples.parquet")
    assert list(esci.load(tmp_path, version="small").split) == ["sofa"]
    table = pa.table(EXAMPLES | {"small_version": [1, 1, 1, 0, 0, 0, 2]})
    pq.write_table(table, tmp_path / "examples.parquet")
    with pytest.raises(ValueError, match=r"data row 7.*'small_version'.*'2'"):
        esci.load(tmp_path, version="small")


def test_ids_and_attributes_that_are_numbers(tmp_path):
    pq.write_table(
        pa.table(EXAMPLES | {"product_id": [1, 2, 1, 1, 3, 2, 1]}),
        tmp_path / "examples.parquet",
    )
    numbers = {"product_id": [1.0, 1.0, 2.0, 4.0], "product_brand": [None, 5, 6, 7]}
    pq.write_table(pa.table(PRODUCTS | numbers), tmp_path / "products.parquet")
    products = esci.load(tmp_path).products
    assert {id: product.brand for id, product in products.items()} == {
        "1": "5",
        "2": "6",
        "4": "7",
    }
    lists = PRODUCTS | {"product_bullet_point": [["a"]] * 4}
    pq.write_table(pa.table(lists), tmp_path / "products.parquet")
    with pytest.raises(ValueError, match=r"products\.parquet.*'product_bullet_point'"):
        esci.load(tmp_path)


@pytest.mark.parametrize(
    ("column", "row", "value", "words"),
    [
        ("esci_label", 3, "X", ["data row 4", "'esci_label'", "'X'", "E, S, C, I"]),
        ("esci_label", 6, "I", ["data row 7", "'esci_label'", "row 1"]),
        ("esci_label", 4, None, ["data row 5", "'esci_label'"]),
        ("query", 3, " ", ["data row 4", "'query'"]),
        ("split", 5, "dev", ["data row 6", "'split'", "'dev'"]),
    ],
)
def test_bad_judgements_are_named(tmp_path, column, row, value, words):
    pq.write_table(pa.table(PRODUCTS), tmp_path / "products.parquet")
    values = list(EXAMPLES[column])
    values[row] = value
    table = pa.table(EXAMPLES | {column: values})
    pq.write_table(table, tmp_path / "examples.parquet")
    with pytest.raises(ValueError, match=r"examples\.parquet") as error:
        esci.load(tmp_path)
    for word in words:
        assert word in str(error.value)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="examples"):
        esci.load(tmp_path)
    pq.write_table(pa.table(EXAMPLES), tmp_path / "examples.parquet")
    with pytest.raises(FileNotFoundError, match="products"):
        esci.load(tmp_path)
    table = PRODUCTS | {"product_id": ["A", "A", "B", "B"]}
    pq.write_table(pa.table(table), tmp_path / "products.parquet")
    with pytest.raises(ValueError, match=r"products\.parquet, data row 4.*'B'"):
        esci.load(tmp_path)


def test_extract(esci_folder):
    products, split, judgements, _, fully_judged = esci.load(esci_folder)
    assert len(products) == 7492
    assert len(judgements.query) == 36608
    assert len(split) == 9853
    assert split.keys() == set(judgements.query)
    assert set(np.unique(judgements.label)) == set("ESCI")
    assert fully_judged is not None
    whole = sorted(fully_judged)
    assert len(whole) == 115
    # 99.9 % of the rows of whole lists have product text.
    inside = np.isin(judgements.query.astype(str), whole)
    known = np.isin(judgements.product_id[inside].astype(str), list(products))
    assert inside.sum() == 5076
    assert known.mean() > 0.998
