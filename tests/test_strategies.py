"""The table of strategies in a world of four queries, every number known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from jaxqr.evaluation import strategies
from jaxqr.evaluation.classifier import Judged
from jaxqr.records import Labels

LABELS = Labels(("Exact", "Partial", "Irrelevant"), (1.0, 0.5, 0.0), ("Exact",))
QUERIES = ["a", "a", "a", "b", "b", "c", "c", "c", "d"]
ROWS = Judged(
    np.array(QUERIES, object),
    np.array([f"p{i}" for i in range(9)], object),
    np.array([0, 1, 2, 0, 2, 1, 2, 2, 0]),
    np.ones(9),
)
TRUTH = np.eye(3)[ROWS.label]


def noisy(seed, share):
    """The truth, mixed with noise."""
    noise = np.random.default_rng(seed).dirichlet(np.ones(3), 9)
    return share * TRUTH + (1 - share) * noise


GIVEN = {
    "None": [noisy(0, 0.1), noisy(1, 0.1)],
    "Fine-tuned": [noisy(2, 0.4), noisy(3, 0.4)],
    "Adversarial RL": [TRUTH, TRUTH],
}
COMPARED = [("Fine-tuned", "None"), ("Adversarial RL", "None"), ("Prompted", "None")]


@pytest.fixture(scope="module")
def table():
    return strategies.table(GIVEN, ROWS, LABELS, COMPARED)


def auc(p):
    return average_precision_score(TRUTH.ravel(), p.ravel())


def ndcg(p):
    """Of the queries whose products differ: not of d."""
    gains, scores = np.array(LABELS.gains)[ROWS.label], p @ np.array(LABELS.gains)
    values = []
    for query in "abc":
        mine = ROWS.query == query
        values.append(ndcg_score(gains[mine][None], scores[mine][None], k=10))
    return np.mean(values)


def test_means_are_over_seeds(table):
    assert [row["strategy"] for row in table["rows"]] == list(GIVEN)
    for row, found in zip(table["rows"], GIVEN.values(), strict=True):
        assert row["pr_auc"] == pytest.approx(np.mean([auc(p) for p in found]))
        assert row["pr_auc_by_seed"] == pytest.approx([auc(p) for p in found])
        assert row["ndcg"] == pytest.approx(np.mean([ndcg(p) for p in found]))
        for k, name in enumerate(LABELS.names):
            known = [average_precision_score(TRUTH[:, k], p[:, k]) for p in found]
            assert row["pr_auc_by_class"][name] == pytest.approx(np.mean(known))
    assert (table["judgements"], table["queries"], table["seeds"]) == (9, 4, 2)


def test_the_truth_is_perfect_under_every_resample(table):
    row = table["rows"][-1]
    assert row["pr_auc"] == row["ndcg"] == row["accuracy"] == 1
    assert row["pr_auc_interval"] == row["ndcg_interval"] == [1, 1]
    assert row["ece"] == 0


def test_differences_are_paired(table):
    """Of those that are there; the interval is around the difference of the means."""
    rows = {row["strategy"]: row for row in table["rows"]}
    named = [(d["strategy"], d["than"], d["metric"]) for d in table["differences"]]
    assert named == [(*c, m) for c in COMPARED[:2] for m in ("pr_auc", "ndcg")]
    for item in table["differences"]:
        after, before = rows[item["strategy"]], rows[item["than"]]
        difference = after[item["metric"]] - before[item["metric"]]
        assert item["difference"] == pytest.approx(difference)
        assert item["low"] <= difference <= item["high"]
    # A strategy does not differ from itself, whatever is drawn.
    same = {"one": GIVEN["None"], "other": GIVEN["None"]}
    (of_auc, of_ndcg) = strategies.table(same, ROWS, LABELS, [("other", "one")])[
        "differences"
    ]
    assert of_auc["low"] == of_auc["high"] == of_ndcg["low"] == of_ndcg["high"] == 0


def test_floors(table):
    guess = np.tile(TRUTH.mean(axis=0), (9, 1))
    assert table["floors"]["pr_auc"] == pytest.approx(auc(guess))
    assert 0.6 < table["floors"]["ndcg"] < 0.95  # lists of two and three


def test_ndcg_is_of_fully_judged_queries():
    found = strategies.table(GIVEN, ROWS, LABELS, [], fully_judged=frozenset("ac"))
    gains = np.array(LABELS.gains)
    known = []
    for p in GIVEN["None"]:
        for query in "ac":
            mine = ROWS.query == query
            truth, scores = gains[ROWS.label][mine], (p @ gains)[mine]
            known.append(ndcg_score(truth[None], scores[None], k=10))
    assert found["rows"][0]["ndcg"] == pytest.approx(np.mean(known))
    none = strategies.table(GIVEN, ROWS, LABELS, [], fully_judged=frozenset())
    assert np.isnan(none["rows"][0]["ndcg"])
    assert np.isnan(none["floors"]["ndcg"])
    assert none["rows"][0]["pr_auc"] == found["rows"][0]["pr_auc"]


def test_categories_by_hand():
    categories = np.array(["x"] * 3 + ["y"] * 5 + [""])
    found = strategies.table(GIVEN, ROWS, LABELS, [], categories=categories)
    lines = found["categories"]
    assert [(line["category"], line["judgements"]) for line in lines] == [
        ("y", 5),
        ("x", 3),
    ]
    for line in lines:
        mine = categories == line["category"]
        for name, several in GIVEN.items():
            known = [
                average_precision_score(TRUTH[mine].ravel(), p[mine].ravel())
                for p in several
            ]
            assert line["pr_auc"][name] == pytest.approx(np.mean(known))
    assert strategies.table(GIVEN, ROWS, LABELS, [])["categories"] == []


def test_rows_count_by_their_weight():
    weight = np.array([1.0, 2, 3, 1, 2, 3, 1, 2, 3])
    found = strategies.table(GIVEN, ROWS._replace(weight=weight), LABELS, [])
    p = GIVEN["None"][0]
    known = average_precision_score(
        TRUTH.ravel(), p.ravel(), sample_weight=np.repeat(weight, 3)
    )
    assert found["rows"][0]["pr_auc_by_seed"][0] == pytest.approx(known)


def test_an_interval_covers_queries_and_seeds():
    """Seeds that differ widen it; more queries narrow it."""

    def width(found, rows):
        row = strategies.table({"one": found}, rows, LABELS, [])["rows"][0]
        low, high = row["pr_auc_interval"]
        return high - low

    many = np.array([f"{q}{i}" for i in range(20) for q in QUERIES], object)
    longer = Judged(many, *(np.tile(column, 20) for column in ROWS[1:]))
    poor, right = np.tile(noisy(0, 0.3), (20, 1)), np.tile(TRUTH, (20, 1))
    narrow = width([poor, poor], longer)
    assert narrow < width([noisy(0, 0.3)] * 2, ROWS) / 2
    assert width([poor, right], longer) > 2 * narrow


def test_strategies_must_have_equally_many_seeds():
    uneven = GIVEN | {"None": GIVEN["None"][:1]}
    with pytest.raises(ValueError, match=r"\[1, 2\] seeds"):
        strategies.table(uneven, ROWS, LABELS, [])
