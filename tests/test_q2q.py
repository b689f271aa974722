import itertools
import json
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxqr.data import esci, q2q
from jaxqr.records import Collection, Judgements, Labels


def collect(rows, split=None):
    """A collection from "query: product product ..." lines, all Exact."""
    rows = [line.split(": ") for line in rows]
    rows = [(query, id, "E") for query, ids in rows for id in ids.split()]
    columns = (np.array(c, object) for c in zip(*rows, strict=True))
    queries = dict.fromkeys([query for query, _, _ in rows], "train")
    return Collection({}, queries | (split or {}), Judgements(*columns))


def every_pair(pairs):
    return [pair for split in pairs[:3] for pair in split]


@pytest.fixture(scope="module")
def random_world():
    rng = np.random.default_rng(0)
    # Queries of one block of five share a neighbourhood of eight products.
    queries, products = rng.integers(60, size=600), rng.integers(8, size=600)
    products = np.where(rng.random(600) < 0.9, queries // 5 * 8 + products, products)
    keys = {
        (f"q{q}", f"p{p}"): "ESCI"[rng.integers(4)]
        for q, p in zip(queries, products, strict=True)
    }
    columns = [(*key, label) for key, label in keys.items()]
    split = {f"q{i}": "test" if i % 29 == 0 else "train" for i in range(60)}
    judgements = Judgements(*(np.array(c, object) for c in zip(*columns, strict=True)))
    return Collection({}, split, judgements)


def brute_force(collection, labels, k, max_degree):
    relevant = {}
    for query, id, label in zip(*collection.judgements[:3], strict=True):
        if label in labels:
            relevant.setdefault(query, set()).add(id)
    degree = {}
    for id in itertools.chain.from_iterable(relevant.values()):
        degree[id] = degree.get(id, 0) + 1
    popular = {id for id, count in degree.items() if count > max_degree}
    return popular, {
        frozenset((a, b))
        for a, b in itertools.combinations(relevant, 2)
        if len((relevant[a] & relevant[b]) - popular) >= k
    }


@pytest.mark.parametrize("labels", [("E",), ("E", "S")])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("max_degree", [5, 100])
def test_pairs_match_a_double_loop(random_world, labels, k, max_degree):
    pairs = q2q.query_pairs(random_world, k=k, labels=labels, max_degree=max_degree)
    popular, expected = brute_force(random_world, labels, k, max_degree)
    directed = every_pair(pairs)
    assert {frozenset(pair) for pair in directed} == expected
    # Both directions, each once.
    assert len(directed) == len(set(directed)) == 2 * len(expected)
    assert pairs.statistics.skipped_products == len(popular)
    assert pairs.statistics.pairs == len(expected)
    assert pairs.statistics.shared_at_least.get(k, 0) == len(expected)


def test_splits_are_components(random_world):
    pairs = q2q.query_pairs(random_world)
    splits = [{query for pair in split for query in pair} for split in pairs[:3]]
    assert all(splits)
    for a, b in itertools.combinations(splits, 2):
        assert not a & b
    official = {query for query, s in random_world.split.items() if s == "test"}
    assert not official & (splits[0] | splits[1])
    # Closing the set of official test queries over pairs gives the test split.
    reached = official & set.union(*splits)
    for _ in range(60):
        reached |= {b for a, b in every_pair(pairs) if a in reached}
    assert reached == splits[2]
    counts = pairs.statistics.splits
    assert [counts[name]["pairs"] for name in counts] == [
        len(split) // 2 for split in pairs[:3]
    ]
    assert [counts[name]["queries"] for name in counts] == [len(s) for s in splits]
    assert sum(c["components"] for c in counts.values()) == pairs.statistics.components


def blocks(count, split=None):
    return collect(
        [f"{name}{i}: x{i} y{i}" for i in range(count) for name in "ab"], split
    )


def test_shares():
    # One test component; of the other hundred a fifth is for validation.
    pairs = q2q.query_pairs(blocks(101, {"a0": "test"}))
    assert [len(split) // 2 for split in pairs[:3]] == [80, 20, 1]
    # Nobody named test queries: the fifth is divided.
    pairs = q2q.query_pairs(blocks(100))
    assert [len(split) // 2 for split in pairs[:3]] == [80, 10, 10]
    # Both are named: nothing else is held out.
    pairs = q2q.query_pairs(blocks(102, {"a0": "test", "b7": "validation"}))
    assert pairs.test == [("a0", "b0"), ("b0", "a0")]
    assert pairs.validation == [("a7", "b7"), ("b7", "a7")]
    assert len(pairs.train) == 200
    assert len(q2q.query_pairs(blocks(5), held_out=0.0).train) == 10


def test_a_giant_component_stays_in_training():
    giant = [f"g{i}: x y" for i in range(12)]
    small = [f"{name}{i}: x{i} y{i}" for i in range(20) for name in "ab"]
    for seed in range(5):
        pairs = q2q.query_pairs(collect(giant + small), seed=seed)
        assert ("g0", "g1") in pairs.train
        assert pairs.statistics.largest_component == 12
        # A fifth of 66 + 20 pairs, in components of one pair each.
        assert len(pairs.validation + pairs.test) == 2 * 17


def test_seed():
    first, again, other = (q2q.query_pairs(blocks(50), seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.test != other.test


def test_case_and_whitespace():
    rows = ["Red Sofa: a b", "red  sofa: a b", "couch: a b"]
    rows += ["RUG: c d", "carpet: c d", "Tent : e f", "shelter: e f"]
    pairs = q2q.query_pairs(collect(rows, {"rug": "test", "tent": "train"}))
    # A rewrite that folds to its query is no rewrite, but ties both to one split.
    assert pairs.statistics.candidates == 5
    assert pairs.statistics.copies == 1
    assert ("Red Sofa", "red  sofa") not in every_pair(pairs)
    # "rug" has no pair itself; its capitalised twin must still not be trained on.
    assert set(pairs.test) == {("RUG", "carpet"), ("carpet", "RUG")}


def test_twins_tie_components():
    # No shared product ties "Sofa" to "sofa", yet they are one query.
    rows = ["Sofa: a b", "couch: a b", "sofa: c d", "settee: c d"]
    for seed in range(4):
        pairs = q2q.query_pairs(collect(rows), seed=seed)
        assert pairs.statistics.components == 1
        assert len(pairs.train) == 4


SAME = {
    "composed accents": ("café crème", unicodedata.normalize("NFD", "café crème")),
    "Vietnamese": ("giày đỏ", unicodedata.normalize("NFD", "GIÀY ĐỎ")),
    "kana": ("スカート ピンク", unicodedata.normalize("NFD", "スカート ピンク")),
    "hangul": ("가방", unicodedata.normalize("NFD", "가방")),
    "order of marks": ("q\u0307\u0323", "q\u0323\u0307"),
    "iota subscript": ("ᾳ\u0301", "Α\u0301Ι"),
    "angstrom sign": ("\u212b", "\u00c5"),
    "sharp s": ("STRASSE", "straße"),
    "case makes a new accent": ("ΐ", "Ϊ\u0301"),
    "zero-width space": ("red\u200b sofa", "red sofa"),
    "joiners": ("می\u200cخواهم", "میخواهم"),
    "byte-order mark": ("\ufeffsofa", "sofa"),
    "soft hyphen": ("arm\u00adchair", "armchair"),
    "directions": ("\u200esofa\u200f", "sofa"),
    "emoji presentation": ("♥\ufe0f", "♥"),
    "no-break space": ("red\u00a0sofa", "red sofa"),
    "other spaces": ("\u3000red\u2003\tsofa\n", "red sofa"),
}
DIFFERENT = {
    "accents": ("café", "cafe"),
    "superscript": ("m²", "m2"),
    "fraction": ("½", "1⁄2"),
    "full width": ("Ａ４", "A4"),
    "words": ("sun glasses", "sunglasses"),
}


@pytest.mark.parametrize("kind", SAME)
def test_folded_takes_for_one(kind):
    one, other = SAME[kind]
    assert one != other
    assert q2q.folded(one) == q2q.folded(other)
    for text in (one, other):
        assert q2q.folded(q2q.folded(text)) == q2q.folded(text)
        assert unicodedata.is_normalized("NFC", q2q.folded(text))


@pytest.mark.parametrize("kind", DIFFERENT)
def test_folded_keeps_apart(kind):
    one, other = DIFFERENT[kind]
    assert q2q.folded(one) != q2q.folded(other)


@pytest.mark.parametrize("kind", SAME)
def test_forms_of_one_query(kind):
    one, other = SAME[kind]
    # They make no pair, although they share products.
    rows = {one: "ab", other: "ab", "couch": "ab"}
    pairs = q2q.query_pairs(collect([f"{q}: {a} {b}" for q, (a, b) in rows.items()]))
    assert pairs.statistics.copies == 1
    assert {frozenset(pair) for pair in every_pair(pairs)} == {
        frozenset({one, "couch"}),
        frozenset({other, "couch"}),
    }
    # One is officially a test query, and the other must not be trained on.
    rows = [f"{one}: a b", "couch: a b", f"{other}: c d", "settee: c d"]
    collection = collect(rows, {one: "test"})
    pairs = q2q.query_pairs(collection, held_out=0.0)
    assert not pairs.train + pairs.validation
    assert pairs.statistics.components == 1
    for leak in (one, other):
        worse = pairs._replace(train=[(leak, "new")])
        with pytest.raises(ValueError, match="is in"):
            q2q.check_leaks(worse, collection)


def test_labels_of_the_collection():
    rows = [("a", "1", "hot"), ("a", "2", "warm"), ("b", "1", "hot"), ("b", "2", "hot")]
    judgements = Judgements(*(np.array(c, object) for c in zip(*rows, strict=True)))
    split = {"a": "train", "b": "train"}
    labels = Labels(("hot", "warm", "cold"), (1.0, 0.5, 0.0), ("hot", "warm"))
    collection = Collection({}, split, judgements, labels)
    assert q2q.query_pairs(collection).statistics.pairs == 1
    assert q2q.query_pairs(collection, labels=("hot",)).statistics.pairs == 0
    with pytest.raises(ValueError, match=r"'E'.*'hot', 'warm', 'cold'"):
        q2q.query_pairs(collection, labels=("E",))
    strict = collection._replace(labels=labels._replace(relevant=("hot",)))
    assert q2q.query_pairs(strict).statistics.pairs == 0


def test_popular_products_are_skipped():
    rows = ["a: x y common both", "b: x y common both"]
    rows += ["c: common both", "d: common both"]
    loose = q2q.query_pairs(collect(rows), max_degree=4).statistics
    tight = q2q.query_pairs(collect(rows), max_degree=3).statistics
    assert (loose.pairs, loose.largest_component, loose.skipped_products) == (6, 4, 0)
    assert (tight.pairs, tight.largest_component, tight.skipped_products) == (1, 2, 2)


def test_equivalence_filter():
    seen = []

    def equivalent(a, b):
        seen.extend(zip(a, b, strict=True))
        return np.array([not {"a", "c"} <= {x, y} for x, y in zip(a, b, strict=True)])

    rows = ["a: x y", "b: x y", "c: x y"]
    pairs = q2q.query_pairs(collect(rows), equivalent=equivalent)
    assert sorted(map(sorted, seen)) == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert {frozenset(p) for p in every_pair(pairs)} == {
        frozenset("ab"),
        frozenset("bc"),
    }
    assert pairs.statistics.verified
    assert pairs.statistics.rejected == 1
    assert "unverified" in str(q2q.query_pairs(collect(rows)).statistics)
    for bad in (np.ones(2, bool), np.ones(3)):
        with pytest.raises(ValueError, match=r"expected bool \(3,\)"):
            q2q.query_pairs(collect(rows), equivalent=lambda a, b, bad=bad: bad)


def test_leaks_raise():
    collection = blocks(10, {"a0": "test", "a1": "validation"})
    pairs = q2q.query_pairs(collection)
    q2q.check_leaks(pairs, collection)
    leaks = {
        "train": [("A0 ", "new")],
        "validation": [("new", " b0")],
        "test": [pairs.train[0]],
    }
    for split, leak in leaks.items():
        worse = pairs._replace(**{split: getattr(pairs, split) + leak})
        with pytest.raises(ValueError, match="is in"):
            q2q.check_leaks(worse, collection)
    worse = pairs._replace(train=[("a1", "new")], validation=[])
    with pytest.raises(ValueError, match="officially in validation"):
        q2q.check_leaks(worse, collection)


def test_no_pairs():
    pairs = q2q.query_pairs(collect(["a: x", "b: y"]))
    assert every_pair(pairs) == []
    assert pairs.statistics.components == pairs.statistics.largest_component == 0
    assert str(pairs.statistics)


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"max_degree": 1}, {"held_out": 1.0}, {"labels": ("X",)}]
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="expected"):
        q2q.query_pairs(blocks(2), **options)


def test_extract_reproduces_the_published_counts(esci_folder):
    collection = esci.load(esci_folder)
    pairs = q2q.query_pairs(collection, k=1)
    statistics = pairs.statistics
    shared = statistics.shared_at_least
    assert [shared[n] for n in (1, 2, 3, 4, 5)] == [5322, 1119, 404, 166, 83]
    assert sum(c["queries"] for c in statistics.splits.values()) == 3826
    listed = pq.read_table(esci_folder / "query_pairs.parquet")
    listed = zip(*(listed[c].to_pylist() for c in ("query_a", "query_b")), strict=True)
    found = {frozenset(pair) for pair in every_pair(pairs)}
    assert found == {frozenset(pair) for pair in listed}
    assert q2q.query_pairs(collection).statistics.pairs == 1119
    assert json.loads(json.dumps(statistics._asdict()))["pairs"] == 5322
