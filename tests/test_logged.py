"""Logged shoppers: propensities that are known, by simulation and by hand."""

import numpy as np
import pytest
from scipy.special import xlog1py, xlogy
from scipy.stats import spearmanr

from jaxqr.records import Hits, Impressions, Interactions, Product
from jaxqr.retrieval.documents import title
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.rewards import SimulatedShopper, sample_profiles
from jaxqr.rewards.blend import Blend
from jaxqr.rewards.judges import PERSISTENCE
from jaxqr.rewards.logged import LoggedJudge, coec, fit_pbm
from jaxqr.rewards.visits import visits

SHOPPERS = sample_profiles(5, 0)


def simulated(theta, rows: int, seed: int, *, sorted_lists: bool):
    """Clicks of a PBM on lists of all pairs of one of many queries.

    Returns:
        Pairs, ranks and clicks of the impressions, and the attraction of every pair.
    """
    rng = np.random.default_rng(seed)
    length, queries = len(theta), 50
    alpha = rng.beta(1.5, 3, (queries, length))
    query = rng.integers(queries, size=rows)
    noise = 0.25 if sorted_lists else 1000.0
    score = alpha[query] + noise * rng.standard_normal((rows, length))
    order = np.argsort(-score, axis=1)
    pairs = query[:, None] * length + order
    chance = theta[None] * alpha.ravel()[pairs]
    clicks = rng.random(chance.shape) < chance
    ranks = np.broadcast_to(np.arange(1, length + 1), pairs.shape)
    flat = pairs.ravel(), ranks.ravel(), clicks.ravel().astype(float)
    return *flat, alpha.ravel()


def test_known_propensities_are_recovered():
    theta = 1 / np.arange(1, 9) ** 0.7
    pairs, ranks, clicks, alpha = simulated(theta, 40_000, 0, sorted_lists=True)
    found = fit_pbm(pairs, ranks, clicks)
    np.testing.assert_allclose(found.propensity, theta, atol=0.03)
    # The share of clicks by rank takes the ranking's merit for position bias.
    by_rank = np.bincount(ranks, weights=clicks)[1:] / np.bincount(ranks)[1:]
    naive = by_rank / by_rank[0]
    assert np.abs(naive - theta).max() > 3 * np.abs(found.propensity - theta).max()
    # And so do COEC and the plain rate, in what they think of the pairs.
    baseline = spearmanr(coec(pairs, ranks, clicks), alpha).statistic
    assert spearmanr(found.attraction, alpha).statistic > baseline + 0.01
    assert np.all(np.diff(found.log_likelihood) >= -1e-12)


def test_the_fit_is_a_maximum():
    """No small step in any parameter makes the clicks likelier."""
    theta = np.array([1.0, 0.6, 0.3])
    pairs, ranks, clicks, _ = simulated(theta, 600, 1, sorted_lists=False)
    found = fit_pbm(pairs, ranks, clicks, max_iterations=20_000, tolerance=1e-14)

    def likelihood(theta, alpha):
        p = theta[ranks - 1] * alpha[pairs]
        return np.mean(xlogy(clicks, p) + xlog1py(1 - clicks, -p))

    best = likelihood(found.propensity, found.attraction)
    assert best == pytest.approx(found.log_likelihood[-1])
    for name in ("propensity", "attraction"):
        for place in range(3):
            for factor in (0.98, 1.02):
                changed = getattr(found, name).copy()
                changed[place] *= factor
                if changed[place] > 1:  # is no probability
                    continue
                other = {"theta": found.propensity, "alpha": found.attraction}
                other["theta" if name == "propensity" else "alpha"] = changed
                assert likelihood(**other) < best + 1e-9


def impressions(rows) -> Impressions:
    """Of (list, query, product, rank, deepest event) rows."""
    lists, queries, products, ranks, events = zip(*rows, strict=True)
    deep = np.array([("", "click", "cart", "buy").index(e) for e in events])
    return Impressions(
        np.array(lists),
        np.array(queries),
        np.array(products),
        np.array(ranks, np.int32),
        deep >= 1,
        deep >= 2,
        deep >= 3,
    )


def hits(*rows: list[str]) -> Hits:
    width = max(map(len, rows))
    ids = np.array([row + [""] * (width - len(row)) for row in rows])
    return Hits(ids, np.zeros(ids.shape, np.float32), np.ones(len(rows), np.bool_))


def ask(judge, queries, lists) -> Interactions:
    return judge(queries, lists, np.zeros(lists.ids.shape), SHOPPERS[: len(queries)])


def test_rates_by_hand():
    # One product at a time, at rank 1: no position bias to be told apart.
    rows = []
    for i in range(20):
        rows.append((f"a{i}", "Red Shoe", "a", 1, ["", "click", "cart", "buy"][i % 4]))
        rows.append((f"b{i}", "red  shoe", "b", 1, "click" if i < 5 else ""))
    judge = LoggedJudge(impressions(rows), strength=10.0)
    assert judge.pbm.propensity.tolist() == [1.0]
    assert (judge.queries, judge.pairs) == (1, 2)
    # 40 looks, 20 clicks, 10 additions, 5 purchases: means 1/2, 1/2, 1/2.
    click = {"a": (15 + 5) / 30, "b": (5 + 5) / 30}
    add = {"a": (10 + 5) / 25, "b": (0 + 5) / 15}
    buy = {"a": (5 + 5) / 20, "b": (0 + 5) / 10}
    found = ask(judge, ["RED shoe"], hits(["a", "b"]))
    both = [
        np.mean([click[p] for p in "ab"]),
        np.mean([click[p] * add[p] for p in "ab"]),
    ]
    assert found.valid.all()
    assert found.click[0] == pytest.approx(both[0])
    assert found.add_to_cart[0] == pytest.approx(both[1])
    assert found.purchase[0] == pytest.approx(
        np.mean([click[p] * add[p] * buy[p] for p in "ab"])
    )


def test_it_abstains_where_it_knows_too_little():
    rows = [(f"{i}", "q", "a", 1, "click") for i in range(20)]
    rows += [(f"x{i}", "q", "rare", 1, "click") for i in range(5)]
    judge = LoggedJudge(impressions(rows), min_impressions=10.0)
    lists = hits(["a"], ["a", "new"], ["a", "new", "new2"], ["rare"], ["a"])
    found = ask(judge, ["q", "q", "q", "q", "other"], lists)
    assert found.valid.tolist() == [True, True, False, False, False]
    # What is not known is taken to be like what is.
    assert found.click[1] == found.click[0] > 0.9
    assert not found.click[2:].any()
    strict = LoggedJudge(impressions(rows), min_coverage=1.0)
    assert not ask(strict, ["q"], hits(["a", "new"])).valid.any()


@pytest.mark.parametrize(
    "options", [{"min_impressions": -1.0}, {"min_coverage": 0.0}, {"strength": -1.0}]
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match="expected 0 or more, a share"):
        LoggedJudge(impressions([("1", "q", "a", 1, "")]), **options)


def test_no_logs():
    empty = Impressions(*(column[:0] for column in impressions([("", "", "", 1, "")])))
    with pytest.raises(ValueError, match="expected impressions"):
        LoggedJudge(empty)


class Fixed:
    """A judge that knows the queries which begin with its letters."""

    def __init__(self, letters, rate):
        self.letters, self.rate = letters, rate

    def __call__(self, queries, hits, gains, profiles):
        valid = np.array([query[0] in self.letters for query in queries])
        rates = np.where(valid, self.rate, 77.0).astype(np.float32)  # noise elsewhere
        return Interactions(rates, rates / 2, rates / 4, valid)


def test_a_blend_is_of_those_who_know():
    blend = Blend({Fixed("ab", 0.8): 3.0, Fixed("bc", 0.4): 1.0})
    lists = hits(["p"], ["p"], ["p"], ["p"])
    found = ask(blend, ["a", "b", "c", "d"], lists)
    assert found.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(found.click, [0.8, 0.7, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.purchase, [0.2, 0.175, 0.1, 0.0], rtol=1e-6)
    assert blend.answered == [2, 2]
    for weights in ({}, {Fixed("a", 1): 0.0}, {Fixed("a", 1): float("nan")}):
        with pytest.raises(ValueError, match="weights"):
            Blend(weights)


# Shoppers that leave a log


@pytest.fixture(scope="module")
def shop():
    rng = np.random.default_rng(0)
    words = ["red", "blue", "shoe", "boot", "sofa"]
    catalogue = [
        Product(f"p{i}", " ".join(rng.choice(words, 3)), brand=f"b{i % 3}", price=i + 1)
        for i in range(60)
    ]
    gains = {p.id: float(g) for p, g in zip(catalogue, rng.random(60), strict=True)}
    return {
        "retriever": EmbeddedRetriever.build(catalogue, text=title),
        "relevance": lambda queries, ids: np.array(
            [[gains.get(i, 0.0) for i in row] for row in ids.tolist()], np.float32
        ),
        "shopper": SimulatedShopper({p.id: p for p in catalogue}),
        "profiles": SHOPPERS,
    }


def test_visits_are_what_the_shopper_expects(shop):
    asked = ["red shoe", "blue boot", "sofa"]
    log = visits(asked, **shop, n=20_000, k=10, shuffled=0.3)
    assert log.click.any()
    assert not (log.add_to_cart & ~log.click).any()
    assert not (log.purchase & ~log.add_to_cart).any()
    for column, again in zip(log, visits(asked, **shop, n=20_000, k=10, shuffled=0.3),
                             strict=True):  # fmt: skip
        np.testing.assert_array_equal(column, again)
    judge = LoggedJudge(log)
    looks = PERSISTENCE ** np.arange(10)
    np.testing.assert_allclose(judge.pbm.propensity, looks, atol=0.06)
    lists = shop["retriever"].search(asked, 10)
    gains = shop["relevance"](asked, lists.ids)
    learned = judge(asked, lists, gains, SHOPPERS[:3])
    assert learned.valid.all()
    expected = [shop["shopper"](asked, lists, gains, [who] * 3) for who in SHOPPERS]
    for name in ("click", "add_to_cart", "purchase"):
        mean = np.mean([getattr(one, name) for one in expected], axis=0)
        np.testing.assert_allclose(getattr(learned, name), mean, rtol=0.1)
