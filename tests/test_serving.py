"""Ways of serving, RM3, spelling, and their table: small worlds with known answers."""

import math
from collections import Counter

import numpy as np
import pytest
import world

from jaxqr.evaluation import gate, served
from jaxqr.evaluation.served import Known, Measured
from jaxqr.metrics import recall
from jaxqr.records import Hits, Product
from jaxqr.retrieval import TermRetriever
from jaxqr.retrieval.cached import CachedRetriever
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.retrieval.feedback import RM3
from jaxqr.retrieval.selection import FEATURES, TermSelection
from jaxqr.retrieval.serving import (
    Backfill,
    Expansion,
    Fusion,
    Query,
    Rewrite,
    Serving,
    choose,
    reciprocal_rank,
    search_each,
)
from jaxqr.retrieval.spelling import SpellingCorrector
from jaxqr.rewards import list_reward, rewrite_reward

LISTS = {"q": "abc", "r": "bd", "s": "dbe", "empty": ""}


class Engine:
    """Answers from `LISTS`; terms of one word as that word's text."""

    def __init__(self, *failing: str):
        self.calls: list[list] = []
        self.failing = failing

    def search(self, queries, k):
        self.calls.append(list(queries))
        rows = [list(LISTS[q])[:k] for q in queries]
        ids = [row + [""] * (k - len(row)) for row in rows]
        scores = [[1.0] * len(row) + [0.0] * (k - len(row)) for row in rows]
        valid = [q not in self.failing for q in queries]
        return Hits(
            np.array(ids, np.str_).reshape(-1, k),
            np.array(scores, np.float32).reshape(-1, k),
            np.array(valid, np.bool_),
        )

    def search_terms(self, queries, k):
        return self.search([" ".join(terms) for terms in queries], k)


def shown(hits: Hits) -> list[str]:
    return ["".join(row) for row in hits.ids.tolist()]


def hits_of(*rows: str) -> Hits:
    width = max(map(len, rows))
    ids = [list(row) + [""] * (width - len(row)) for row in rows]
    return Hits(
        np.array(ids, np.str_),
        np.zeros((len(rows), width), np.float32),
        np.ones(len(rows), np.bool_),
    )


def test_equal_texts_are_searched_once_and_blank_ones_not_at_all():
    engine = Engine()
    hits = search_each(engine, ["q", " ", "r", "q"], 2)
    assert shown(hits) == ["ab", "", "bd", "ab"]
    assert hits.valid.all()
    assert engine.calls == [["q", "r"]]


def test_reciprocal_rank_fusion_by_hand():
    found = dict(reciprocal_rank([("abc", 1.0), (["b", "d", ""], 0.5)], 60.0))
    assert found == pytest.approx(
        {"a": 1 / 61, "b": 1 / 62 + 0.5 / 61, "c": 1 / 63, "d": 0.5 / 62}
    )
    assert list(found) == ["b", "a", "c", "d"]
    # a and b have equal scores: the order is that of the ids
    assert [i for i, _ in reciprocal_rank([("ba", 1.0), ("ab", 1.0)])] == ["a", "b"]


def test_ways_of_serving_by_hand():
    engine = Engine()
    queries, rewrites = ["q", "q", "q"], [["r", "s"], [], ["q", "empty"]]
    lists = {
        way: shown(way(engine, queries, rewrites, 4))
        for way in (Query(), Rewrite(), Fusion(1), Fusion(2), Backfill(1), Backfill(2))
    }
    assert lists[Query()] == ["abc"] * 3
    assert lists[Rewrite()] == ["bd", "abc", "abc"]
    # b 1/62 + 1/61, a 1/61, d 1/62, c 1/63
    assert lists[Fusion(1)] == ["badc", "abc", "abc"]
    # and of s: d + 1/61, b + 1/62, e 1/63: b, d, a, then c and e tie
    assert lists[Fusion(2)] == ["bdac", "abc", "abc"]
    assert lists[Backfill(1)] == ["abdc", "abc", "abc"]
    assert lists[Backfill(2)] == ["abdc", "abc", "abc"]
    assert [way.searches for way in lists] == [1, 1, 2, 3, 2, 2]


def test_fusion_weighs_the_rewrites_and_asks_once():
    engine = Engine()
    assert shown(Fusion(1, 0.01)(engine, ["q"], [["s"]], 4)) == ["abcd"]
    assert shown(Fusion(1, 100.0)(engine, ["q"], [["s"]], 4)) == ["dbea"]
    assert engine.calls == [["q", "s"]] * 2


@pytest.mark.parametrize("way", [Query(), Fusion(1), Backfill(1)])
def test_a_failed_search_is_not_a_list(way):
    engine = Engine("s")
    valid = way(engine, ["q", "q", "s"], [["r"], ["s"], ["r"]], 3).valid
    assert valid.tolist() == [True, isinstance(way, Query), False]


def test_expansion_weighs_new_terms_by_the_share_of_rewrites():
    terms = Expansion(2, 0.3).terms(
        "red red shoe", ["Red sneaker", "sneaker sneaker boot", "not read"]
    )
    assert terms == pytest.approx(
        {"red": 2.0, "shoe": 1.0, "sneaker": 0.3, "boot": 0.15}
    )
    assert Expansion(2, 0.0).terms("red", ["blue"]) == {"red": 1.0}
    assert Expansion(2, 0.3).terms("red", []) == {"red": 1.0}


def test_every_way_is_a_serving():
    ways = [
        Query(),
        Rewrite(),
        Fusion(),
        Expansion(),
        Backfill(),
        RM3({}),
        TermSelection({}, m1),
    ]
    assert all(isinstance(way, Serving) for way in ways)


PRODUCTS = {
    "1": Product("1", "red shoe red leather"),
    "2": Product("2", "blue shoe"),
    "3": Product("3", "leather sofa blue"),
    "4": Product("4", "lamp"),
}


def test_weighted_terms_are_sums_of_weighted_scores():
    engine = EmbeddedRetriever.build(PRODUCTS.values())
    alone = {
        term: dict(zip(hits.ids[0], hits.scores[0], strict=True))
        for term in ("red", "shoe", "leather")
        for hits in [engine.search([term], 4)]
    }
    weights = {"red": 0.25, "shoe": 3.0, "leather": 1.5, "unknown": 9.0}
    expected = Counter()
    for term, scores in alone.items():
        for product, score in scores.items():
            expected[product] += weights[term] * float(score)
    expected.pop("")
    hits = engine.search_terms([weights, {}, {"red": 2.0}], 4)
    found = dict(zip(hits.ids[0], hits.scores[0], strict=True))
    found.pop("")
    assert found == pytest.approx(dict(expected), rel=1e-6)
    assert shown(hits)[0] == "".join(sorted(expected, key=lambda p: -expected[p]))
    assert shown(hits)[1] == ""
    assert hits.scores[2] == pytest.approx(engine.search(["red red"], 4).scores[0])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_must_count(weight):
    engine = EmbeddedRetriever.build(PRODUCTS.values())
    with pytest.raises(ValueError, match="'red' weighs"):
        engine.search_terms([{"red": weight}], 3)


def test_the_cache_keeps_lists_of_terms():
    class Counting(EmbeddedRetriever):
        asked = 0

        def search_terms(self, queries, k):
            Counting.asked += len(queries)
            return super().search_terms(queries, k)

    plain = Counting.build(PRODUCTS.values())
    cached = CachedRetriever(plain)
    assert isinstance(cached, TermRetriever)
    bags = [{"red": 1.0, "shoe": 0.5}, {"shoe": 0.5, "red": 1.0}, {"lamp": 1.0}]
    first, second = (cached.search_terms(bags, 3) for _ in range(2))
    assert Counting.asked == 2
    assert shown(first) == shown(second) == shown(plain.search_terms(bags, 3))
    with pytest.raises(TypeError, match="FakeText has no search_terms"):
        CachedRetriever(FakeText()).search_terms(bags, 3)


class FakeText:
    """Searches texts alone."""

    def search(self, queries, k):
        return Hits.failed(len(queries), k)


def test_rm3_by_hand():
    rm3 = RM3(PRODUCTS, feedback=2, terms=3, alpha=0.6)
    # P(t|R): red 2/4, shoe 1/4, leather 1/4 of the first, blue and shoe 1/2 of the
    # second; means over two: shoe 3/8, red 2/8, blue 2/8, leather 1/8. The three
    # heaviest sum to 7/8.
    found = rm3.terms({"shoe": 2.0, "cheap": 1.0}, ["1", "2", "3"])
    assert found == pytest.approx(
        {
            "shoe": 0.6 * 2 / 3 + 0.4 * 3 / 7,
            "cheap": 0.6 * 1 / 3,
            "red": 0.4 * 2 / 7,
            "blue": 0.4 * 2 / 7,
        }
    )
    assert rm3.terms({"shoe": 1.0}, []) == {}
    alone = RM3(PRODUCTS, alpha=1.0).terms({"a": 1.0, "b": 3.0}, ["1"])
    assert alone == {"a": 0.25, "b": 0.75}
    with pytest.raises(ValueError, match="alpha=0"):
        RM3(PRODUCTS, alpha=0.0)


def test_rm3_finds_what_the_query_does_not():
    engine = EmbeddedRetriever.build(PRODUCTS.values())
    assert shown(Query()(engine, ["red"], [[]], 4)) == ["1"]
    # red brings leather and shoe, and so the other two
    assert set(shown(RM3(PRODUCTS)(engine, ["red"], [[]], 4))[0]) == set("123")
    assert shown(RM3(PRODUCTS)(engine, ["nothing"], [[]], 4)) == [""]
    # a rewrite's terms take part in the first search
    wider = RM3(PRODUCTS, first=Expansion(1, 0.5))
    assert "4" in shown(wider(engine, ["red"], [["lamp"]], 4))[0]


def test_candidate_words_and_what_is_known_of_them():
    def relevance(queries, ids):
        return np.where(np.isin(ids, ["1", "3"]), 0.75, 0.25).astype(np.float32)

    selection = TermSelection(PRODUCTS, relevance)
    (found,) = selection.candidates(
        ["cheap shoe"], [["red lamp", "lamp"]], [["1", "2", "3"]]
    )
    # leather is in two products read, blue too; red and lamp are in rewrites; shoe is
    # the query's own, and so would be cheap if the catalogue had it
    assert found.terms == ["blue", "lamp", "leather", "red", "shoe"]
    blue, lamp, leather, red, shoe = (
        dict(zip(FEATURES, row, strict=True)) for row in found.features
    )
    assert leather == pytest.approx(
        {
            "feedback": (1 / 4 + 0 + 1 / 3) / 3,
            "first": 2 / 3,
            "share": 2 / 3,
            "rarity": math.log(4 / 2),
            "found": 1.0,
            "gain": 0.75 - 1.75 / 3,
            "most": 0.75,
            "contrast": 1.5 / 1.75 - 0.5 / 1.25,
            "rewrites": 0.0,
            "rewrite": 0.0,
            "mean_gain": 1.75 / 3,
            "length": 2.0,
            "own": 0.0,
        }
    )
    assert shoe["own"] == 1.0
    assert blue["contrast"] == pytest.approx(1.0 / 1.75 - 1.0 / 1.25)
    assert (lamp["share"], lamp["rewrites"], lamp["rewrite"]) == (0.0, 1.0, 1.0)
    assert (red["share"], red["rewrites"], red["rewrite"]) == (1 / 3, 0.5, 1.0)


def test_selection_learns_which_words_help():
    rng = np.random.default_rng(0)
    kinds = [f"kind{i}" for i in range(33)]
    # "good" marks the products of each kind that are wanted; "bad" is in the others.
    products = {}
    for kind in kinds:
        for i in range(12):
            quality, id = ("good", "bad")[i % 2], f"{kind}-{i}"
            filler = " ".join(f"w{j}" for j in rng.integers(0, 40, 3))
            title = f"{kind} {quality} {filler}"
            products[id] = Product(id, title)
    engine = EmbeddedRetriever.build(products.values())

    def relevance(queries, ids):
        return np.full(ids.shape, 0.5, np.float32)

    wanted = [{p for p, x in products.items() if f"{k} good" in x.title} for k in kinds]
    rewrites = [[f"{kind} good"] for kind in kinds]
    selection = TermSelection(products, relevance, feedback=12)
    with pytest.raises(ValueError, match="call fit first"):
        selection(engine, kinds, rewrites, 6)
    selection.fit(engine, kinds[:30], rewrites[:30], wanted[:30])
    before = Query()(engine, kinds[30:], [[]] * 3, 6)
    after = selection(engine, kinds[30:], rewrites[30:], 6)
    assert recall(before.ids, wanted[30:], k=6).mean() < 0.8
    assert recall(after.ids, wanted[30:], k=6).mean() == 1.0
    (weights,) = selection.expand(
        kinds[30:31],
        rewrites[30:31],
        [[p for p in products if p.startswith("kind30-")]],
    )
    assert weights["kind30"] == pytest.approx(1.0, abs=0.05)
    assert 1.0 < weights["good"] <= 2.1
    assert "bad" not in weights
    (half,) = selection.weighing(1.0).expand(
        kinds[30:31],
        rewrites[30:31],
        [[p for p in products if p.startswith("kind30-")]],
    )
    assert half["good"] == pytest.approx(weights["good"] / 2)
    # a word of the query's own that the wanted products have not counts for less
    queries, none = [f"{kind} bad" for kind in kinds], [[] for _ in kinds]
    selection.fit(engine, queries[:30], none[:30], wanted[:30])
    (weights,) = selection.expand(queries[30:31], none[:1], [[*products][-12:]])
    assert weights["bad"] < 0.5
    after = selection(engine, queries[30:], none[30:], 6)
    assert recall(after.ids, wanted[30:], k=6).mean() > 0.8
    assert not recall(
        Query()(engine, queries[30:], none, 6).ids, wanted[30:], k=6
    ).any()
    with pytest.raises(ValueError, match="without a word to learn from"):
        TermSelection(products, relevance).fit(engine, ["nothing"], [[]], [{"a"}])


def test_spelling_knows_the_catalogues_words():
    correct = SpellingCorrector(
        ["leather sofa", "red leather shoe", "xr500 lamp", "the shoes"]
    )
    texts = ["lether sofa", "Leather SOFA", "xr501", "sheo", "teh rde", "leathhrr", ""]
    assert correct(texts) == [
        "leather sofa",
        "Leather SOFA",  # no error: as it was
        "xr501",  # digits stay
        "shoe",  # letters swapped
        "teh rde",  # too short to tell
        "leather",  # two errors in a long word
        "",
    ]


def test_recall_by_hand():
    ids = np.array([list("abc"), ["d", "", ""], list("xyz")])
    relevant = [{"a", "c", "m", "n"}, {"d"}, set()]
    np.testing.assert_array_equal(recall(ids, relevant, k=2), [0.25, 1.0, np.nan])
    np.testing.assert_array_equal(recall(ids, relevant, k=3), [0.5, 1.0, np.nan])
    with pytest.raises(ValueError, match="k is 4"):
        recall(ids, relevant, k=4)


# The reward of what is served


def m1(queries, ids):
    rows = [
        [world.GAINS[q].get(i, 0.0) for i in row]
        for q, row in zip(queries, ids, strict=True)
    ]
    return np.array(rows, np.float32)


def test_the_reward_of_a_served_list_is_that_of_its_products():
    # SOFA finds D; "navy couch" finds C, D. Below the one product of its own comes C.
    engine = world.Engine()
    engine.search_terms = engine.search  # which Backfill does not call
    options = {"relevance": m1, "judge": world.Judge()}
    way = Backfill(1)
    served_ = rewrite_reward(
        [world.SOFA], ["navy couch"], retriever=engine, serving=way, k=3, **options
    )
    assert shown(served_.hits) == ["DC"]
    np.testing.assert_allclose(served_.parts["diversity"], [0.5])
    gains = m1([world.SOFA], served_.hits.ids)
    np.testing.assert_allclose(served_.parts["relevance"], [gains[0, :2].mean()])
    again = list_reward(
        [world.SOFA], engine.search([world.SOFA], 3), served_.hits, **options
    )
    np.testing.assert_array_equal(again.total, served_.total)


def test_a_way_that_searches_terms_needs_an_engine_that_can():
    with pytest.raises(TypeError, match="FakeText cannot be searched by weighted"):
        rewrite_reward(
            ["q"],
            ["r"],
            retriever=FakeText(),
            serving=Expansion(),
            relevance=m1,
            judge=world.Judge(),
        )


# The table

KNOWN = Known(
    {
        "q": {"a": 1.0, "b": 0.1, "c": 0.01, "d": 1.0},  # relevant: a, b, d
        "r": {"x": 1.0},
        "s": {"y": 0.01},  # nothing relevant
    },
    0.1,
)


def wide(*rows: str) -> Hits:
    hits = hits_of(*rows)
    padding = ((0, 0), (0, served.DEPTH - hits.ids.shape[1]))
    return hits._replace(
        ids=np.pad(hits.ids, padding, constant_values=""),
        scores=np.pad(hits.scores, padding),
    )


def test_columns_by_hand():
    found = served.columns(["q", "r", "s"], wide("cad", "", "y"), KNOWN)
    for k in served.CUTS:
        np.testing.assert_allclose(found[f"recall@{k}"], [2 / 3, 0.0, np.nan])
    log = np.log2([2, 3, 4, 5])
    dcg = 0.01 / log[0] + 1 / log[1] + 1 / log[2]
    ideal = 1 / log[0] + 1 / log[1] + 0.1 / log[2] + 0.01 / log[3]
    np.testing.assert_allclose(found["ndcg@10"], [dcg / ideal, 0.0, np.nan])
    np.testing.assert_array_equal(found["no_results"], [0.0, 1.0, 0.0])
    lost = wide("cad", "", "y")._replace(valid=np.array([False, True, True]))
    assert np.isnan(served.columns(["q", "r", "s"], lost, KNOWN)["ndcg@10"][0])


def test_recall_counts_its_first_ranks_alone():
    lists = [chr(0x4E00 + i) for i in range(served.DEPTH)]
    known = Known({"q": dict.fromkeys(lists, 1.0)}, 0.1)
    found = served.columns(["q"], wide("".join(lists)), known)
    assert [found[f"recall@{k}"][0] for k in (20, 50, 100)] == [0.2, 0.5, 1.0]


def measured(queries, systems, searches, **segments):
    return Measured(
        queries,
        {name: served.columns(queries, hits, KNOWN) for name, hits in systems.items()},
        {n: np.full(len(queries), x) for n, x in zip(systems, searches, strict=True)},
        {name: np.array(rows) for name, rows in segments.items()},
    )


def test_the_table_by_hand():
    systems = {
        "alone": wide("a", "x"),
        "worse": wide("c", ""),
        "better": wide("ab", "x"),
    }
    part = measured(
        ["q", "r"], systems, (1.0, 2.0, 1.5), short=[True, False], none=[False] * 2
    )
    part.systems["better"]["reward"] = np.array([0.2, 0.1])
    for name in ("alone", "worse"):
        part.systems[name]["reward"] = np.zeros(2)
    result = served.table(part, compared=[("better", "worse")])
    rows = {row["system"]: row for row in result["rows"]}
    assert rows["alone"]["recall@50"] == pytest.approx((1 / 3 + 1) / 2)
    assert rows["better"]["reward"] == pytest.approx((0.2 + 0.1) / 2)
    assert rows["worse"]["no_results"] == 0.5
    assert [rows["worse"][x] for x in ("win", "loss", "untouched")] == [0, 1, 0]
    assert [rows["better"][x] for x in ("win", "loss", "untouched")] == [0.5, 0, 0.5]
    assert rows["better"]["searches"] == 1.5
    differences = {
        (d["system"], d["than"]): d["difference"]
        for d in result["differences"]
        if d["metric"] == "recall@50"
    }
    assert differences == pytest.approx(
        {
            ("worse", "alone"): -2 / 3,
            ("better", "alone"): 1 / 6,
            ("better", "worse"): 5 / 6,
        }
    )
    (segment,) = result["segments"]
    assert (segment["segment"], segment["queries"]) == ("short", 1)
    assert segment["rows"][2]["difference"] == pytest.approx(1 / 3)


def test_folds_are_one_table():
    one = measured(["q"], {"alone": wide("a"), "b": wide("ab")}, (1.0, 2.0), x=[True])
    two = measured(
        ["r"],
        {"alone": wide("x"), "c": wide(""), "b": wide("")},
        (1.0, 3.0, 1.0),
        x=[False],
    )
    both = Measured.concatenate([one, two])
    assert (both.queries, list(both.systems)) == (["q", "r"], ["alone", "b"])
    rows = {row["system"]: row for row in served.table(both)["rows"]}
    assert rows["b"]["recall@50"] == pytest.approx((2 / 3 + 0) / 2)
    assert rows["b"]["searches"] == 1.5
    assert both.segments["x"].tolist() == [True, False]


def test_examples_name_the_products_concerned():
    found = served.examples(
        ["q", "r", "s"], wide("ac", "x", "y"), wide("bd", "", "y"), KNOWN
    )
    assert found == [
        {"query": "q", "change": 1 / 3, "gained": ["b", "d"], "lost": ["a"]},
        {"query": "r", "change": -1.0, "gained": [], "lost": ["x"]},
    ]


# The gate


def test_a_gate_serves_where_all_its_features_are_high_enough():
    seen = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([1.0, 0.0, 1.0])}
    assert gate.Gate({})(seen).tolist() == [True] * 3
    assert gate.Gate({"a": 1.0, "b": 1.0})(seen).tolist() == [False, False, True]
    assert not gate.NEVER(seen | {"confidence": np.zeros(3)}).any()


def test_the_gate_finds_the_feature_that_tells():
    rng = np.random.default_rng(0)
    tells, noise = rng.random(200), rng.random(200)
    change = np.where(tells > 0.6, 0.2, -0.2)
    seen = {"noise": noise, "confidence": tells}
    found = gate.fit(seen, change, np.zeros(200), most=1)
    assert list(found.thresholds) == ["confidence"]
    assert 0.5 < found.thresholds["confidence"] < 0.62
    passed = found(seen)
    assert np.mean(passed & (change < 0)) <= 0.1
    # less harm than any threshold allows for: it never opens
    assert not gate.fit(seen, -np.ones(200), np.zeros(200))(seen).any()
    # and a gain in recall at the price of nDCG is none
    assert not gate.fit(seen, change, -np.ones(200))(seen).any()
    unknown = np.full(200, np.nan)
    assert not gate.fit(seen, unknown, unknown)(seen).any()


def test_the_gate_keeps_the_harm_that_was_asked_for():
    seen = {"confidence": np.arange(100.0)}
    # 12 queries lose, spread among the lowest 60; all others gain
    change = np.full(100, 0.3)
    change[:60:5] = -0.1
    strict, loose = (
        gate.fit(seen, change, np.zeros(100), harm=harm) for harm in (0.05, 0.5)
    )
    assert loose(seen).all()
    assert np.sum(strict(seen) & (change < 0)) <= 5
    assert strict(seen).sum() == 60  # the lowest decile with at most 5


def test_features_by_hand():
    def m1(queries, ids):
        return np.where(np.isin(ids, ["a", "d"]), 1.0, 0.0).astype(np.float32)

    found = gate.features(
        ["nike shoe 42", "red hat"],
        [["nike boot"], []],
        np.array([-0.5, -1.0]),
        hits_of("ab", "c"),
        hits_of("ad", ""),
        m1,
        frozenset({"nike"}),
    )
    assert {name: x.tolist() for name, x in found.items()} == {
        "confidence": [-0.5, -1.0],
        "relevance": [0.5, 0.0],
        "overlap": [0.5, 0.0],
        "protected": [0.5, 1.0],  # nike of nike and 42; nothing to protect
    }


def test_choose_takes_whole_lists():
    first, second = hits_of("ab", "c"), hits_of("xy", "z")
    assert shown(choose(first, second, np.array([False, True]))) == ["ab", "z"]
