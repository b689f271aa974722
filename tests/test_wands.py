"""WANDS, from files in the published format."""

from collections import Counter

import conftest
import pytest

from jaxqr.data import tables, wands

QUERIES = """query_id\tquery\tquery_class
0\tsalon chair\tMassage Chairs
1\tsmart coffee table\tCoffee & Cocktail Tables
2\tsofa 84"\t
"""
HEAD = (
    "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description"
    "\tproduct_features\trating_count\taverage_rating\treview_count\n"
)
PRODUCTS = HEAD + (
    "0\tsolid wood platform bed\tBeds\tFurniture / Beds\tgood , deep sleep"
    "\toverallwidth:64.7|material:wood\t15.0\t4.5\t15.0\n"
    '7\tthe "big" sofa, 84" wide\tSofas\t\t"two\nlines, with ""quotes"" in it"'
    "\t\t\t\t\n"
    "9\tplain chair\t\t\t\t\t\t\t\n"
)
LABELS = """id\tquery_id\tproduct_id\tlabel
0\t0\t9\tExact
1\t0\t0\tIrrelevant
2\t2\t7\tPartial
3\t2\t7\tPartial
4\t1\t12345\tExact
"""


def write(folder, query=QUERIES, product=PRODUCTS, label=LABELS):
    for name, text in {"query": query, "product": product, "label": label}.items():
        if text is not None:
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


def test_the_files_as_published(tmp_path):
    found = wands.load(write(tmp_path))
    assert list(found.products) == ["0", "7", "9"]
    bed, sofa, chair = found.products.values()
    assert bed.title == "solid wood platform bed"
    assert bed.category == "Furniture / Beds"
    assert bed.description == "good , deep sleep"
    assert bed.bullets == "overallwidth:64.7|material:wood"
    assert bed.price is None
    assert sofa.title == 'the "big" sofa, 84" wide'
    assert sofa.category == "Sofas"  # no hierarchy: its class
    assert sofa.description == 'two\nlines, with "quotes" in it'
    assert (chair.category, chair.description) == ("", "")
    rows = list(zip(*found.judgements[:3], strict=True))
    assert rows == [
        ("salon chair", "9", "Exact"),
        ("salon chair", "0", "Irrelevant"),
        ('sofa 84"', "7", "Partial"),  # said twice, counts once
        ("smart coffee table", "12345", "Exact"),  # a product without text
    ]
    assert found.labels.names == ("Exact", "Partial", "Irrelevant")
    assert [found.labels.gain(name) for name in found.labels.names] == [1, 0.5, 0]
    assert found.fully_judged is None
    assert set(found.split) == {"salon chair", "smart coffee table", 'sofa 84"'}


def test_the_column_as_the_description_calls_it(tmp_path):
    renamed = PRODUCTS.replace("category hierarchy", "category_hierarchy")
    found = wands.load(write(tmp_path, product=renamed))
    assert found.products["0"].category == "Furniture / Beds"


def test_it_is_saved_with_its_labels(tmp_path):
    found = wands.load(write(tmp_path))
    tables.save(tmp_path / "saved", found)
    again = tables.load(tmp_path / "saved", allow_missing_products=True)
    assert again.labels == found.labels
    assert again.products == found.products


def test_a_tenth_each_is_held_out(tmp_path):
    rows = "".join(f"{i}\tquery {i}\tclass\n" for i in range(50))
    label = "id\tquery_id\tproduct_id\tlabel\n0\t3\t0\tExact\n"
    write(tmp_path, query="query_id\tquery\tquery_class\n" + rows, label=label)
    one, same, other = (wands.load(tmp_path, seed=s).split for s in (0, 0, 1))
    assert Counter(one.values()) == {"train": 40, "validation": 5, "test": 5}
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("label", "5\t33\t9\tExact", "'query_id'.*'33' is no query of query"),
        ("label", "5\t0\t9\texact", "'label'.*'exact' is not a label.* one of Exact"),
        ("label", "5\t0\t9\tPartial", "'Partial' for query 'salon chair'.*row 1 la"),
        ("query", "1\tbed\tBeds", "'query_id'.*'1' occurs a second time"),
        ("query", "3\t \tBeds", "'query'.*it is empty"),
        ("product", "0\tbed" + "\t" * 7, "'product_id'.*'0' occurs a second time"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, row, message):
    text = {"query": QUERIES, "product": PRODUCTS, "label": LABELS}[name]
    number = {"query": 4, "product": 4, "label": 6}[name]
    write(tmp_path, **{name: f"{text}{row}\n"})
    message = rf"{name}\.csv, data row {number} .*{message}"
    with pytest.raises(ValueError, match=message):
        wands.load(tmp_path)


def test_missing_files_and_columns(tmp_path):
    message = r"label\.csv does not exist; expected the folder of the WANDS"
    with pytest.raises(FileNotFoundError, match=message):
        wands.load(write(tmp_path, label=None))
    write(tmp_path, product=PRODUCTS.replace("product_name", "name"))
    with pytest.raises(ValueError, match=r"product\.csv lacks.*product_name"):
        wands.load(tmp_path)


def test_the_real_queries(tmp_path):
    """The 480 queries of the release, where they are next to the checkout."""
    path = conftest.SHARED / "data" / "wands" / "query.csv"
    if not path.exists():
        pytest.skip("needs the WANDS queries next to the checkout")
    write(tmp_path, query=path.read_text(encoding="utf-8"))
    assert Counter(wands.load(tmp_path).split.values()) == {
        "train": 384,
        "validation": 48,
        "test": 48,
    }
