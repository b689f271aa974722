"""Rewards by hand on a small shop; the simulated shopper's monotonicities."""

import subprocess
import sys

import numpy as np
import pytest

from jaxqr.records import Hits, Interactions, Product
from jaxqr.rewards import (
    Profile,
    SimulatedShopper,
    rewrite_reward,
    sample_profiles,
)
from jaxqr.rewards.profiles import assign
from jaxqr.rewards.reward import PARTS
from jaxqr.train.rollouts.draw import Candidates
from jaxqr.train.rollouts.finish import prefer
from jaxqr.types import Pairs

LISTS = {
    "shoe": ["a", "b", "c", "d"],
    "red shoe": ["a", "e"],
    "boot": ["e", "f", "b"],
    "fail": ["a"],
}
GAIN = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.25, "e": 0.1, "f": 0.01}


class FakeRetriever:
    """Fails for some texts; what it lists for them means nothing."""

    def __init__(self, *failing):
        self.asked, self.failing = [], failing

    def search(self, queries, k):
        self.asked.append(list(queries))
        rows = [LISTS.get(q, [])[:k] for q in queries]
        ids = [row + [""] * (k - len(row)) for row in rows]
        ids = np.array(ids, dtype=np.str_).reshape(len(rows), k)
        valid = np.array([q not in self.failing for q in queries], np.bool_)
        return Hits(ids, (ids != "").astype(np.float32), valid)


def relevance(queries, ids):
    return np.vectorize(lambda i: GAIN.get(i, 0.7), otypes=[np.float32])(ids)


class FakeJudge:
    """Clicks half, adds a quarter, buys an eighth; fails on the list of "fail"."""

    def __init__(self):
        self.seen = []

    def __call__(self, queries, hits, gains, profiles):
        rows = hits.ids.tolist(), gains.tolist(), profiles
        self.seen += list(zip(queries, *rows, strict=True))
        assert (hits.ids != "").any(axis=1).all()
        rates = np.full(len(queries), 0.5, np.float32)
        valid = hits.ids[:, 0] != "a"
        valid |= hits.ids[:, 1] != ""
        rates = np.where(valid, rates, np.nan).astype(np.float32)
        return Interactions(rates, rates / 2, rates / 4, valid)


@pytest.fixture
def score():
    def score(queries, rewrites, **options):
        options = {"k": 4, "relevance": relevance, "judge": FakeJudge()} | options
        retriever = options.pop("retriever", FakeRetriever())
        return rewrite_reward(queries, rewrites, retriever=retriever, **options)

    return score


def test_parts_by_hand(score):
    reward = score(["shoe"] * 2, ["red shoe", "boot"])
    expected = {
        "relevance": [(1 + 0.1) / 2, (0.1 + 0.01 + 0.5) / 3],
        "diversity": [1 / 2, 2 / 3],
        "click": [0.5, 0.5],
        "add_to_cart": [0.25, 0.25],
        "purchase": [0.125, 0.125],
    }
    assert list(reward.parts) == list(PARTS) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(reward.parts[name], values, rtol=1e-6)
        assert reward.parts[name].dtype == np.float32
    mean = np.mean(list(expected.values()), axis=0)
    np.testing.assert_allclose(reward.total, mean, rtol=1e-6)
    assert reward.total.dtype == np.float32
    assert reward.valid.all()
    assert not any(flag.any() for flag in reward.flags.values())


def test_weights(score):
    only = dict.fromkeys(PARTS, 0.0) | {"diversity": 3.0, "click": 1.0}
    reward = score(["shoe"], ["boot"], weights=only)
    np.testing.assert_allclose(reward.total, [(3 * 2 / 3 + 0.5) / 4], rtol=1e-6)
    unnamed = score(["shoe"], ["boot"], weights={"purchase": 1.0})
    np.testing.assert_array_equal(unnamed.total, score(["shoe"], ["boot"]).total)


def test_flags_and_valid_zeros(score):
    reward = score(["shoe"] * 4, ["", "  ", "nothing here", " SHOE "])
    assert reward.flags["empty"].tolist() == [True, True, False, False]
    assert reward.flags["no_results"].tolist() == [True, True, True, True]
    assert reward.flags["copy"].tolist() == [False, False, False, True]
    assert reward.valid.all()
    assert not reward.total.any()
    assert not any(part.any() for part in reward.parts.values())
    copy = score(["shoe"], ["shoe"])
    assert copy.flags["copy"].all()
    assert copy.parts["diversity"] == 0
    np.testing.assert_allclose(copy.parts["relevance"], 1.75 / 4)


def test_a_failed_judgement_is_not_a_zero(score):
    reward = score(["shoe"] * 3, ["boot", "fail", "red shoe"])
    assert reward.valid.tolist() == [True, False, True]
    assert np.isfinite(reward.total).all()
    assert reward.total[1] == 0
    assert not any(part[1] for part in reward.parts.values())
    assert reward.flags["judge_failed"].tolist() == [False, True, False]
    assert not reward.flags["search_failed"].any()
    assert reward.hits.valid.all()  # what was found is known all the same
    without = score(["shoe"] * 2, ["boot", "red shoe"])
    np.testing.assert_array_equal(reward.total[[0, 2]], without.total)


def test_a_failed_search_masks_its_own_rows(score):
    judge = FakeJudge()
    queries = ["shoe", "shoe", "boot", "boot", "shoe", "shoe"]
    rewrites = ["boot", "red shoe", "shoe", "", "", "nothing here"]
    retriever = FakeRetriever("boot")
    reward = score(queries, rewrites, retriever=retriever, judge=judge)
    # Neither a rewrite nor a query that was not searched makes a number.
    known = np.array([False, True, False, False, True, True])
    assert reward.valid.tolist() == known.tolist()
    assert reward.flags["search_failed"].tolist() == (~known).tolist()
    assert not reward.flags["judge_failed"].any()
    assert reward.flags["no_results"].tolist() == [False] * 4 + [True] * 2
    assert reward.flags["empty"].tolist() == [False] * 3 + [True] * 2 + [False]
    # The list of the rewrite "shoe" is known, though its reward is not.
    assert reward.hits.valid.tolist() == [False, True, True, True, True, True]
    assert [(query, ids[0]) for query, ids, *_ in judge.seen] == [("shoe", "a")]
    alone = score(["shoe"] * 3, ["red shoe", "", "nothing here"])
    for name in ("total", *PARTS):
        got, expected = reward.part(name), alone.part(name)
        np.testing.assert_array_equal(got[known], expected)
        assert np.isnan(got[~known]).all()
        assert not np.isnan(expected).any()
    assert not reward.total[~known].any()
    assert np.isnan(reward.part("no such part")).all()


def test_nothing_at_all_was_found_out(score):
    judge = FakeJudge()
    reward = score(
        ["shoe"] * 2, ["boot", ""], retriever=FakeRetriever("shoe"), judge=judge
    )
    assert not reward.valid.any()
    assert reward.flags["search_failed"].all()
    assert not judge.seen


def test_a_failed_row_is_no_preference(score):
    """Of the pairs of online DPO, a failure takes the weight from its own alone."""
    queries = ["shoe", "shoe", "boot", "boot", "shoe", "shoe"]
    rewrites = ["red shoe", "broken", "red shoe", "shoe", "red shoe", "fail"]
    reward = score(queries, rewrites, retriever=FakeRetriever("broken"))
    # A search, none, and a judgement.
    assert reward.valid.tolist() == [True, False, True, True, True, False]
    source = np.zeros((3, 1), np.int32)
    target = np.arange(6, dtype=np.int32)[:, None]
    pairs = Pairs(source, source == 0, target, target >= 0)
    logps = np.zeros((6, 1), np.float32)
    batch, report = prefer(Candidates(queries, rewrites, pairs, logps), reward)
    assert batch.weight.tolist() == [0, 1, 0]
    assert batch.weight.dtype == np.float32
    best, worst = (2, 3) if reward.total[2] > reward.total[3] else (3, 2)
    assert (batch.chosen[1, 0], batch.rejected[1, 0]) == (best, worst)
    assert report["tied"] == 0
    assert report["chosen_score"] == reward.total[best]
    assert report["rejected_score"] == reward.total[worst]
    # A failure among three candidates is neither the best nor the worst.
    target = np.arange(3, dtype=np.int32)[:, None]
    pairs = Pairs(source[:1], source[:1] == 0, target, target >= 0)
    for place in range(3):
        rewrites = ["red shoe", "boot"]
        rewrites.insert(place, "broken")
        reward = score(["shoe"] * 3, rewrites, retriever=FakeRetriever("broken"))
        drawn = Candidates(["shoe"] * 3, rewrites, pairs, logps[:3])
        batch, _ = prefer(drawn, reward)
        order = sorted({0, 1, 2} - {place}, key=lambda row: reward.total[row])
        assert (batch.rejected[0, 0], batch.chosen[0, 0]) == tuple(order)
        assert batch.weight.tolist() == [1]


def test_the_judge_sees_the_query_and_not_the_rewrite(score):
    judge, pool = FakeJudge(), sample_profiles(50, seed=0)
    score(["shoe", "boot"], ["red shoe", "shoe"], judge=judge, profiles=pool)
    asked, lists, gains, profiles = zip(*judge.seen, strict=True)
    assert asked == ("shoe", "boot")
    assert lists[0] == ["a", "e", "", ""]
    # M1's gains, and 0 for padding, whatever M1 says of it.
    np.testing.assert_allclose(gains[0], [1.0, 0.1, 0.0, 0.0])
    np.testing.assert_allclose(gains[1], [1.0, 0.5, 0.0, 0.25])
    assert list(profiles) == assign(pool, ["shoe", "boot"])


def test_equal_texts_are_searched_and_judged_once(score):
    retriever, judge = FakeRetriever(), FakeJudge()
    reward = score(
        ["shoe", "boot", "shoe", "shoe", "shoe"],
        ["boot", "shoe", "", "boot", "red shoe"],
        retriever=retriever,
        judge=judge,
    )
    assert sorted(text for asked in retriever.asked for text in asked) == [
        "boot",
        "red shoe",
        "shoe",
    ]
    assert len(judge.seen) == 3
    assert reward.total[0] == reward.total[3]
    alone = [score([q], [r]).total[0] for q, r in [("boot", "shoe"), ("shoe", "boot")]]
    assert [reward.total[1], reward.total[0]] == alone


def test_nothing_to_score(score):
    assert score([], []).total.shape == (0,)
    assert not score([""], [""]).total.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"clicks": 1.0}}, "unknown weights"),
        ({"weights": {"click": -1.0}}, "0 or more"),
        ({"weights": {"click": float("nan")}}, "0 or more"),
        ({"weights": dict.fromkeys(PARTS, 0.0)}, "all weights are 0"),
        ({"profiles": []}, "pool of profiles is empty"),
        ({"relevance": lambda q, i: relevance(q, i) * 2}, "value 2.0"),
        ({"relevance": lambda q, i: relevance(q, i) * np.nan}, "value nan"),
        ({"relevance": lambda q, i: relevance(q, i)[:, :1]}, "has shape"),
    ],
)
def test_refused(score, options, message):
    with pytest.raises(ValueError, match=message):
        score(["shoe"], ["red shoe"], **options)


def test_one_rewrite_per_query(score):
    with pytest.raises(ValueError, match="2 queries and 1 rewrites"):
        score(["shoe", "boot"], ["red shoe"])


# Profiles


def test_profiles_are_drawn_from_what_is_documented():
    pool = sample_profiles(2000, seed=1, brands=("Acme", "Best", "Core", "Dune"))
    assert pool == sample_profiles(2000, 1, brands=("Acme", "Best", "Core", "Dune"))
    assert pool[:100] != sample_profiles(
        100, 2, brands=("Acme", "Best", "Core", "Dune")
    )
    income = np.array([p.income for p in pool])
    sensitivity = np.array([p.price_sensitivity for p in pool])
    liked = np.bincount([len(p.brand_affinity) for p in pool]) / len(pool)
    assert 47_000 < np.median(income) < 53_000
    assert ((sensitivity >= 0) & (sensitivity <= 1)).all()
    assert np.corrcoef(np.log(income), sensitivity)[0, 1] < -0.3
    np.testing.assert_allclose(liked, [0.3, 0.4, 0.2, 0.1], atol=0.04)
    assert all(len(set(p.brand_affinity)) == len(p.brand_affinity) for p in pool)
    assert all(18 <= p.age <= 79 for p in pool)
    plain = sample_profiles(5, 0, materials=(), styles=())
    assert {(p.brand_affinity, p.style, p.material) for p in plain} == {((), "", "")}
    with pytest.raises(ValueError, match="n is 0"):
        sample_profiles(0, seed=0)


def test_a_query_always_meets_the_same_shopper():
    pool = sample_profiles(10, seed=0)
    queries = [f"query {i}" for i in range(1000)]
    met = assign(pool, queries)
    assert assign(pool, queries[::-1]) == met[::-1]
    assert min(met.count(profile) for profile in pool) > 60
    # From `printf "red shoe" | b2sum -l 64` and so on, so that every machine agrees.
    places = [
        pool.index(profile) for profile in assign(pool, ["red shoe", "boots", ""])
    ]
    assert places == [1, 6, 6]


# The simulated shopper

ANYBODY = Profile("", 30, "", 50_000, 0.0, (), "", "")
CATALOGUE = {
    **{f"p{i:02d}": Product(f"p{i:02d}", f"thing {i}") for i in range(20)},
    "acme": Product("acme", "thing", brand="ACME"),
    "wool": Product("wool", "a thing", bullets="Pure Wool."),
    "woollen": Product("woollen", "woollen thing"),
    "vintage": Product("vintage", "Vintage thing"),
    **{f"cheap{i}": Product(f"cheap{i}", "x", price=10.0 + i) for i in range(10)},
    **{
        f"fine{i}": Product(f"fine{i}", "x", category="Fine > Art", price=500.0 + i)
        for i in range(10)
    },
    "rare": Product("rare", "x", category="Rare", price=1000.0),
}
IDS = np.array([[f"p{i:02d}" for i in range(20)]])


def hits_of(ids) -> Hits:
    ids = np.array(ids, dtype=np.str_)
    return Hits(ids, np.zeros(ids.shape, np.float32), np.ones(len(ids), np.bool_))


def shop(ids, gains, profile=ANYBODY, query="thing", **options) -> Interactions:
    gains = np.broadcast_to(np.float32(gains), np.shape(ids))
    shopper = SimulatedShopper(CATALOGUE, **options)
    return shopper([query] * len(ids), hits_of(ids), gains, [profile] * len(ids))


def test_two_products_by_hand():
    rates = shop([["p00", "p01", ""]], [[1.0, 0.5, 0.0]])
    clicks = np.array([0.9, 0.95 * (0.02 + 0.88 / 2)])
    adds = clicks * [0.6, 0.05 + 0.55 / 2]
    buys = adds * [0.6, 0.1 + 0.5 / 2]
    got = [rates.click[0], rates.add_to_cart[0], rates.purchase[0]]
    np.testing.assert_allclose(got, [x.sum() / 2 for x in (clicks, adds, buys)], 1e-6)
    assert rates.click.dtype == np.float32


def test_rates_tell_good_lists_from_bad():
    assert 0.5 < shop(IDS, 1.0).click[0] < 0.6
    assert shop(IDS, 0.0).click[0] < 0.05
    keen = Profile("", 30, "", 50_000, 1.0, ("acme",), "vintage", "wool")
    full = {
        "x": Product("x", "vintage wool", brand="acme", price=1.0),
        **{f"{i}": Product(f"{i}", "", price=9.0) for i in range(99)},
    }
    best, nothing = SimulatedShopper(full), np.zeros((1, 20), np.float32)
    assert best(["q"], hits_of([["x"] * 20]), nothing, [keen]).click[0] < 0.05


def test_a_more_relevant_product_never_lowers_a_rate():
    rng = np.random.default_rng(0)
    for _ in range(50):
        gains = rng.random((1, 20))
        better = gains.copy()
        i = rng.integers(20)
        better[0, i] += (1 - better[0, i]) * rng.random()
        for before, after in zip(shop(IDS, gains), shop(IDS, better), strict=True):
            assert (after >= before).all()
        assert shop(IDS, better).click > shop(IDS, gains).click


@pytest.mark.parametrize("sample_seed", [None, 3])
def test_interactions_are_nested_rates(sample_seed):
    ids = np.repeat(IDS, 30, axis=0)
    gains = np.random.default_rng(1).random(ids.shape)
    rates = shop(ids, gains, sample_seed=sample_seed)
    assert (rates.purchase >= 0).all()
    assert (rates.purchase <= rates.add_to_cart).all()
    assert (rates.add_to_cart <= rates.click).all()
    assert (rates.click <= 1).all()
    assert rates.valid.all()


@pytest.mark.parametrize(
    ("wanted", "product", "plain"),
    [
        ({"brand_affinity": ("Other", "acme ")}, "acme", "p00"),
        ({"material": "wool"}, "wool", "woollen"),
        ({"style": "vintage"}, "vintage", "p00"),
        ({"price_sensitivity": 1.0}, "cheap0", "cheap9"),
        ({"price_sensitivity": 1.0}, "fine0", "cheap9"),  # each in its own category
        ({"price_sensitivity": 1.0}, "p00", "rare"),  # one price is no category
    ],
)
def test_what_fits_the_shopper_attracts(wanted, product, plain):
    rates = shop([[product], [plain]], 0.5, ANYBODY._replace(**wanted))
    assert rates.click[0] > rates.click[1]
    assert rates.purchase[0] > rates.purchase[1]
    neutral = shop([[product], [plain]], 0.5)
    assert neutral.click[0] == neutral.click[1]


def test_what_is_not_known_is_neutral():
    picky = Profile("", 30, "", 50_000, 1.0, ("acme",), "vintage", "wool")
    rates = shop([["p00"], ["not in the catalogue"]], 0.5, picky)
    anybody = shop([["p00"]], 0.5)
    assert rates.click.tolist() == anybody.click.tolist() * 2


def test_an_empty_list_has_no_interactions():
    rates = shop([["", ""]], 0.0)
    assert rates.click == rates.add_to_cart == rates.purchase == 0
    assert rates.valid.all()


def test_samples_agree_with_the_expectation_and_ignore_the_batch():
    ids = np.repeat(IDS, 2000, axis=0)
    gains = np.tile(np.linspace(1, 0, 20), (2000, 1)).astype(np.float32)
    queries = [f"query {i}" for i in range(2000)]
    expected = shop(IDS, gains[:1])
    shopper = SimulatedShopper(CATALOGUE, sample_seed=7)
    rates = shopper(queries, hits_of(ids), gains, [ANYBODY] * 2000)
    for drawn, mean in zip(rates[:3], expected[:3], strict=True):
        error = drawn.std() / np.sqrt(len(drawn))
        assert abs(drawn.mean() - mean[0]) < 4 * error
    # Independent looks could not spread wider than sqrt(20 / 4) / 20.
    assert rates.click.std() > 0.112
    padded = np.concatenate([ids[:3], np.full((3, 2), "")], axis=1)
    gains = np.pad(gains[:3], ((0, 0), (0, 2)))
    few = shopper(queries[2::-1], hits_of(padded), gains, [ANYBODY] * 3)
    np.testing.assert_array_equal(few.click, rates.click[2::-1])
    other = SimulatedShopper(CATALOGUE, sample_seed=8)
    again = other(queries[2::-1], hits_of(padded), gains, [ANYBODY] * 3)
    assert (again.click != few.click).any()


def test_as_many_lists_as_queries():
    with pytest.raises(ValueError, match="2 queries, 1 lists"):
        SimulatedShopper(CATALOGUE)(
            ["a", "b"], hits_of(IDS), np.zeros(IDS.shape, np.float32), [ANYBODY] * 2
        )


def test_rewards_import_no_jax():
    check = "import sys, jaxqr.rewards; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
