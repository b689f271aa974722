"""Home Depot's release, from files in the published format."""

from collections import Counter

import numpy as np
import pytest

from jaxqr.data import home_depot
from jaxqr.data.home_depot import Cuts

HEAD = '"id","product_uid","product_title","search_term","relevance"\n'
TRAIN = HEAD + (
    '2,100001,"Simpson Strong-Tie 12-Gauge Angle","angle bracket",3\n'
    '3,100001,"Simpson Strong-Tie 12-Gauge Angle","l bracket",2.5\n'
    '9,100002,"BEHR Premium 1-gal. #SC-141, 0° façade","deck over",1.67\n'
    '16,100005,"Delta Vero 1-Handle ""Shower"" Kit","rain shower head",1\n'
    '17,100005,"Delta Vero 1-Handle ""Shower"" Kit","rain shower head",2.33\n'
)
DESCRIPTIONS = '"product_uid","product_description"\n' + (
    '100001,"Not only do angles make joints stronger, they cost 5¢."\n'
    '100009,"Of a product that nobody rated"\n'
)
ATTRIBUTES = '"product_uid","name","value"\n' + (
    '100001.0,"Bullet10","the last"\n'
    '100001.0,"Bullet02","Stronger than nailing"\n'
    '100001.0,"Bullet01","Versatile"\n'
    '100001.0,"MFG Brand Name","Simpson Strong-Tie"\n'
    ",,\n"
    '100005.0,"Color/Finish","Chrome"\n'
    '100005.0,"Color Family","Grey"\n'
    '100005.0,"Color","Silver"\n'
    '100002.0,"Bullet01",\n'
)
FILES = {
    "train": TRAIN,
    "product_descriptions": DESCRIPTIONS,
    "attributes": ATTRIBUTES,
}


def write(folder, **files):
    for name, text in (FILES | files).items():
        if text is not None:
            (folder / f"{name}.csv").write_text(text, encoding="iso-8859-1")
    return folder


def test_the_files_as_published(tmp_path):
    found = home_depot.load(write(tmp_path))
    angle, paint, shower = (found.products[f"10000{i}"] for i in (1, 2, 5))
    assert len(found.products) == 3
    assert angle.title == "Simpson Strong-Tie 12-Gauge Angle"
    assert angle.description == "Not only do angles make joints stronger, they cost 5¢."
    assert angle.brand == "Simpson Strong-Tie"
    assert angle.bullets == "Versatile\nStronger than nailing\nthe last"
    assert paint.title == "BEHR Premium 1-gal. #SC-141, 0° façade"
    assert (paint.description, paint.brand, paint.bullets) == ("", "", "")
    assert shower.title == 'Delta Vero 1-Handle "Shower" Kit'
    assert shower.color == "Grey"
    assert set(found.split) == {
        "angle bracket", "l bracket", "deck over", "rain shower head",
    }  # fmt: skip
    # Four queries leave none to hold out: the means are 3, 2.5, 1.67 and 1.665, and
    # the cuts 1.665 + 0.99 * 0.005 and 1.67 + 0.98 * 0.83 = 2.4834.
    assert set(found.split.values()) == {"train"}
    rows = list(zip(*found.judgements[:3], strict=True))
    assert rows == [
        ("angle bracket", "100001", "Exact"),
        ("l bracket", "100001", "Exact"),
        ("deck over", "100002", "Partial"),
        ("rain shower head", "100005", "Irrelevant"),
    ]
    assert found.labels.names == ("Exact", "Partial", "Irrelevant")


def test_the_products_are_known_by_the_ratings_alone(tmp_path):
    write(tmp_path, product_descriptions=None, attributes=None)
    found = home_depot.load(tmp_path)
    assert found.products["100001"].description == ""
    assert found.products["100005"].title == 'Delta Vero 1-Handle "Shower" Kit'


def many(tmp_path, shift=0.0):
    """A hundred queries; those that are not trained on may be rated otherwise."""
    split = home_depot.load(write(tmp_path, train=HEAD + rated(lambda i: 2))).split
    names = {q for q, part in split.items() if part == "train"}

    def relevance(i):
        value = 1 + 2 * (i % 10) / 9
        return value if f"query {i}" in names else min(3.0, value + shift)

    write(tmp_path, train=HEAD + rated(relevance))
    return split, relevance


def rated(relevance):
    return "".join(
        f'{i},{i},"title {i}","query {i}",{relevance(i)}\n' for i in range(100)
    )


def test_relevance_is_cut_at_percentiles_of_the_training_part(tmp_path):
    split, relevance = many(tmp_path, shift=1.0)
    assert Counter(split.values()) == {"train": 80, "validation": 10, "test": 10}
    train = sorted(relevance(i) for i in range(100) if split[f"query {i}"] == "train")
    # By hand: the value at 0.33 and 0.66 of the 79 steps between the sorted ratings.
    low, high = (
        train[int(p)] + (p % 1) * (train[int(p) + 1] - train[int(p)])
        for p in (0.33 * 79, 0.66 * 79)
    )
    assert home_depot.cuts(tmp_path) == pytest.approx((low, high))
    found = home_depot.load(tmp_path)
    assert found.split == split
    expected = [
        "Irrelevant" if x <= low else "Partial" if x <= high else "Exact"
        for x in map(relevance, range(100))
    ]
    assert found.judgements.label.tolist() == expected
    shares = Counter(np.array(expected)[[s == "train" for s in split.values()]])
    assert all(20 <= n <= 34 for n in shares.values())
    other = home_depot.load(tmp_path, seed=1).split
    assert other != split


def test_what_lies_on_a_cut_is_below_it():
    cuts = Cuts(2.0, 2.67)
    labels = [cuts.label(x) for x in (1.0, 2.0, 2.01, 2.67, 2.68, 3.0)]
    assert labels == [
        "Irrelevant", "Irrelevant", "Partial", "Partial", "Exact", "Exact",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('7,100001,"x","y",0.5', r"data row 6 .*'relevance'.*from 1 to 3"),
        ('7,100001,"x","y",3.5', r"data row 6 .*'relevance'.*3\.5"),
        ('7,100001,"x","y",', r"data row 6 .*'relevance'.*from 1 to 3"),
        ('7,,"x","y",2', r"data row 6 .*'product_uid'.*product's number"),
        ('7,abc,"x","y",2', r"data row 6 .*'product_uid'.*'abc'"),
        ('7,100001,"x"," ",2', r"data row 6 .*'search_term'.*it is empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_row(row, message, tmp_path):
    write(tmp_path, train=TRAIN + row + "\n")
    with pytest.raises(ValueError, match=rf"train\.csv, {message}"):
        home_depot.load(tmp_path)


def test_without_ratings_there_is_nothing(tmp_path):
    write(tmp_path, train=None)
    with pytest.raises(FileNotFoundError, match="folder of the Home Depot release"):
        home_depot.load(tmp_path)
