"""The cold-start split: no part sees what it must not."""

import numpy as np
import pytest

from jaxqr.data import shop
from jaxqr.data.cold_start import cold_start
from jaxqr.records import Collection, Judgements, Product

PARTS = ("train", "validation", "test", "cold", "independent")


@pytest.fixture(scope="module")
def collection():
    return shop.make(num_products=800, num_intents=40, seed=1).collection


def told(collection, split, name):
    rows = split.parts[name]
    judged = collection.judgements
    return set(judged.query[rows]), set(judged.product_id[rows])


@pytest.mark.parametrize("unit", ["category", "product"])
def test_nobody_sees_too_much(collection, unit):
    split = cold_start(collection, unit=unit, share=0.3, seed=2)
    queries, products = zip(
        *(told(collection, split, name) for name in PARTS), strict=True
    )
    train, validation, test, cold, independent = products
    assert not (train | validation | test) & set(split.products)
    assert cold <= set(split.products)
    assert independent & set(split.products)  # a checker knows cold products
    train, validation, test, cold, independent = queries
    assert cold | test == {q for q, s in collection.split.items() if s == "test"}
    for one, other in (
        (train, validation),
        (train, test | cold),
        (train, independent),
        (validation, test | cold),
        (validation, independent),
        (independent, test | cold),
    ):
        assert one
        assert other
        assert not one & other


def test_whole_categories_are_cold(collection):
    split = cold_start(collection, share=0.3)
    cold = {collection.products[id].category for id in split.products}
    judged = set(collection.judgements.product_id)
    rest = judged - set(split.products)
    assert not cold & {collection.products[id].category for id in rest}
    assert len(split.products) >= 0.3 * len(judged)


def test_equal_seeds_split_equally(collection):
    one, other, third = (cold_start(collection, seed=s) for s in (3, 3, 4))
    assert one.products == other.products
    assert all(np.array_equal(one.parts[n], other.parts[n]) for n in PARTS)
    assert one.products != third.products


def test_rows_by_hand():
    """Two categories, one of them cold; the split of the queries is given."""
    products = {
        id: Product(id, id, category=category)
        for id, category in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"))
    }
    split = {"q": "test", "v": "validation"} | {f"t{i}": "train" for i in range(4)}
    rows = [(query, id) for query in split for id in ("a", "c", "gone")]
    query, id = (np.array(column, object) for column in zip(*rows, strict=True))
    judged = Judgements(query, id, np.full(len(rows), "E"))
    found = cold_start(Collection(products, split, judged), share=0.5, independent=0.5)
    cold = found.products[0]
    assert found.products in (("a",), ("c",))
    for name, queries, seen in (
        ("test", {"q"}, {"a", "c"} - {cold}),
        ("cold", {"q"}, {cold}),
        ("validation", {"v"}, {"a", "c"} - {cold}),
    ):
        rows = found.parts[name]
        assert set(query[rows]) == queries
        assert set(id[rows]) == seen
    assert len(found.train) == 2
    assert len(found.independent) == 2 * 2


def test_missing_splits_are_drawn(collection):
    split = dict.fromkeys(collection.split, "train")
    found = cold_start(collection._replace(split=split))
    count = {name: len(told(collection, found, name)[0]) for name in PARTS}
    assert count["test"] == round(0.1 * len(split))
    assert count["validation"] == round(0.1 * (len(split) - count["test"]))
    many = cold_start(collection._replace(split=split), held_out=0.3)
    assert len(told(collection, many, "test")[0]) == round(0.3 * len(split))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.0}, "share=1.0: expected a number between 0 and 1"),
        ({"independent": 0.0}, "independent=0.0"),
        ({"share": 0.999}, "no judgements for train, validation, test"),
    ],
)
def test_refused(collection, changes, message):
    with pytest.raises(ValueError, match=message):
        cold_start(collection, **changes)
